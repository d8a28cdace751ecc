import gzip
import os
from pathlib import Path

import pytest
import torch

from torchimplicit.train.data import MNIST, DataError, Digits
from torchimplicit.train.data.idx import read_idx

REAL = os.environ.get("TORCHIMPLICIT_DATA")


@pytest.mark.parametrize("name", ["a.gz", "a"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_idx_files_are_read(tmp_path, write_idx, name, shape):
    array = torch.randint(0, 256, shape, dtype=torch.uint8)
    write_idx(tmp_path / name, array)
    assert torch.equal(read_idx(tmp_path / name), array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not with those of an idx file"),
        (b"<html>404</html>", "not with those of an idx file"),
        (b"\0\0\x0d\x01\0\0\0\0", "not with those of an idx file"),
        (b"\0\0\x08\x03\0\0", "too few for its own header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "3 bytes of data"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc", mtime=0)[:-9], "Compressed file ended before"),
    ],
)
def test_what_is_no_idx_file_says_why(tmp_path, content, reason):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises((ValueError, EOFError), match=reason):
        read_idx(tmp_path / "a")


def test_mnist_finds_its_files(mnist_folder, monkeypatch):
    direct = MNIST(str(mnist_folder), validation=8)
    direct.setup()
    above = MNIST(str(mnist_folder.parent), validation=8)
    above.setup()
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(mnist_folder.parent))
    variable = MNIST(validation=8)
    variable.setup()
    for data in (direct, above, variable):
        assert [len(split) for split in data.splits] == [32, 8, 10]
        assert torch.equal(data.splits.test.images, direct.splits.test.images)
    x, label = next(iter(direct.test_dataloader()))
    assert x.shape == (10, 1, 28, 28)
    assert x.dtype == torch.float32
    assert label.tolist() == list(range(10))


def test_mnist_says_where_it_looked(tmp_path):
    with pytest.raises(DataError, match=r"looked in .*nowhere and .*nowhere/mnist: no such folder.*Try --data-dir"):
        MNIST(str(tmp_path / "nowhere")).setup()
    with pytest.raises(DataError, match=r"found no train-images-idx3-ubyte\(\.gz\).*TORCHIMPLICIT_DATA"):
        MNIST(str(tmp_path)).setup()


def test_mnist_says_which_file_is_broken(mnist_folder, write_idx):
    broken = mnist_folder / "t10k-labels-idx1-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"cannot read .*t10k-labels.*gz: Compressed file ended before.*fetch it again"):
        MNIST(str(mnist_folder), validation=8).setup()
    write_idx(broken, torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"got images \(10, 28, 28\) and labels \(3,\)"):
        MNIST(str(mnist_folder), validation=8).setup()


def test_mnist_says_what_it_may_not_read(mnist_folder, monkeypatch):
    def refuse(path, *mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*train-images.*: Permission denied.*permissions"):
        MNIST(str(mnist_folder)).setup()
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        MNIST(str(mnist_folder)).setup()


def test_mnist_refuses_to_hold_out_everything(mnist_folder):
    with pytest.raises(DataError, match=r"validation=40.*less than 40"):
        MNIST(str(mnist_folder), validation=40).setup()


class Table(dict):
    def __init__(self, split):
        count = {"train": 40, "test": 10}[split]
        super().__init__(image=torch.zeros(count, 1, 28, 28, dtype=torch.uint8), label=torch.arange(count) % 10)

    def with_format(self, name):
        assert name == "torch"
        return self

    def __getitem__(self, key):
        return self if isinstance(key, slice) else super().__getitem__(key)


def test_mnist_comes_from_the_hub_where_there_is_no_folder(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: Table(split))
    data = MNIST(validation=8)
    data.prepare_data()
    data.setup()
    assert [len(split) for split in data.splits] == [32, 8, 10]


def test_mnist_says_that_the_hub_is_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"ylecun/mnist.*ConnectionError: no route.*--data-dir"):
        MNIST().prepare_data()


def test_digits_are_split_by_the_seed_alone():
    first, again, other = Digits(), Digits(), Digits(seed=1)
    for data in (first, again, other):
        data.setup()
    assert [len(split) for split in first.splits] == [1257, 180, 360]
    for one, two in zip(first.splits, again.splits, strict=True):
        assert torch.equal(one.images, two.images)
    assert not torch.equal(first.splits.val.images, other.splits.val.images)
    assert torch.equal(first.splits.test.images, other.splits.test.images), "the test split must not move"
    total = sum(int(split.images.sum()) for split in first.splits)
    assert total == sum(int(split.images.sum()) for split in other.splits)


def test_the_order_of_an_epoch_follows_from_seed_and_epoch():
    def labels(data, epoch):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([label for _, label in loader])

    data = Digits(batch_size=100)
    assert torch.equal(labels(data, 3), labels(Digits(batch_size=100), 3))
    assert not torch.equal(labels(data, 3), labels(data, 4))
    assert torch.equal(labels(data, 3).sort().values, labels(data, 4).sort().values)


def test_a_sample_is_the_same_alone_and_in_a_batch():
    data = Digits(batch_size=7)
    x, label = next(iter(data.val_dataloader()))
    alone, its_label = data.splits.val[3]
    assert torch.equal(alone, x[3])
    assert its_label == label[3]


@pytest.mark.skipif(not REAL, reason="TORCHIMPLICIT_DATA is unset: no real MNIST to read")
def test_real_mnist_is_whole():
    data = MNIST(REAL)
    data.setup()
    assert [len(split) for split in data.splits] == [55000, 5000, 10000]
    x = torch.cat([data.splits.train.__getitems__(list(range(0, 55000, 10)))[0]])
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02
