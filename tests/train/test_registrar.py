"""Registration that trains: pairs of labelled volumes from files, maps of labels, the module, and its recipe."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

import torchimplicit as ti
from torchimplicit.imaging import Image, register, write_nifti
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import DataError, Hippocampus, ImagePairs, Volume, read_volumes
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Registrar
from torchimplicit.train.modules.registrar import turned
from torchimplicit.train.networks import LabelMaps

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
COUNTS = {"validation": 2, "test": 2, "validation_pairs": 2, "test_pairs": 2}
SIZE = (12, 14, 11)


def volume(number):
    """A ball in two halves, on a slope, both a little elsewhere in every subject: bytes, and labels."""
    shift = 0.8 * np.sin(number + np.arange(3))
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SIZE), indexing="ij")
    radius = np.sqrt((x - shift[0]) ** 2 + (y - shift[1]) ** 2 + (z - shift[2]) ** 2)
    labels = (radius < 4) * (1 + (y > shift[1]))
    image = 200 / (1 + np.exp(2 * (radius - 4))) + 20 * (labels == 1) + x
    return (20 + image).astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture
def archive(tmp_path):
    """A folder of data sets with `hippocampus.npz`: eight subjects."""
    path = tmp_path / "sets" / "hippocampus" / "hippocampus.npz"
    path.parent.mkdir(parents=True)
    names = [f"subject_{number}" for number in range(8)]
    arrays = {f"{kind}_{n}": x for i, n in enumerate(names) for kind, x in zip(("img", "seg"), volume(i), strict=True)}
    np.savez(path, names=np.array(names), **arrays)
    return path.parents[1]


@pytest.fixture
def folders(tmp_path):
    """The same as NIfTI files, stored from right to left."""
    for number in range(8):
        for folder, x in zip(("imagesTr", "labelsTr"), volume(number), strict=True):
            path = tmp_path / "task" / folder / f"subject_{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            affine = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
            write_nifti(path, Image(torch.from_numpy(x).flip(0).contiguous(), affine))
    return tmp_path / "task"


def network(**options):
    demons = register.Demons(
        levels=((1, 1.2, 1.0),),
        solver=ti.Anderson(window=5, rtol=1e-2, max_steps=40),
        interpolation="linear",
        squarings=2,
    )
    return register.LearnedDemons(LabelMaps(2, width=4), demons, on_failure="ignore", **options)


def test_both_kinds_of_files_are_the_same_volumes(archive, folders, monkeypatch):
    one, other = read_volumes(archive), read_volumes(folders)
    assert len(one) == len(other) == 8
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.labels, b.labels)
        assert a.spacing == b.spacing == (1.0, 1.0, 1.0)
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(archive))
    data = Hippocampus(**COUNTS)
    data.setup()
    assert data.labels == [1, 2]
    assert [len(split) for split in data.splits] == [2, 2, 2]
    assert data.splits.test.images.shape == (2, 1, 16, 16, 16)


def test_no_subject_is_in_two_splits(archive):
    data = Hippocampus(str(archive), rounds=3, **COUNTS)
    data.setup()
    seen = [{image.numpy().tobytes() for image in split.images} for split in data.splits]
    assert [len(each) for each in seen] == [4, 2, 2]
    assert len(set.union(*seen)) == 8
    assert sorted(number for pair in data.splits.train.pairs for number in pair) == sorted(3 * list(range(4)))


def test_pairs_come_with_their_affine_registration(archive):
    data = Hippocampus(str(archive), **COUNTS)
    data.setup()
    batch = data.splits.test.__getitems__([1, 0])
    alone = register.align(batch.fixed[:1], batch.moving[:1], register.Affine()).transform.matrix
    torch.testing.assert_close(batch.matrix[:1], alone, rtol=0, atol=1e-5)
    assert torch.equal(data.splits.test[1].matrix, batch.matrix[:1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image, labels: (image * 0, labels), "constant"),
        (lambda image, labels: (image[1:], labels), "one size"),
        (lambda image, labels: (image, labels * 0), "labels"),
        (lambda image, labels: (image, labels * 0.5), "labels"),
    ],
)
def test_a_broken_volume_is_named(tmp_path, spoil, words):
    image, labels = spoil(*volume(0))
    np.savez(tmp_path / "hippocampus.npz", names=np.array(["odd"]), img_odd=image, seg_odd=labels)
    with pytest.raises(DataError, match=f"odd: .*{words}"):
        read_volumes(tmp_path)


def test_what_is_missing_is_said(tmp_path, archive):
    with pytest.raises(DataError, match="imagesTr"):
        read_volumes(tmp_path / "nothing")
    with pytest.raises(DataError, match="no folder to look in"):
        read_volumes(None)
    with pytest.raises(DataError, match="8 volumes"):
        Hippocampus(str(archive), validation=4, test=4).setup()
    x = torch.rand(4, 4, 4)
    thin = [Volume("a", x, x.long() + 1, (1.0, 1.0, 1.0)), Volume("b", x, x.long() + 1, (1.0, 1.0, 3.0))]
    with pytest.raises(DataError, match="b has voxels"):
        ImagePairs(thin, [(0, 1)])


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 13, 10)])
def test_label_maps_are_probabilities_of_any_size_and_of_each_sample_alone(size):
    net = LabelMaps(2, width=4).double()
    x = torch.rand(3, 1, *size, dtype=torch.float64)
    maps = net(x).detach()
    assert maps.shape == (3, 2, *size)
    assert float(maps.min()) > 0
    assert float(maps.sum(1).max()) < 1
    torch.testing.assert_close(net(x[1:2]).detach(), maps[1:2])
    with pytest.raises(ValueError, match="LabelMaps"):
        net(x[:, 0])


def test_what_is_turned_keeps_image_and_labels_together():
    image, labels = (torch.from_numpy(each)[None, None] for each in volume(2))
    shown, before = (labels > 0).float(), labels > 0
    image, labels = turned(shown, labels.long(), 0.2)
    apart, moved = (((image > 0.5) != each).float().mean().item() for each in (labels > 0, before))
    assert apart < 0.3 * moved


def test_registration_trains_features_step_and_weight(archive):
    data = Hippocampus(str(archive), **COUNTS)
    module = Registrar(network(), label_weight=0, learning_rate=1e-2)
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, data)
    changed = [name for name, each in module.named_parameters() if not torch.equal(each, before[name])]
    assert changed == list(before)
    found = trainer.test(module, data, verbose=False)[0]
    assert found["test/dice"] > 0.5
    assert found["test/folds"] == found["test/left_out"] == 0
    pictures = module.pictures(data.splits.test.__getitems__([0]))
    assert list(pictures) == ["overlap", "pair 0, converged", "deformation of pair 0"]


def test_labels_alone_come_first(archive):
    data = Hippocampus(str(archive), **COUNTS)
    module = Registrar(network(), label_epochs=1, learning_rate=1e-2)
    Trainer(max_epochs=1, limit_val_batches=0, **QUIET).fit(module, data)
    assert module.network.report is None


def test_a_pair_that_does_not_converge_teaches_nothing(archive):
    data = Hippocampus(str(archive), **COUNTS)
    data.setup()
    batch = data.splits.train.__getitems__([0, 1])
    module = Registrar(network(), label_weight=0)
    module.labels = [1, 2]
    alone = module.evaluate("train", data.splits.train.__getitems__([0]))
    broken = batch._replace(moving=batch.moving.clone())
    broken.moving[1] = 0.0
    module.metrics["train_metrics"].reset()
    loss = module.evaluate("train", broken)
    torch.testing.assert_close(loss, alone, rtol=1e-3, atol=1e-3)
    loss.backward()
    assert all(bool(each.grad.isfinite().all()) for each in module.parameters() if each.grad is not None)
    assert float(module.metrics["train_metrics"]["left_out"].compute()) == 0.5


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UsageError, match="logits"):
        Registrar(register.LearnedDemons(nn.Conv3d(1, 2, 3, padding=1)))
    with pytest.raises(ValueError, match="fold_weight"):
        Registrar(network(), fold_weight=-1.0)


def test_data_of_other_labels_are_refused(archive):
    module = Registrar(register.LearnedDemons(LabelMaps(3, width=4)))
    with pytest.raises(UsageError, match=r"labels \[1, 2\]"):
        Trainer(max_epochs=1, **QUIET).fit(module, Hippocampus(str(archive), **COUNTS))


def test_the_recipe_runs(archive, tmp_path):
    small = [f"--data.{name}={value}" for name, value in COUNTS.items()]
    small += ["--model.network.features.width=4", "--model.label_epochs=1", "--trainer.max_epochs=2"]
    small += [
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
    ]
    assert not main(["fit", "--config", "register-hippocampus", "--data-dir", str(archive), *small])
    run = tmp_path / "runs" / "register-hippocampus" / "version_0"
    assert not main(["report", str(run / "checkpoints" / "best.ckpt"), "--data-dir", str(archive)])
    page = (run / "report.html").read_text()
    assert "test/dice" in page
    assert "deformation of pair 0" in page
    assert "Could not be made" not in page
