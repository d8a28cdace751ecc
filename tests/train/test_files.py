"""Every loader, given a file that is not what it should be: one sentence with the path, in bounded memory."""

import gzip
import io
import random
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchimplicit.files import LARGEST
from torchimplicit.train import CheckpointError, load
from torchimplicit.train.data import CIFAR10, MNIST, DataError, Density, Nuclei, Sudoku, Text

BOMB = 64 * 2**20  # bytes that a bomb unpacks to
BOUND = 16 * 2**20  # bytes that reading it may take


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npz_bomb(*names, length=BOMB):
    """Members that promise and unpack to zeros in one dimension more than any loader takes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w") as member:
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    header, {"descr": "|u1", "fortran_order": False, "shape": (2**62,)}
                )
                member.write(header.getvalue())
                for _ in range(length // 2**20):
                    member.write(bytes(2**20))
    return buffer.getvalue()


def png(width=256, height=256):
    buffer = io.BytesIO()
    Image.new("L", (width, height), 7).save(buffer, "png")
    return buffer.getvalue()


def png_bomb(edge=60000):
    """The header of a picture of that many pixels, and hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def described(config):
    return saved({"state_dict": {}, "torchimplicit": {"recipe": "a", "network": "b", "config": config}})


def deflated(content):
    """The same archive of torch's with its records compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return buffer.getvalue()


def idx(shape, data=None):
    content = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return content + (bytes(int(np.prod(shape))) if data is None else data)


def jpegs(edge=32, labels=2, kind=int):
    buffer = io.BytesIO()
    Image.new("RGB", (edge, edge)).save(buffer, "jpeg")
    data = np.frombuffer(buffer.getvalue() * 2, np.uint8)
    offsets = np.array([0, 1, 2]) * (len(data) // 2)
    return npz(data=data, offsets=offsets, labels=np.zeros(labels, kind), is_test=np.array([0, 1]))


# loader: file, a good content, a bomb (or None: it is not packed), contents of a wrong shape
LOADERS = {
    "idx, gzipped": (
        lambda: MNIST(".").setup(),
        "train-images-idx3-ubyte.gz",
        gzip.compress(idx((3, 28, 28))),
        gzip.compress(idx((3, 28, 28)) + bytes(BOMB)),
        [gzip.compress(idx((2**31, 28, 28), b"")), gzip.compress(idx((0, 28, 28)))],
    ),
    "idx": (
        lambda: MNIST(".").setup(),
        "train-images-idx3-ubyte",
        idx((3, 28, 28)),
        None,
        [
            idx((2**32 - 1,) * 255, b""),
            idx((3, 20, 20)),
            idx((2**32 - 1,) * 3, b""),
            idx((3, 28, 28))[:-1],
            idx((3, 28, 28)) + b"0",
        ],
    ),
    "CIFAR-10, binary": (
        lambda: CIFAR10(".").setup(),
        "cifar-10-batches-bin/data_batch_1.bin",
        bytes(3073),
        None,
        [bytes(3074), b"\x0b" + bytes(3072)],
    ),
    "CIFAR-10, JPEG": (
        lambda: CIFAR10(".").setup(),
        "cifar10_jpeg.npz",
        jpegs(),
        npz_bomb("data", "offsets", "labels", "is_test"),
        [jpegs(edge=40), jpegs(labels=3), jpegs(kind=float), npz(data=np.zeros(3))],
    ),
    "nuclei, archive": (
        lambda: Nuclei(".").setup(),
        "dsb2018_256_gray.npz",
        npz(images=np.zeros((2, 8, 8), np.uint8), instances=np.zeros((2, 8, 8), int)),
        npz_bomb("images", "instances"),
        [npz(images=np.zeros((2, 8, 8), np.uint8), instances=np.zeros((2, 8, 9), int)), npz(other=np.zeros(3))],
    ),
    "nuclei, pictures": (
        lambda: Nuclei(".").setup(),
        "stage1_train/one/images/one.png",
        png(),
        png_bomb(),
        [png()[:-20]],
    ),
    "nuclei, masks": (
        lambda: Nuclei(".").setup(),
        "stage1_train/two/masks/one.png",
        png(),
        png_bomb(),
        [png(10, 10)],
    ),
    "boards": (
        lambda: Sudoku(".", size=4).setup(),
        "sudoku4_optnet10k.npz",
        npz(puzzles=np.zeros((2, 4, 4), int), solutions=np.ones((2, 4, 4), int)),
        npz_bomb("puzzles", "solutions"),
        [
            npz(puzzles=np.zeros((2, 4, 4), int), solutions=np.ones((2, 4, 5), int)),
            npz(puzzles=np.array([{}]), solutions=np.array([{}])),
            npz(puzzles=np.zeros((2, 4, 4)), solutions=np.full((2, 4, 4), 1.5)),
        ],
    ),
    "boards, tensors": (
        lambda: Sudoku(".", size=4).setup(),
        "features.pt",
        saved(torch.zeros(2, 4, 4, 4)),
        deflated(saved(torch.zeros(BOMB // 64, 4, 4, 4, dtype=torch.uint8))),
        [saved(torch.zeros(2, 4, 4)), saved([1]), saved(torch.zeros(1).expand(2**40, 4, 4, 4))],
    ),
    "text": (lambda: Text(data_dir=".").setup(), "tinyshakespeare.txt", "\xe9".encode(), None, [b"\xff\xfe"]),
    "picture": (lambda: Density("one.png").setup(), "one.png", png(), png_bomb(), [png_bomb(2**20)]),
    "checkpoint": (
        lambda: load("one.ckpt"),
        "one.ckpt",
        saved({"state_dict": {}}),
        deflated(saved({"state_dict": {"w": torch.zeros(BOMB, dtype=torch.uint8)}})),
        [
            saved({"state_dict": 3}),
            saved({"state_dict": {"w": 3}}),
            saved({"state_dict": {}, "torchimplicit": [1]}),
            saved({"state_dict": {}, "torchimplicit": {"recipe": [], "network": "b"}}),
            described("model"),
            described({"model": {"init_args": 3}}),
            described({"model": None}),
            described({"model": {"class_path": "torchimplicit.train.modules.Classifier", "init_args": {"network": 3}}}),
            described({3: 4}),
        ],
    ),
}


def put(path, content):
    """The file, and beside it what else its loader looks for before."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if "masks" in path:
        Path("stage1_train/two/images").mkdir()
        Path("stage1_train/two/images/one.png").write_bytes(png())
    if path == "features.pt":
        Path("labels.pt").write_bytes(saved(torch.zeros(2, 4, 4, 4)))
    if path.startswith("train-images"):
        Path("train-labels-idx1-ubyte").write_bytes(idx((3,)))
    Path(path).write_bytes(content)


