"""The command `reconstruct`: every method and kind of file, what it writes, and what it says of its answers."""

import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.train.kspace import SIZE, coils, fastmri, heads, kspace
from torchimplicit import imaging
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.command.methods import NAMES

DATA = Path(os.environ.get("TORCHIMPLICIT_DATA", "nowhere")) / "mri"
MASK = imaging.cartesian(SIZE[0], 2, center_fraction=0.3).mT


@pytest.fixture
def scan(tmp_path):
    """A volume of two slices, with maps beside it."""
    np.savez(tmp_path / "scan.npz", kspace=(kspace() * MASK).numpy(), maps=coils().numpy())
    return tmp_path / "scan.npz"


def run(*words):
    return main(["reconstruct", *map(str, words)])


@pytest.mark.parametrize("method", NAMES)
def test_every_baseline_reconstructs(scan, tmp_path, method, capsys):
    assert run(scan, "--method", method, "--out", tmp_path / "image.npy") == 0
    images = torch.from_numpy(np.load(tmp_path / "image.npy"))
    assert images.shape == (2, *SIZE)
    off = float((images - heads()).abs().square().mean().sqrt() / heads().abs().square().mean().sqrt())
    assert off < (0.5 if method == "zero-filled" else 0.1)
    said = capsys.readouterr().out
    expected = "nothing to solve" if method == "zero-filled" else r"converged, \d+, \d\.\de-\d+, "
    assert len(re.findall(rf"slice [01]: {expected}", said)) == 2
    assert ("not estimated" in said) == (method in ("cg-sense", "tv", "wavelet"))


def test_the_distance_to_the_solution_is_told_and_covers_the_true_one(scan, tmp_path, capsys):
    """The reported distance is relative to the zero-filled image's largest magnitude."""
    for name, rtol in (("loose", 1e-2), ("exact", 1e-6)):
        run(scan, "--rtol", rtol, "--max-steps", 3000, "--out", tmp_path / f"{name}.npy", "--slices", "0")
    loose, exact = (torch.from_numpy(np.load(tmp_path / f"{name}.npy")) for name in ("loose", "exact"))
    zero = imaging.zero_filled(kspace(1) * MASK, imaging.Sense(coils(), MASK)).abs().max()
    true = float(torch.view_as_real((loose - exact) / zero).square().mean().sqrt())
    told = float(re.findall(r"slice 0: converged, \d+, \S+, (\S+),", capsys.readouterr().out)[0])
    assert true / 2 < told < 10 * true


def test_images_are_written_as_their_names_say(scan, tmp_path, capsys):
    outs = [tmp_path / f"image{suffix}" for suffix in (".npy", ".nii", ".nii.gz", ".png")]
    words = [word for out in outs for word in ("--out", out)]
    assert run(scan, "--method", "cg-sense", *words, "--report", tmp_path / "report.html") == 0
    images = np.abs(np.load(outs[0]))
    for path in outs[1:3]:
        np.testing.assert_allclose(nibabel.load(path).get_fdata(), images.transpose(1, 2, 0), rtol=1e-5)
    for i, image in enumerate(images):
        shown = imaging.read_png(tmp_path / f"image-{i}.png")[0].numpy()
        np.testing.assert_allclose(shown, image / images.max(), atol=0.5 / 255 + 1e-6)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<td>converged</td>") == 2
    assert "2 slices, 3 coils, 24 x 20, 50.0% of k-space sampled; maps as given; method cg-sense" in page
    assert "data:image/png;base64" in page
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_slices_are_chosen(scan, tmp_path):
    for words, count in (("1", 1), ("1:", 1), (":2", 2), ("0:2", 2)):
        assert run(scan, "--method", "zero-filled", "--slices", words, "--out", tmp_path / "image.npy") == 0
        assert len(np.load(tmp_path / "image.npy")) == count


def test_what_did_not_converge_is_written_said_and_an_error(scan, tmp_path, capsys):
    words = ("--max-steps", "3", "--out", tmp_path / "image.npy", "--report", tmp_path / "report.html")
    assert run(scan, *words) == 1
    assert np.isfinite(np.load(tmp_path / "image.npy")).all()
    said = capsys.readouterr().err
    assert "2 of 2 slices did not converge: 0 (max_steps" in said
    assert "Try more --max-steps" in said
    assert (tmp_path / "report.html").read_text().count("max_steps") == 2


