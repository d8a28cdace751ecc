import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from torchimplicit.train.command import catalogue
from torchimplicit.train.command.cli import main

SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
FIT = ["fit", "--config", "digits", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4", *SHORT]
FIT += ["--trainer.log_every_n_steps", "2", "--model.network.width", "8"]
WIDTH = ["--model.network.width", "8"]


def test_help_is_quick():
    code = (
        "import sys; from torchimplicit.train.command.cli import main; main(['--help']); main(['recipes']); "
        "heavy = {'lightning', 'jsonargparse', 'sklearn', 'matplotlib', 'datasets'}; "
        "sys.exit(bool(heavy & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: torchimplicit" in done.stdout
    assert "digits" in done.stdout
    assert "mnist" in done.stdout


def test_every_recipe_says_what_it_does_and_needs():
    assert {"digits", "mnist"} <= catalogue.shipped().keys()
    for path in catalogue.shipped().values():
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ")
        assert lines[1].startswith("# data: ")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, ""),
        (["nonsense"], 2, "no command 'nonsense'; expected one of demo, fit"),
        (["fit"], 1, "fit: which recipe? Try torchimplicit fit --config NAME (cifar10, "),
        (
            ["fit", "--config", "imagenet"],
            1,
            "--config imagenet: neither a recipe nor a file. Did you mean images? Expected one of cifar10, ",
        ),
        (["test", "--config", "digits"], 1, "--ckpt_path best: found none in runs/digits"),
        (["fit", "--config", "digits", "--ckpt_path", "last"], 1, "--ckpt_path last: found none"),
        (["fit", "--config", "digits", "--ckpt_path", "gone.ckpt"], 1, "gone.ckpt: no such checkpoint"),
        (["fit", "--config", "digits", "--model.network.solver.window", "0"], 1, "Anderson(window=0): expected"),
        (["report", "gone.ckpt"], 1, "gone.ckpt: no such checkpoint"),
        (["fit", "--config", "mnist", "--data-dir", "/nowhere", *SHORT], 1, "MNIST: looked in /nowhere"),
        ([*FIT, "--data.batch_size", "0"], 1, "batch_size should be a positive integer"),
        ([*FIT, "--trainer.logger.save_dir", __file__], 1, "[Errno"),
    ],
)
def test_mistakes_end_in_one_line(capsys, words, status, message, monkeypatch):
    monkeypatch.setenv("TORCHIMPLICIT_DATA", "")  # put back afterwards, as --data-dir sets it
    assert main(words) == status
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("torchimplicit: ")]
    assert "\n".join(error).startswith(f"torchimplicit: {message}" if message else "")


def test_a_run_that_was_never_validated_is_told_to_have_its_last_checkpoint(capsys):
    words = ["--config", "digits-score", "--trainer.enable_progress_bar", "false"]
    assert (
        main(
            [
                "fit",
                *words,
                "--trainer.max_epochs",
                "1",
                "--trainer.limit_train_batches",
                "1",
                "--trainer.log_every_n_steps",
                "1",
            ]
        )
        == 0
    )
    assert Path("runs/digits-score/version_0/checkpoints/last.ckpt").is_file()
    assert main(["test", *words]) == 1
    assert "never been validated. Try --ckpt_path last" in capsys.readouterr().err


@pytest.mark.parametrize("name", catalogue.shipped())
def test_a_recipe_that_validates_now_and_then_keeps_its_last_epoch_all_the_same(name):
    settings = yaml.safe_load(catalogue.shipped()[name].read_text())["trainer"]
    last = [each for each in settings["callbacks"] if each.get("init_args", {}).get("filename") == "last"]
    assert last, "expected a checkpoint to go on from"
    every = settings.get("check_val_every_n_epoch", 1)
    assert every == 1 or last[0]["init_args"].get("save_on_train_epoch_end")


def test_fit_resume_test_predict_report(capsys):
    assert main(FIT) == 0
    run = Path("runs/digits/version_0")
    assert (run / "config.yaml").is_file()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]

    resumed = [word if word != "1" else "2" for word in FIT]
    assert main([*resumed, "--ckpt_path", "last"]) == 0
    assert [path.name for path in Path("runs/digits").iterdir()] == ["version_0"], "a resumed run goes on in its folder"

    worse = [*resumed, "--model.learning_rate", "0.0", "--ckpt_path", "last"]
    assert main([word if word != "2" else "3" for word in worse]) == 0
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    assert last["epoch"] == 2, "last is the last epoch, whether or not it was the best"

    capsys.readouterr()
    assert main(["test", "--config", "digits", *WIDTH, *SHORT]) == 0
    printed = capsys.readouterr().out
    assert "weights: runs/digits/version_0/checkpoints/best.ckpt" in printed
    assert "test/accuracy" in printed
    assert "test/forward_steps" in printed

    assert main(["predict", "--config", "digits", *WIDTH, *SHORT]) == 0
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == list(range(360))
    assert all(0 <= int(row["class"]) < 10 and 0 < float(row["probability"]) <= 1 for row in rows)

    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt"], "and keeps two checkpoints"

    assert main(["test", "--config", "digits", *SHORT]) == 1, "another width"
    assert "tensors do not fit DigitsNetwork" in capsys.readouterr().err
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["test", "--config", "mnist", "--ckpt_path", best, *SHORT]) == 1, "another recipe"
    assert "got a checkpoint of recipe 'digits'" in capsys.readouterr().err

    assert main(["report", best, "--samples", "8"]) == 0
    page = (run / "report.html").read_text()
    parts = ("convergence", "spectral radius", "certificate", "gradient", "memory", "saved graph")
    for heading in ("Test split", "Training", *parts):
        assert heading in page
    assert "Could not be made" not in page
    assert "locally unique (I - J regular)" in page
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page, "the file is on its own"


def test_settings_on_the_command_line_reach_the_layer(capsys):
    assert main([*FIT, "--model.network.solver", "Newton"]) == 0
    config = Path("runs/digits/version_0/config.yaml").read_text()
    assert "Newton" in config
    assert "Anderson" not in config


def test_demo(capsys, monkeypatch):
    assert main(["demo", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    for words in ("test accuracy:", "samples converged", "torchimplicit report runs/digits", "demo.png"):
        assert words in printed
    assert Path("runs/digits/version_0/demo.png").is_file()
