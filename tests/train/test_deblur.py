"""The recipe deblur from end to end, on photographs that are made up; its rivals; a denoiser."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchimplicit.imaging import plug_and_play
from torchimplicit.train import load
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
SMALL = ["--data.crop", "20", "--data.evaluated", "20", "--data.corner", "null", "--data.samples", "4"]
SMALL += ["--data.batch_size", "2", "--data.validation", "1", "--data.test", "1"]
UNROLLED = ["--model.network", "UnrolledReconstruction", "--model.network.equilibrium", "RidgeReconstruction"]
DENOISER = ["--model.network", "ImageDenoiser", "--model.network.prior", "GradientStep", "--data.kernel.size", "1"]
DENOISER += ["--model.network.prior.net", "torchimplicit.imaging.DnCNN", "--model.network.prior.net.smooth", "true"]


@pytest.fixture
def words(tmp_path):
    """What every command is told; a folder of three photographs of steps and slopes."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        picture = np.tile(np.linspace(0, 120, 40), (40, 1))
        for row, column in generator.integers(0, 30, (12, 2)):
            picture[row : row + 8, column : column + 8] += 60
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return ["--config", "deblur", "--data-dir", str(folder), *SMALL, *QUIET]


def test_it_trains_resumes_is_tested_and_reported(words, capsys):
    words += ["--data.evaluated", "15", "--model.network.filters", "2", "--model.network.taps", "3"]
    words += ["--model.network.solver.max_steps", "40"]
    assert main(["fit", *words, "--trainer.max_epochs", "1"]) == 0
    assert main(["fit", *words, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    run = Path("runs/deblur/version_0")
    curves = read_curves(run)
    assert len(curves["val/psnr"][1]) == 2
    assert set(curves["train/forward_unconverged"][1]) == set(curves["train/backward_unconverged"][1]) == {0.0}
    assert max(curves["train/forward_steps"][1]) < min(curves["val/forward_steps"][1]), "training is loose"
    assert main(["test", *words]) == 0
    assert "test/ssim" in capsys.readouterr().out
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["report", best, "--data-dir", words[3], "--samples", "1"]) == 0
    page = (run / "report.html").read_text()
    assert "quality against steps" in page
    assert "sample 0" in page
    assert "Could not be made" not in page


@pytest.mark.parametrize(
    "rival",
    [
        [*UNROLLED, "--model.network.steps", "2", "--model.network.equilibrium.preconditioned", "false"],
        ["--model.loss", "Risk", "--model.loss.noise", "0.005"],
        [
            "--data.kernel",
            "MotionKernel",
            "--data.kernel.size",
            "7",
            "--data.kernel.length",
            "6",
            "--data.channels",
            "3",
        ],
    ],
)
def test_rivals_losses_and_blurs_are_options(words, rival):
    assert main(["fit", *words, *rival, "--trainer.max_epochs", "1"]) == 0
    assert np.isfinite(read_curves(Path("runs/deblur/version_0"))["val/psnr"][1]).all()


def test_a_denoiser_is_trained_and_plugged_in(words):
    rate = ["--model.learning_rate", "1e-3"]
    assert main(["fit", *words, *DENOISER, *rate, "--data.noise", "0.05", "--trainer.max_epochs", "1"]) == 0
    assert main(["test", *words, *DENOISER, *rate, "--data.noise", "0.05"]) == 0
    module, data = load("runs/deblur/version_0/checkpoints/best.ckpt")
    data.data_dir = words[3]
    y, op, *_ = next(iter(data.test_dataloader()))
    with torch.no_grad():
        solution = plug_and_play(y, op, module.network.prior, on_failure="ignore")
    assert solution.value.shape == y.shape


def test_too_small_photographs_are_refused_before_anything_is_written(words, capsys):
    assert main(["fit", *words, "--data.crop", "50"]) == 1
    assert "BlurredPhotographs(crop=50): got 40 x 40 pixels in" in capsys.readouterr().err
    assert not Path("runs").exists()
