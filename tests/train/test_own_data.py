"""From a user's own files to a trained model and its predictions, by the command alone."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchimplicit.core.status import ConvergenceWarning
from torchimplicit.train import load
from torchimplicit.train.command.cli import main

SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]


def table(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def photos(folder, size=(24, 20)):
    for kind, colour in (("reds", (200, 40, 40)), ("blues", (40, 40, 200))):
        (folder / kind).mkdir(parents=True)
        for i in range(10):
            noise = np.random.default_rng(i).integers(-30, 30, (size[1], size[0] + i, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / kind / f"{i}.png")


def test_pictures(tmp_path, capsys):
    photos(tmp_path / "photos")
    words = ["--config", "images", "--data.path", "photos", "--data.size", "16", "--model.network.channels", "8"]
    words += ["--model.network.inner", "8", "--model.network.groups", "2", *SHORT]
    words += ["--data.batch_size", "4", "--model.warmup_steps", "0"]
    assert main(["fit", *words, "--trainer.max_epochs", "8"]) == 0
    assert "2 classes (blues, reds)" in capsys.readouterr().out
    best = "runs/images/version_0/checkpoints/best.ckpt"
    module, data = load(best)
    assert module.network.classes == module.classes == data.classes == 2
    assert data.size == (16, 16), "the checkpoint says how pictures are taken"

    (tmp_path / "torn.png").write_bytes(b"no picture")
    files = ["photos/reds/0.png", "torn.png", "photos/blues"]
    assert main(["predict", best, *files, "--out", "out/predictions.csv"]) == 1
    assert "cannot read torn.png" in capsys.readouterr().err
    found = table("out/predictions.csv")
    assert [row["file"] for row in found] == [
        "photos/reds/0.png",
        "torn.png",
        *(f"photos/blues/{i}.png" for i in range(10)),
    ]
    assert found[1]["verdict"] == "unreadable"
    assert found[1]["class"] == ""
    good = [row for row in found if row["verdict"] == "converged"]
    assert len(good) == 11
    assert [row["class"] for row in good] == ["reds"] + ["blues"] * 10
    assert all(
        0.5 < float(row["probability"]) <= 1 and float(row["residual"]) < 1 and int(row["steps"]) for row in good
    )

    assert main(["predict", best, "photos/reds"]) == 0
    printed = capsys.readouterr().out
    assert "photos/reds/9.png" in printed
    assert max(map(len, printed.splitlines())) <= 80

    assert main(["test", *words]) == 0
    assert main(["test", *words, "--data.labels", "[blues,reds,greens]"]) == 1
    assert "tensors do not fit ConvolutionalDEQ" in capsys.readouterr().err
    assert main(["fit", *words, "--model.network.classes", "5"]) == 1
    assert "--model.network.classes 5: the data has 2" in capsys.readouterr().err


def test_what_did_not_converge_is_told_and_ends_in_one(tmp_path, capsys):
    photos(tmp_path / "photos")
    words = ["fit", "--config", "images", "--data.path", "photos", "--data.size", "16", "--trainer.max_epochs", "1"]
    words += ["--model.network.channels", "8", "--model.network.inner", "8", "--model.network.solver.rtol", "1e-7"]
    with pytest.warns(ConvergenceWarning, match="100 % of its forward"):
        assert main([*words, "--model.network.solver.max_steps", "2", *SHORT]) == 0
    best = "runs/images/version_0/checkpoints/best.ckpt"
    capsys.readouterr()
    assert main(["predict", best, "photos/reds", "--out", "predictions.csv"]) == 1
    said = capsys.readouterr()
    assert "10 of 10 answers did not converge: photos/reds/0.png (max_steps, residual" in said.err
    assert {row["verdict"] for row in table("predictions.csv")} == {"max_steps"}


def test_tables(tmp_path, capsys):
    draw = np.random.default_rng(0)
    lines = ["length,width,area,kind"]
    for _ in range(60):
        a, b = draw.uniform(0, 1, 2)
        lines.append(f"{a:.3f},{b:.3f},{a * b:.4f},{'long' if a > b else 'wide'}")
    Path("shapes.csv").write_text("\n".join(lines) + "\n")
    words = ["--data.path", "shapes.csv", "--trainer.max_epochs", "12", "--data.batch_size", "8", *SHORT]
    assert main(["fit", "--config", "table", *words, "--data.columns", "[length,width]"]) == 0
    best = "runs/table/version_0/checkpoints/best.ckpt"
    Path("new.csv").write_text("width,length\n0.1,0.9\n0.9,0.1\n0.5,\n")
    assert main(["predict", best, "new.csv", "--out", "kinds.csv"]) == 1
    assert "new.csv, line 4, column 'length': '', expected a finite number" in capsys.readouterr().err
    assert [row["kind"] for row in table("kinds.csv")] == ["long", "wide", ""]
    assert [row["line"] for row in table("kinds.csv")] == ["2", "3", "4"]

    words += ["--data.target", "area", "--data.columns", "[length,width]"]
    assert main(["fit", "--config", "table-regression", *words]) == 0
    Path("new.csv").write_text("width,length\n0.5,0.5\n0.9,0.9\n")
    best = "runs/table-regression/version_0/checkpoints/best.ckpt"
    assert main(["predict", best, "new.csv", "--out", "areas.csv"]) == 0
    got = [float(row["area"]) for row in table("areas.csv")]
    assert got == pytest.approx([0.25, 0.81], abs=0.15), "in the units of the file"


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_texts(tokens, capsys):
    Path("book.txt").write_text("the cat sat on the mat, and the rat on the hat. " * 30)
    words = ["--config", "text", "--data.source", "book.txt", "--data.tokens", tokens, "--data.length", "8"]
    words += ["--data.batch_size", "4", "--model.network.width", "16", "--model.network.heads", "2", *SHORT]
    words += ["--model.network.length", "16", "--trainer.precision", "32-true", "--model.warmup_steps", "0"]
    words += ["--model.network.solver.max_steps", "60"]
    assert main(["fit", *words, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20"]) == 0
    best = "runs/text/version_0/checkpoints/best.ckpt"
    module, data = load(best)
    assert module.network.vocabulary == data.vocabulary == {"characters": 14, "bytes": 256}[tokens]
    Path("like.txt").write_text("the cat sat on the hat")
    Path("other.txt").write_text("Zürich")
    capsys.readouterr()
    assert main(["predict", best, "like.txt", "--count", "5", "--out", "said.csv"]) == 0
    (row,) = table("said.csv")
    assert row["verdict"] == "converged"
    assert 1 < float(row["perplexity"]) < len(data.symbols.tokens)
    numbers = data.symbols.encode("the cat sat on the hat")
    with torch.no_grad():
        losses, memory = 0.0, None
        for start in range(0, len(numbers) - 1, 8):
            seen = numbers[start : start + 8][: len(numbers) - 1 - start]
            features, memory = module.network(seen[None], memory)
            losses += float(module.network.losses(features, numbers[None, start + 1 : start + 1 + len(seen)]).sum())
    assert float(row["perplexity"]) == pytest.approx(np.exp(losses / (len(numbers) - 1)), rel=1e-3)
    assert main(["predict", best, "other.txt", "--count", "0"]) == (1 if tokens == "characters" else 0)
    if tokens == "characters":
        assert "other.txt: Characters: got ['Z', 'i', 'ü']" in capsys.readouterr().err


def test_masks(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32)).astype(np.uint8)
    Path("sets").mkdir()
    np.savez("sets/dsb2018_256_gray.npz", images=images, instances=(images > 128).astype(np.int32))
    words = ["--config", "nuclei-mdeq", "--data-dir", "sets", "--data.validation", "2", "--data.test", "2"]
    words += [
        "--data.crop",
        "16",
        "--data.batch_size",
        "4",
        "--trainer.max_epochs",
        "3",
        "--trainer.precision",
        "32-true",
    ]
    words += ["--model.network.channels", "[8, 8]", "--model.network.width", "8", *SHORT]
    monkeypatch.setenv("TORCHIMPLICIT_DATA", "")
    assert main(["fit", *words]) == 0
    best = "runs/nuclei-mdeq/version_0/checkpoints/best.ckpt"
    for name, size in (("a", (32, 32)), ("b", (40, 24))):
        Image.fromarray(np.random.default_rng(1).integers(0, 255, size[::-1]).astype(np.uint8)).save(f"{name}.png")
    status = main(["predict", best, "a.png", "b.png", "--out", "masks"])
    rows = table("masks/predictions.csv")
    assert status == (0 if all(row["verdict"] == "converged" for row in rows) else 1)
    for row, size in zip(rows, [(32, 32), (40, 24)], strict=True):
        mask = np.asarray(Image.open(row["mask"]))
        assert mask.shape == size[::-1]
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).mean() == pytest.approx(float(row["foreground"]), abs=1e-4)
    assert main(["predict", best, "a.png"]) == 1
    assert "expected a folder for the masks. Try --out masks/" in capsys.readouterr().err


def test_a_model_that_reads_no_files_says_so(capsys):
    assert main(["fit", "--config", "xcubed", "--trainer.max_epochs", "1", *SHORT]) == 0
    assert main(["predict", "runs/xcubed/version_0/checkpoints/last.ckpt", "a.csv"]) == 1
    assert "Regressor of recipe 'xcubed' reads no files" in capsys.readouterr().err


def test_digits_are_read_from_any_picture(capsys):
    words = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", "digits", *words]) == 0
    _, data = load("runs/digits/version_0/checkpoints/best.ckpt")
    data.setup()
    images, labels = data.splits.test.images[:8], data.splits.test.labels[:8]
    for i, image in enumerate(images):
        Image.fromarray((image[0] * (255 / 16)).to(torch.uint8).numpy()).save(f"{i}.png")
        torch.testing.assert_close(data.format().read(Path(f"{i}.png")), data.splits.test[i][0], atol=0.05, rtol=0.05)
    best = "runs/digits/version_0/checkpoints/best.ckpt"
    assert main(["predict", best, *(f"{i}.png" for i in range(8)), "--out", "digits.csv"]) == 0
    right = [int(row["class"]) == int(label) for row, label in zip(table("digits.csv"), labels, strict=True)]
    assert sum(right) >= 6
