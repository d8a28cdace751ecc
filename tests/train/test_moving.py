"""Pairs of acquisitions of what moves: from volumes and from files, and a training on them."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import torchimplicit as ti
from torchimplicit.imaging import DnCNN, Fourier, HalfQuadratic, Reconstruction, Sense, joint_loss
from torchimplicit.imaging.register import Demons, det_jacobian, warp
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import DataError, Measurement, MovingSlices, Pairs, RepeatedScans
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Reconstructor, Registered, Splitting, Supervised

SMALL = {"size": 16, "acceleration": 2.0, "smoothness": 3.0, "displacement": 1.0, "pairs": 1}
QUICK = Demons("displacement", levels=((1, 2.0, 0.5),))
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A head of blobs, 46 slices of 40 x 36, in a folder `brain`."""
    x, y, z = np.meshgrid(np.linspace(-1, 1, 36), np.linspace(-1, 1, 40), np.linspace(-0.4, 0.4, 46), indexing="ij")
    head = (x**2 + y**2 + z**2 < 0.7) * (1 + 0.5 * np.sin(9 * x) * np.cos(8 * y + 3 * z))
    folder = tmp_path_factory.mktemp("data")
    (folder / "brain").mkdir()
    nibabel.save(nibabel.Nifti1Image(head.astype(np.float32), np.eye(4)), folder / "brain" / "head.nii.gz")
    return folder


@pytest.fixture(scope="module")
def data(volume):
    found = MovingSlices(str(volume), **SMALL)
    found.setup()
    return found


def network():
    return Reconstruction(
        HalfQuadratic(DnCNN(2, 4, 2), eps=0.1),
        ti.Anderson(window=5, rtol=1e-3, max_steps=50),
        ti.Implicit(ti.GMRES(rtol=1e-1, max_steps=20)),
        on_failure="ignore",
    )


def test_blocks_of_slices_are_of_one_split_alone(data):
    assert [len(split) for split in data.splits] == [30, 6, 10]


def test_the_other_image_moved_by_the_motion_is_this_one(data):
    batch = data.splits.test.__getitems__([3, 7])
    other = torch.tensor([1, 0, 3, 2])
    back = warp(batch.target[other][:, None], batch.motion, interpolation="cubic")[:, 0]
    near = (back - batch.target)[:, 3:-3, 3:-3].abs().square().mean((1, 2))
    apart = (batch.target[other] - batch.target)[:, 3:-3, 3:-3].abs().square().mean((1, 2))
    assert bool((near < 0.15 * apart).all())


def test_masks_and_noise_are_the_acquisitions_own_and_always_the_same(data, volume):
    batch = data.splits.train.__getitems__([0, 5])
    mask = batch.op.mask
    assert mask.shape == (4, 16, 1)
    assert mask.sum((1, 2)).tolist() == [8] * 4
    assert len({tuple(each.flatten().tolist()) for each in mask}) == 4
    noise = batch.y - batch.op.A(batch.target)
    assert float(noise[:, mask[0].flatten()].abs().max()) > 0
    assert torch.equal(noise * ~mask, torch.zeros_like(noise))
    again = MovingSlices(str(volume), **SMALL, seed=3)
    again.setup()
    assert torch.equal(again.splits.train.__getitems__([0, 5]).y, batch.y)


def test_every_option_changes_the_data(volume, data):
    first = data.splits.train.__getitems__([0])
    for change in ({"noise": 0.1}, {"displacement": 0.5}, {"smoothness": 4.0}, {"acceleration": 4.0}):
        other = MovingSlices(str(volume), **{**SMALL, **change})
        other.setup()
        assert not torch.equal(other.splits.train.__getitems__([0]).y, first.y)
    more = MovingSlices(str(volume), **{**SMALL, "pairs": 2, "center_fraction": 0.375})
    more.setup()
    assert len(more.splits.train) == 60
    assert bool(more.splits.train.op.mask[:, 5:11].all())


