"""A start that is refused writes nothing, and `last` is the latest run's."""

import os
from pathlib import Path

import pytest
import torch

from torchimplicit.train import CheckpointError, runs
from torchimplicit.train.cli import main
from torchimplicit.train.modules import Classifier

FIT = ["fit", "--config", "digits", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
FIT += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--model.network.width", "8"]
FIT += ["--trainer.log_every_n_steps", "2"]
RUN = Path("runs/digits/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def content():
    return {path: path.read_bytes() for path in sorted(Path("runs").rglob("*")) if path.is_file()}


def weights(path=LAST):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_refused_resume_writes_nothing_and_the_next_goes_on_as_it_would_have(capsys, monkeypatch):
    assert main([*FIT, "--trainer.max_epochs", "3"]) == 0
    before = content()
    assert main([*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "1"]) == 1
    assert "max_epochs" in capsys.readouterr().err
    assert {path: content()[path] for path in before} == before

    def fail(*arguments):
        raise RuntimeError("the optimiser does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "load_state_dict", fail)
        with pytest.raises(RuntimeError, match="does not fit"):
            main([*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert {path: content()[path] for path in before} == before
    assert main([*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "4"]) == 0
    resumed = weights()
    LAST.write_bytes(before[LAST])
    assert main([*FIT, "--ckpt_path", str(LAST), "--trainer.max_epochs", "4"]) == 0
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights().items())


def test_an_interruption_in_training_is_saved_all_the_same(monkeypatch):
    def strike(module, batch, batch_idx):
        if module.global_step == 2:
            raise RuntimeError("struck")
        return training_step(module, batch, batch_idx)

    training_step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", strike)
    with pytest.raises(RuntimeError, match="struck"):
        main([*FIT, "--trainer.max_epochs", "2"])
    saved = torch.load(LAST, weights_only=True)
    assert saved["global_step"] == 2
    assert saved["optimizer_states"][0]["state"]
    assert (RUN / "config.yaml").is_file()


def test_a_failed_start_leaves_no_folder(monkeypatch):
    monkeypatch.setenv("TORCHIMPLICIT_DATA", "")  # put back afterwards, as --data-dir sets it
    assert main(["fit", "--config", "mnist", "--data-dir", "/nowhere", "--trainer.accelerator", "cpu"]) == 1
    assert not list(Path("runs/mnist").iterdir())


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
