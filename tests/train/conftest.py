import gzip
import struct

import pytest
import torch


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """One thread, an empty folder to write runs into, no data but what the test makes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHIMPLICIT_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["torchimplicit"])


@pytest.fixture
def write_idx():
    """Writes an array of bytes as an idx file, gzipped when its name says so."""

    def write(path, array):
        content = (
            bytes([0, 0, 8, array.dim()])
            + struct.pack(f">{array.dim()}I", *array.shape)
            + bytes(array.flatten().tolist())
        )
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return write


@pytest.fixture
def mnist_folder(tmp_path, write_idx):
    """A folder with a tiny MNIST: 40 + 10 images of 28 x 28 whose brightness gives their label away."""
    folder = tmp_path / "sets" / "mnist"
    folder.mkdir(parents=True)
    for stem, count in (("train", 40), ("t10k", 10)):
        labels = torch.arange(count) % 10
        images = (labels.view(-1, 1, 1) * 25 + torch.randint(0, 10, (count, 28, 28))).to(torch.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels.to(torch.uint8))
    return folder