def test_maps_are_estimated_where_there_are_none(tmp_path, capsys):
    size = 40
    rows = torch.linspace(-1, 1, size)
    maps = torch.stack([1 + 0.5 * rows[:, None] + 0 * rows, 1 - 0.5 * rows + 0 * rows[:, None]]).to(torch.complex64)
    maps = maps / maps.norm(dim=0)
    head = (rows[:, None] ** 2 + rows**2 < 0.7).float()
    mask = imaging.cartesian(size, 2, center_fraction=0.4).mT
    np.save(tmp_path / "scan.npy", (imaging.fftc(maps * head) * mask).numpy())
    words = ("--method", "cg-sense", "--out", tmp_path / "image.npy", "--report", tmp_path / "report.html")
    assert run(tmp_path / "scan.npy", *words) == 0
    image = np.abs(np.load(tmp_path / "image.npy"))[0]
    assert np.sqrt(np.mean((image - head.numpy()) ** 2)) < 0.1
    assert "maps estimated" in (tmp_path / "report.html").read_text()
    np.save(tmp_path / "few.npy", (imaging.fftc(maps * head) * imaging.cartesian(size, 8, 0.1).mT).numpy())
    assert run(tmp_path / "few.npy") == 1
    assert "no maps are given, and none can be estimated" in capsys.readouterr().err


def test_fastmri_is_reconstructed(tmp_path):
    mask = imaging.cartesian(SIZE[1], 2, center_fraction=0.3)
    path = fastmri(tmp_path / "volume.h5", kspace=(kspace() * mask).numpy(), mask=mask[0])
    np.save(tmp_path / "maps.npy", coils().numpy())
    assert run(path, "--maps", tmp_path / "maps.npy", "--method", "cg-sense", "--out", tmp_path / "image.npy") == 0
    off = torch.from_numpy(np.load(tmp_path / "image.npy")) - heads()
    assert float(off.abs().square().mean() / heads().abs().square().mean()) < 0.02


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "nonsense"), "neither a method nor a checkpoint. Expected one of zero-filled, cg-sense"),
        (("--method", "absent.ckpt"), "no such checkpoint"),
        (("--method", "zero-filled", "--weight", "1"), "takes no --weight"),
        (("--weight", "-1"), "expected a finite number > 0"),
        (("--rtol", "-1"), "rtol"),
        (("--max-steps", "0"), "max_steps"),
        (("--out", "image.jpg"), "expected a name that ends in .npy, .nii"),
        (("--maps", "absent.npy"), "no such file. Expected coil sensitivities"),
        (("--slices", "7:9"), "leaves none of the 2 slices"),
    ],
)
def test_bad_words_are_refused(scan, words, said, capsys):
    assert run(scan, *words) == 1
    assert said in capsys.readouterr().err


def test_unknown_options_end_with_two(scan):
    with pytest.raises(SystemExit) as ended:
        run(scan, "--nonsense")
    assert ended.value.code == 2


@pytest.mark.skipif(not DATA.exists(), reason="TORCHIMPLICIT_DATA has no folder mri")
def test_the_real_scan_is_reconstructed(tmp_path):
    """Its own k-space, of an eighth of the points, by CG-SENSE, against the reference made of it by others."""
    path, maps = DATA / "cartesian_ksp_8coil_brain.npy", DATA / "brain_8coil_espirit.npz"
    assert run(path, "--maps", maps, "--method", "cg-sense", "--weight", 1e-2, "--out", tmp_path / "image.npy") == 0
    image = np.load(tmp_path / "image.npy")[0]
    reference = np.load(maps)["recon_sense"]
    assert np.linalg.norm(np.abs(image) - np.abs(reference)) < 0.2 * np.linalg.norm(reference)


SMALL = (
    *("--data.samples", "6", "--data.slab", "12", "--data.acceleration", "2", "--data.noise", "0.001"),
    *("--data.center_fraction", "0.25", "--model.loss.center_fraction", "0.25", "--data.masks", "1"),
    *("--model.network.moments", "1", "--model.network.levels", "2", "--model.network.solver.rtol", "1e-4"),
    *("--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "3"),
)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_scan_is_trained_on_and_reconstructed_by_what_was_learned(scan, tmp_path, monkeypatch, capsys):
    """Nobody has the truth: the archive holds k-space and maps alone, and the loss is that of lines held out."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "full.npz", kspace=kspace(1).numpy(), maps=coils().numpy())
    assert main(["fit", "--config", "mri", *SMALL, "--data-dir", str(tmp_path / "full.npz")]) == 0
    (checkpoint,) = tmp_path.glob("runs/mri/version_0/checkpoints/last.ckpt")
    curves = read_curves(tmp_path / "runs" / "mri" / "version_0")
    assert {"train/forward_unconverged", "train/backward_unconverged", "val/loss", "val/psnr"} <= curves.keys()
    capsys.readouterr()
    words = ("--method", checkpoint, "--out", tmp_path / "image.npy", "--report", tmp_path / "report.html")
    assert run(scan, *words) == 0
    assert len(re.findall(r"slice [01]: converged, \d+, \S+, \d\.\de-\d+", capsys.readouterr().out)) == 2
    images = torch.from_numpy(np.load(tmp_path / "image.npy"))
    assert float((images - heads()).abs().square().mean() / heads().abs().square().mean()) < 0.02
    assert run(scan, "--method", checkpoint, "--weight", "1") == 1
    assert "a checkpoint has learned its own" in capsys.readouterr().err
    assert run(scan, "--method", checkpoint, "--max-steps", "2") == 1