def test_what_cannot_be_taken_is_refused(tmp_path, volume, monkeypatch):
    monkeypatch.delenv("TORCHIMPLICIT_DATA", raising=False)
    with pytest.raises(DataError, match=r"no folder to look in. Try --data-dir"):
        MovingSlices().setup()
    with pytest.raises(DataError, match="no NIfTI file in"):
        MovingSlices(str(tmp_path)).setup()
    for name, shape, message in (("few", (9, 9, 20), "got 20 slices"), ("four", (4, 4, 4, 2), "expected a volume")):
        path = tmp_path / f"{name}.nii"
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), path)
        with pytest.raises(DataError, match=message):
            MovingSlices(str(path)).setup()
    with pytest.raises(DataError, match=r"displacement=5.0, smoothness=3.0\): the motion of .* folds. Try a larger"):
        MovingSlices(str(volume), **{**SMALL, "displacement": 5.0}).setup()
    with pytest.raises(ValueError, match="center_fraction"):
        MovingSlices(acceleration=4, center_fraction=0.3)
    with pytest.raises(ValueError, match="smoothness"):
        MovingSlices(smoothness=0.0)


@pytest.mark.parametrize("coils", [1, 3])
def test_a_users_scans_are_taken_in_twos_slice_by_slice(tmp_path, coils):
    generator = torch.Generator().manual_seed(0)
    kspace = torch.randn(4, 2, coils, 8, 8, dtype=torch.complex64, generator=generator)
    mask = torch.rand(4, 2, 1, 8, 1, generator=generator) < 0.7
    maps = torch.randn(2, coils, 8, 8, dtype=torch.complex64, generator=generator)
    for name, each, own in zip(("a1", "a2", "b1", "b2"), kspace, mask, strict=True):
        arrays = {"kspace": (each * own).numpy()} | ({} if coils == 1 else {"maps": maps.numpy()})
        np.savez(tmp_path / f"{name}.npz", **arrays)
    data = RepeatedScans(str(tmp_path), held_out=1)
    data.setup()
    assert [len(split) for split in data.splits] == [2, 2, 2]
    y, op, target, motion = data.splits.test.__getitems__([1])
    assert target is motion is None
    assert isinstance(op, Fourier if coils == 1 else Sense)
    scales = (kspace * mask)[2:, 1].reshape(2, -1).norm(dim=1) / y.flatten(1).norm(dim=1)
    assert scales[0].item() == pytest.approx(scales[1].item(), rel=1e-5)
    assert op.A_adjoint(y)[0].abs().max().item() == pytest.approx(1, rel=1e-5)
    found = joint_loss(lambda y, op: op.A_adjoint(y), y, op, None)
    assert bool(found.loss.isfinite().all())


def test_scans_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected two each"):
        RepeatedScans(str(tmp_path)).setup()
    for name, shape in (("a", (2, 1, 8, 8)), ("b", (3, 1, 8, 8))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.complex64))
    with pytest.raises(DataError, match=r"got 2 slices in a.npy and 3 in b.npy"):
        RepeatedScans(str(tmp_path)).setup()
    np.save(tmp_path / "b.npy", np.ones((2, 1, 8, 9), np.complex64))
    with pytest.raises(DataError, match="expected one size"):
        RepeatedScans(str(tmp_path)).setup()


