"""CIFAR-10 from its three sources."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.data import CIFAR10, DataError

REAL = os.environ.get("TORCHIMPLICIT_DATA")


def pictures(count):
    """Flat colours that a JPEG keeps, `(N, 3, 32, 32)`, and labels."""
    labels = np.arange(count, dtype=np.uint8) % 10
    colours = np.stack([20 * labels, 200 - 15 * labels, 100 + 10 * labels], 1)
    return np.broadcast_to(colours[:, :, None, None], (count, 3, 32, 32)).astype(np.uint8), labels


@pytest.fixture
def binary(tmp_path):
    """The binary version: 5 x 8 + 10 images."""
    folder = tmp_path / "sets" / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    images, labels = pictures(50)
    records = np.concatenate([labels[:, None], images.reshape(50, -1)], 1)
    for number in range(5):
        records[8 * number : 8 * number + 8].tofile(folder / f"data_batch_{number + 1}.bin")
    records[40:].tofile(folder / "test_batch.bin")
    return folder


@pytest.fixture
def archive(tmp_path):
    """JPEGs: 40 + 10 images."""
    image = pytest.importorskip("PIL.Image")
    images, labels = pictures(50)
    pieces = []
    for array in images:
        buffer = io.BytesIO()
        image.fromarray(array.transpose(1, 2, 0)).save(buffer, "JPEG", quality=95)
        pieces.append(np.frombuffer(buffer.getvalue(), np.uint8))
    path = tmp_path / "jpeg" / "cifar10_jpeg.npz"
    path.parent.mkdir()
    offsets = np.cumsum([0, *map(len, pieces)])
    np.savez(path, data=np.concatenate(pieces), offsets=offsets, labels=labels, is_test=(np.arange(50) >= 40))
    return path


def test_the_binary_version_is_found_and_read(binary, monkeypatch):
    direct, above = (CIFAR10(str(folder), validation=8) for folder in (binary.parent, binary.parent.parent))
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(binary.parent.parent))
    variable = CIFAR10(validation=8)
    for data in (direct, above, variable):
        data.setup()
        assert [len(split) for split in data.splits] == [32, 8, 10]
        images, labels = data.splits.test.images, data.splits.test.labels
        assert labels.tolist() == list(range(10))
        assert torch.equal(images, torch.from_numpy(pictures(10)[0]))
    x, _ = next(iter(direct.val_dataloader()))
    assert x.shape == (8, 3, 32, 32)
    assert x.dtype == torch.float32


def test_jpegs_are_decoded_and_warned_of(archive):
    data = CIFAR10(str(archive.parent), validation=8)
    with pytest.warns(UserWarning, match="JPEGs, which lose detail: accuracies are not comparable"):
        data.setup()
    assert [len(split) for split in data.splits] == [32, 8, 10]
    off = data.splits.test.images.int() - torch.from_numpy(pictures(10)[0]).int()
    assert off.abs().max() <= 3
    assert data.splits.test.labels.tolist() == list(range(10))


def test_validation_belongs_to_the_seed_and_the_test_split_does_not(binary):
    one, same, other = (CIFAR10(str(binary.parent), seed=seed, validation=8) for seed in (0, 0, 1))
    for data in (one, same, other):
        data.setup()
    assert torch.equal(one.splits.val.labels, same.splits.val.labels)
    assert not torch.equal(one.splits.val.images, other.splits.val.images)
    assert torch.equal(one.splits.test.images, other.splits.test.images)


def test_augmentation_changes_training_images_alone(binary):
    plain, augmented = (CIFAR10(str(binary.parent), validation=8, augment=augment) for augment in (False, True))
    for data in (plain, augmented):
        data.setup()
        for split in data.splits:  # a gradient from left to right, which a shift and a mirror change
            split.images = split.images // 2 + torch.arange(0, 96, 3, dtype=torch.uint8)
    indices = list(range(8))
    assert not torch.equal(plain.splits.train.__getitems__(indices)[0], augmented.splits.train.__getitems__(indices)[0])
    for split in ("val", "test"):
        one, other = (getattr(data.splits, split).__getitems__(indices)[0] for data in (plain, augmented))
        assert torch.equal(one, other)


def test_it_says_where_it_looked(tmp_path):
    with pytest.raises(DataError, match=r"looked in .*nowhere and .*nowhere/cifar10: no such folder.*--data-dir"):
        CIFAR10(str(tmp_path / "nowhere")).setup()
    with pytest.raises(DataError, match=r"found neither cifar-10-batches-bin nor cifar10_jpeg.npz.*TORCHIMPLICIT_DATA"):
        CIFAR10(str(tmp_path)).setup()


def test_it_says_which_file_is_broken(binary, archive):
    (binary / "data_batch_3.bin").write_bytes(b"x" * 3000)
    with pytest.raises(DataError, match=r"data_batch_3.bin: 3000 bytes, expected a multiple of 3073.*fetch it again"):
        CIFAR10(str(binary.parent)).setup()
    (binary / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin: No such file"):
        CIFAR10(str(binary.parent)).setup()
    content = archive.read_bytes()
    for broken in (content[:5000], b"no archive"):
        archive.write_bytes(broken)
        with pytest.raises(DataError, match=r"cannot read .*cifar10_jpeg.npz"):
            CIFAR10(str(archive.parent)).setup()
    np.savez(archive, data=np.zeros(4, np.uint8), offsets=np.array([0, 4]), labels=np.zeros(1), is_test=np.zeros(1))
    with pytest.raises(DataError, match=r"cannot identify image file"):
        CIFAR10(str(archive.parent)).setup()


def test_it_refuses_to_hold_out_everything(binary):
    with pytest.raises(DataError, match=r"validation=40.*less than 40"):
        CIFAR10(str(binary.parent), validation=40).setup()


class Table(dict):
    def __init__(self, split):
        images, labels = pictures({"train": 40, "test": 10}[split])
        super().__init__(img=torch.from_numpy(images), label=torch.from_numpy(labels))

    def with_format(self, name):
        assert name == "torch"
        return self

    def __getitem__(self, key):
        return self if isinstance(key, slice) else super().__getitem__(key)


def test_it_comes_from_the_hub_where_there_is_no_folder(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append(name) or Table(split))
    data = CIFAR10(validation=8)
    data.prepare_data()
    data.setup()
    assert set(asked) == {"uoft-cs/cifar10"}
    assert [len(split) for split in data.splits] == [32, 8, 10]
    assert torch.equal(data.splits.test.images, torch.from_numpy(pictures(10)[0]))


def test_it_says_that_the_hub_is_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"uoft-cs/cifar10.*ConnectionError: no route.*--data-dir"):
        CIFAR10().prepare_data()


@pytest.mark.skipif(not REAL, reason="TORCHIMPLICIT_DATA is unset: no real CIFAR-10 to read")
@pytest.mark.filterwarnings("ignore:CIFAR10.*JPEGs")
def test_the_real_set_is_whole_and_normalised():
    data = CIFAR10(REAL)
    data.setup()
    assert [len(split) for split in data.splits] == [45000, 5000, 10000]
    assert data.splits.test.labels.bincount().tolist() == [1000] * 10
    x, _ = data.splits.train.__getitems__(list(range(0, 45000, 10)))
    assert x.mean((0, 2, 3)).abs().max() < 0.03
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.03


def test_the_recipe_trains(binary):
    words = ["fit", "--config", "cifar10", "--data-dir", str(binary.parent), "--data.validation", "8"]
    words += ["--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "2"]
    assert main([*words, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]) == 0
    curves = read_curves(Path("runs/cifar10/version_0"))
    assert curves["train/forward_unconverged"][1] == [0.0, 0.0]
    assert curves["train/forward_residual"][1][0] > 1e-3, "in half precision, to a loose tolerance"