def refused(name, content):
    """The one sentence that a loader says of a content."""
    read, path, *_ = LOADERS[name]
    put(path, content)
    with pytest.raises((DataError, CheckpointError)) as caught:
        read()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    place = "in ." if "expected (N, 28, 28)" in said else path
    for folder in ("/images", "/masks"):
        place = place.partition(folder)[0]
    assert place in said
    return said


@pytest.mark.parametrize("name", LOADERS)
def test_an_empty_file_is_refused(name):
    refused(name, b"")


@pytest.mark.parametrize("name", LOADERS)
def test_a_truncated_file_is_refused(name):
    good = LOADERS[name][2]
    refused(name, good[: len(good) // 2])


@pytest.mark.parametrize("name", LOADERS)
def test_random_bytes_are_refused(name):
    refused(name, random.Random(0).randbytes(3000))


@pytest.mark.parametrize("name", [name for name in LOADERS if LOADERS[name][3] is not None])
def test_a_bomb_is_refused_before_it_is_unpacked(name):
    bomb = LOADERS[name][3]
    tracemalloc.start()  # sees what Python and NumPy take; torch and PIL are not let at a bomb at all
    try:
        refused(name, bomb)
        assert tracemalloc.get_traced_memory()[1] < BOUND
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in LOADERS for n in range(len(LOADERS[name][4]))])
def test_a_wrong_shape_is_refused(name, number):
    refused(name, LOADERS[name][4][number])


def test_it_says_what_was_found_and_what_was_expected():
    assert "no array 'solutions', but puzzles.npy" in refused("boards", npz(puzzles=np.zeros((2, 4, 4), int)))
    assert "expected numbers" in refused("boards", LOADERS["boards"][4][1])
    assert f"expected at most {LARGEST}" in refused("idx", LOADERS["idx"][4][2])
    assert "header says (4611686018427387904,)" in refused("nuclei, archive", LOADERS["nuclei, archive"][3])
    assert "that unpack to" in refused("checkpoint", LOADERS["checkpoint"][3])


def test_a_mask_that_is_missing_is_named():
    put("stage1_train/one/images/one.png", png())
    with pytest.raises(DataError, match=r"cannot read stage1_train/one: no mask, expected masks/\*.png. Try to fetch"):
        Nuclei(".").setup()


@pytest.mark.filterwarnings("ignore:CIFAR10. .* holds JPEGs")
@pytest.mark.parametrize("name", LOADERS)
def test_bytes_that_are_flipped_are_read_or_refused_in_a_sentence(name):
    generator = random.Random(name)
    read, path, good, *_ = LOADERS[name]
    put(path, good)
    for _ in range(60):
        content = bytearray(good)
        for _ in range(generator.choice((1, 1, 3, 20))):
            near = generator.randrange(min(64, len(content)))  # heads and ends are where the sense is
            place = generator.choice((generator.randrange(len(content)), near, -1 - near))
            content[place] ^= 1 << generator.randrange(8)
        Path(path).write_bytes(content)
        said = ""
        try:
            read()
        except (DataError, CheckpointError) as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 600