@pytest.mark.parametrize("loss", [Registered(registration=QUICK), Registered(motion="none"), Supervised()])
def test_one_module_trains_by_all_losses(data, loss):
    torch.manual_seed(0)
    module = Reconstructor(network(), loss=loss, learning_rate=1e-2, by="difference")
    data.trainer = None
    trainer = Trainer(**QUIET, max_epochs=1, limit_train_batches=4, limit_val_batches=2, log_every_n_steps=2)
    before = [each.clone() for each in module.parameters()]
    trainer.fit(module, datamodule=data)
    logged = trainer.logged_metrics
    # Without the truth, that is only looked at.
    assert {"val/psnr", "train/loss", "val/loss"} <= logged.keys()
    assert ("train/psnr" in logged) == isinstance(loss, Supervised)
    assert any(not torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    registers = isinstance(loss, Registered) and loss.motion == "found"
    assert ("train/registration_steps" in logged) == ("val/registration_unconverged" in logged) == registers
    assert ("train/left_out" in logged) == isinstance(loss, Registered)
    if isinstance(loss, Registered):
        assert logged["train/left_out"] == logged["val/left_out"] == 0


def test_what_is_left_out_counts_neither_in_the_mean_nor_as_zero(data):
    batch = data.splits.test.__getitems__([0, 1])
    batch.y[1] = 0
    module = Reconstructor(network(), loss=Registered(motion="known"))
    loss = module.evaluate("val", batch)
    found = joint_loss(module, batch.y, batch.op, batch.motion)
    assert found.used.tolist() == [False, False, True, True]
    assert loss.item() == pytest.approx(found.loss[2:].mean().item())


def test_the_loss_is_that_of_imaging_and_draws_the_motion(data):
    batch = data.splits.test.__getitems__([0])
    module = Reconstructor(network(), loss=Registered(registration=QUICK, weight=0.5))
    judged = module.loss(module, batch, seed=0)
    found = joint_loss(module, batch.y, batch.op, QUICK, weight=0.5)
    assert torch.equal(judged.loss, found.loss)
    figures = module.pictures(batch)
    assert list(figures)[:3] == ["pair", "motion found", "true motion"]
    for name, u in (("motion found", found.displacement), ("true motion", batch.motion)):
        J = det_jacobian(u[:1])
        assert f"det J from {J.min():.2f} to {J.max():.2f}" in figures[name].get_suptitle()
    without = module.pictures(Measurement(batch.y, batch.op))
    assert list(without) == ["pair", "motion found"]


def test_losses_that_do_not_fit_the_data_are_refused(data):
    batch = data.splits.test.__getitems__([0])
    alone = Measurement(batch.y[:1], batch.op.take(torch.tensor([0])))
    with pytest.raises(UsageError, match="two acquisitions of every object"):
        Registered()(network(), alone, seed=0)
    with pytest.raises(UsageError, match="data without the motion"):
        Registered(motion="known")(network(), Measurement(batch.y, batch.op), seed=0)
    for options in ({"motion": "guessed"}, {"weight": -1.0}, {"registration": "demons"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Registered(**options)
    assert bool(Splitting(center_fraction=0.2)(network(), batch, seed=0).loss.isfinite().all())


def test_pairs_are_cut_with_their_operators():
    op = Fourier(torch.rand(4, 4, 1, generator=torch.Generator().manual_seed(0)) < 0.7)
    y = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 4)
    found = Pairs(y, op)[1]
    assert found.y[:, 0, 0].tolist() == [2, 3]
    assert torch.equal(found.op.mask, op.mask[2:])


@pytest.mark.filterwarnings("ignore:.*did not converge:torchimplicit.core.status.ConvergenceWarning")
@pytest.mark.parametrize("changes", ["", "--model.loss.motion known --model.loss.differentiate true"])
def test_the_recipe_trains_tests_and_reports(volume, changes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(volume))
    small = f"--config mri-joint {changes} --trainer.enable_progress_bar false --data.size 16 --data.acceleration 2 "
    small += "--data.smoothness 3 --data.displacement 0.5 --model.network.cell.prior.width 4 "
    short = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.check_val_every_n_epoch 1"
    assert main(f"fit {small} {short} --trainer.log_every_n_steps 1".split()) == 0
    assert main(f"test {small} --trainer.limit_test_batches 1".split()) == 0
    printed = capsys.readouterr().out
    assert 0 < float(re.search(r"test/psnr\W+([\d.]+)", printed)[1]) < 50
    assert "test/left_out" in printed
    if not changes:
        assert main(["report", "runs/mri-joint/version_0/checkpoints/last.ckpt", "--samples", "2"]) == 0
        page = Path("runs/mri-joint/version_0/report.html").read_text()
        assert "Could not be made" not in page
        assert {"pair", "motion found", "true motion", "sample 0", "quality against steps"} <= set(
            re.findall("<h2>(.*?)</h2>", page)
        )
