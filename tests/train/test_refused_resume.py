"""A start that is refused writes nothing, and `last` is the latest run's."""

import os
import signal
from pathlib import Path

import pytest
import torch

from torchimplicit.train import CheckpointError
from torchimplicit.train.command import runs
from torchimplicit.train.command.cli import main
from torchimplicit.train.modules import Classifier

SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--model.network.width", "8"]
LAST = Path("runs/digits/version_0/checkpoints/last.ckpt")


def fit(epochs, *words, recipe="digits"):
    few = ["--trainer.limit_train_batches", "4", "--trainer.log_every_n_steps", "2"]
    return main(["fit", "--config", recipe, "--trainer.max_epochs", str(epochs), *few, *SHORT, *words])


def tree(folder="runs"):
    """Every file with its bytes, and every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


def test_a_refused_resume_writes_nothing(capsys):
    assert fit(3) == 0
    before = tree()
    assert fit(1, "--ckpt_path", "last") == 1
    words = capsys.readouterr().err
    assert f"{LAST}: cannot go on from this checkpoint: You restored a checkpoint with current_epoch=2" in words
    assert tree() == before
    assert fit(3, "--ckpt_path", "last") == 0
    assert tree() == before, "there was nothing left to do"
    assert fit(4, "--ckpt_path", "last") == 0
    content = torch.load(LAST, weights_only=True)
    assert content["epoch"] == 3
    steps = {float(state["step"]) for state in content["optimizer_states"][0]["state"].values()}
    assert steps == {16.0}, "the optimiser went on"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"optimizer_states": [{"state": {}, "param_groups": []}]}, "cannot go on from this checkpoint"),
        ({"optimizer_states": [1]}, "cannot go on from this checkpoint"),
        ({"lr_schedulers": ["cosine"]}, "cannot go on from this checkpoint"),
        ({"loops": {}}, "cannot go on from this checkpoint: KeyError 'fit_loop'"),
        ({"loops": {"fit_loop": {"state_dict": 3}}}, "cannot go on from this checkpoint"),
        ({"callbacks": 7}, "cannot go on from this checkpoint"),
        ({"pytorch-lightning_version": "soon"}, "cannot go on from this checkpoint: Invalid version: 'soon'"),
        ({"loops": None}, "its 'loops' is a NoneType, expected a dict"),
        ({"epoch": "second"}, "its 'epoch' is a str, expected a int"),
        ({"torchimplicit": {"recipe": []}}, "its 'recipe' is a list, expected a str"),
    ],
)
def test_a_state_that_is_none_is_refused_in_words_and_writes_nothing(entries, words, capsys):
    assert fit(1) == 0
    odd = LAST.with_name("odd.ckpt")
    torch.save(torch.load(LAST, weights_only=True) | entries, odd)
    before = tree()
    assert fit(2, "--ckpt_path", str(odd)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("torchimplicit: ")
    assert str(odd) in error
    assert words in error
    assert tree() == before


@pytest.mark.parametrize("recipe", ["mnist", "cifar10", "text", "nuclei-mdeq", "sudoku4"])
def test_a_start_that_fails_leaves_no_folder(recipe, capsys):
    words = ["fit", "--config", recipe, "--data-dir", "nowhere", *SHORT[:4], "--trainer.precision", "32-true"]
    assert main(words) == 1
    assert "looked" in capsys.readouterr().err
    assert not Path("runs").exists()
    Path("runs/mine").mkdir(parents=True)
    assert main(words) == 1
    assert [*Path("runs").rglob("*")] == [Path("runs/mine")]


def test_an_interruption_is_saved_and_said(capsys, monkeypatch):
    def strike(self, *_):
        if self.global_step == 3:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", strike)
        with pytest.raises(SystemExit) as caught:
            fit(1)
    signal.signal(signal.SIGINT, handler)  # Lightning sets it to ignore
    assert caught.value.code == 1
    words = capsys.readouterr().err
    assert f"interrupted: --ckpt_path last goes on from {LAST}" in words
    assert "was raised with message" not in words
    assert torch.load(LAST, weights_only=True)["global_step"] == 3
    assert (LAST.parents[1] / "config.yaml").is_file()
    assert fit(1, "--ckpt_path", "last") == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 4


def test_an_optimiser_that_cannot_be_restored_writes_nothing(capsys, monkeypatch):
    assert fit(1) == 0
    before = tree()

    def fail(*arguments):
        raise RuntimeError("the optimiser does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "load_state_dict", fail)
        assert fit(2, "--ckpt_path", "last") == 1
    assert "cannot go on from this checkpoint: the optimiser does not fit. It is as it was." in capsys.readouterr().err
    assert tree() == before
    assert fit(2, "--ckpt_path", "last") == 0
    resumed = torch.load(LAST, weights_only=True)["state_dict"]
    LAST.write_bytes(before[LAST])
    assert fit(2, "--ckpt_path", str(LAST)) == 0
    again = torch.load(LAST, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in again.items())


def test_an_error_in_training_is_saved_and_raised(monkeypatch, capsys):
    def strike(self, *_):
        if self.global_step == 2:
            raise RuntimeError("struck")

    monkeypatch.setattr(Classifier, "on_train_batch_start", strike)
    with pytest.raises(RuntimeError, match="struck"):
        fit(1)
    saved = torch.load(LAST, weights_only=True)
    assert saved["global_step"] == 2
    assert saved["optimizer_states"][0]["state"]
    assert f"--ckpt_path last goes on from {LAST}" in capsys.readouterr().err


def made(version, *names, age=0.0):
    folder = Path("runs/digits") / version / "checkpoints"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.ckpt").touch()
        os.utime(folder / f"{name}.ckpt", (1e9 - age, 1e9 - age))


def test_last_is_that_of_the_latest_run():
    folder = Path("runs/digits")
    made("version_9", "last", "best")
    made("version_10", "last", age=50)
    assert runs.find("last", folder) == folder / "version_10/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=r"the latest run, .*version_10, has none.*version_9/checkpoints/best"):
        runs.find("best", folder)
    made("version_11")
    with pytest.raises(CheckpointError, match=r"version_11, has none.*path: .*version_10/.*last.ckpt, .*version_9/"):
        runs.find("last", folder)
    assert runs.find("my.ckpt", folder) == Path("my.ckpt")
