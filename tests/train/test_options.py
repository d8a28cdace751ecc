"""What the command says of a recipe's options, of mistakes in them, and what a seed and a logger do."""

from pathlib import Path

import pytest
import torch

from torchimplicit.train import load
from torchimplicit.train.command import catalogue
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.command.options import groups_of
from torchimplicit.train.command.runs import without_trace

SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--model.network.width", "8"]
FEW = ["--trainer.limit_train_batches", "4", "--trainer.log_every_n_steps", "2", *SHORT]


def test_the_help_of_a_recipe_lists_its_options_with_types_values_and_words(capsys):
    assert main(["fit", "--config", "images", "--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "--model.learning_rate float = 0.003\n      of AdamW at its highest" in said
    assert "--model.network.solver.rtol float = 0.03\n      relative tolerance" in said, "said by the base class"
    assert "--model.network.classes int from the data" in said
    assert "--data.path str required" in said
    assert "--trainer.max_epochs = 30" in said


@pytest.mark.parametrize("name", catalogue.shipped())
def test_every_option_of_every_recipe_has_words(name):
    groups = groups_of(catalogue.shipped()[name])
    assert {"model", "data"} <= {group.place for group in groups}
    options = [option for group in groups for option in group.options]
    assert len({option.name for option in options}) == len(options)
    assert [option.name for option in options if not option.words] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.netwrok.solver Newton", "netwrok.solver: no such option. Did you mean --model.network.solver?"),
        ("--model.network.solver.rtoll 1", "Did you mean --model.network.solver.rtol?"),
        ("--mdoel.learning_rate 1", "Did you mean --model.learning_rate?"),
        ("--data.batchsize 3", "--data.batchsize: no such option. Did you mean --data.batch_size?"),
        ("--max_epochs 3", "Did you mean --trainer.max_epochs?"),
        ("--trainer.logger.nme x", "--trainer.logger.nme: no such option."),
        ("--model.network.solver Newtn", "Newtn: no such class. Did you mean Newton? Expected one of Anderson,"),
        ("--data Digit", "--data Digit: no such class. Did you mean Digits?"),
        ("--trainer.precision bf16-mixd", "bf16-mixd: Did you mean bf16-mixed? Expected one of 64, 32, 16,"),
        ("--logger tensorbord", "--logger tensorbord: Did you mean tensorboard? Expected one of tensorboard, csv,"),
        ("--model.learning_rate abc", "--model.learning_rate abc: expected float."),
        ("--model.network.solver.rtol abc", "--model.network.solver.rtol abc: expected float."),
        ("--trainer.max_epochs x", "--trainer.max_epochs x: expected int."),
        ("--config images", "--data.path must be given: --data.path PHOTOS"),
    ],
)
def test_mistakes_are_answered_in_a_line_or_two(words, said, capsys):
    recipe = [] if "--config" in words else ["--config", "digits"]
    assert main(["fit", *recipe, *words.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[0]
    assert lines[0].startswith("torchimplicit: --")
    assert len(lines) <= 2
    assert not Path("runs").exists()


def test_files_behind_a_recipe_are_sent_behind_a_checkpoint(capsys):
    assert main(["predict", "--config", "digits", "seven.png"]) == 2
    assert "seven.png: expected options" in (said := capsys.readouterr().err)
    assert "torchimplicit predict CKPT FILE" in said


def test_a_recipe_of_a_similar_name_is_proposed(capsys):
    assert main(["fit", "--config", "mnist-cnov"]) == 1
    assert "neither a recipe nor a file. Did you mean mnist-conv?" in capsys.readouterr().err


def test_recipes_fit_into_eighty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def weights_and_batches(version):
    module, data = load(f"runs/digits/version_{version}/checkpoints/best.ckpt")
    data.setup()
    first = torch.cat([p.flatten() for p in module.parameters()])
    return first, data.splits.train.labels, next(iter(data.train_dataloader()))[1], data.splits.test.labels


def test_one_seed_moves_all():
    words = ["fit", "--config", "digits", "--trainer.max_epochs", "1", "--model.learning_rate", "0", *FEW]
    for seed in ("7", "8"):
        assert main([*words, "--seed_everything", seed]) == 0
    assert main([*words, "--seed_everything", "8", "--data.seed", "7"]) == 0
    first, other, mixed = (weights_and_batches(version) for version in range(3))
    assert [torch.equal(*pair) for pair in zip(first, other, strict=True)] == [False, False, False, True]
    assert torch.equal(mixed[0], other[0])
    assert torch.equal(mixed[1], first[1]), "the data has a seed of its own where one is given"
    assert torch.equal(mixed[2], first[2])


def test_a_resumed_run_keeps_the_split_of_its_seed():
    words = ["fit", "--config", "digits", *FEW]
    assert main([*words, "--trainer.max_epochs", "1", "--seed_everything", "7"]) == 0
    before = weights_and_batches(0)
    assert main([*words, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    assert torch.equal(weights_and_batches(0)[1], before[1])


def test_curves_in_csv_go_on_when_a_run_does(capsys):
    words = ["fit", "--config", "digits", "--logger", "csv", *FEW]
    assert main([*words, "--trainer.max_epochs", "3"]) == 0
    run = Path("runs/digits/version_0")
    assert not list(run.glob("events*"))
    assert read_curves(run)["train/loss"][0] == [1, 3, 5, 7, 9, 11]
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main([*words, "--trainer.max_epochs", "1", "--ckpt_path", "last"]) == 1, "refused"
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert main([*words, "--trainer.max_epochs", "4", "--ckpt_path", "last"]) == 0
    curves = read_curves(run)
    assert curves["train/loss"][0] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert len(curves["val/accuracy"][0]) == 4
    assert main(["report", str(run / "checkpoints" / "best.ckpt"), "--samples", "4"]) == 0
    assert "No log in" not in (run / "report.html").read_text()


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_a_start_that_fails_leaves_no_folder(logger, capsys):
    assert main(["fit", "--config", "digits", "--logger", logger, "--data.batch_size", "0", *FEW]) == 1
    assert not Path("runs").exists()
    run = Path("runs/digits/version_0")
    with without_trace(run, begun=lambda: False):
        run.mkdir(parents=True)
        (run / "hparams.yaml").write_text("{}")
    assert not Path("runs").exists()


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_says_so(kind, capsys, monkeypatch):
    monkeypatch.setattr("torchimplicit.train.command.loggers.find_spec", lambda name: None)
    assert main(["fit", "--config", "digits", "--logger", kind, *FEW]) == 1
    assert f"the package is not installed. Try pip install {kind}, or --logger csv" in capsys.readouterr().err
    assert not Path("runs").exists()
