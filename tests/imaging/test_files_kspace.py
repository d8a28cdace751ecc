"""Plain arrays of k-space, NumPy's and BART's: what comes back is what was written, and what is refused."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit import imaging
from torchimplicit.imaging import DataError


def numbers(*shape, dtype=np.complex64, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(dtype)


def test_a_pair_written_by_hand_is_read(tmp_path):
    """Two by three, the first axis fastest, as BART has it."""
    (tmp_path / "x.hdr").write_text("# Dimensions\n2 3 1 1 1 1 1 1 1 1 1 1 1 1 1 1 \n# Command\nphantom x \n")
    (tmp_path / "x.cfl").write_bytes(struct.pack("<12f", *(v for k in range(6) for v in (k, -k))))
    found = imaging.read_cfl(tmp_path / "x")
    assert found.dtype == torch.complex64
    assert torch.equal(found, torch.tensor([[0, 2, 4], [1, 3, 5]]) * (1 - 1j))
    imaging.write_cfl(tmp_path / "y.cfl", found)
    assert (tmp_path / "y.cfl").read_bytes() == (tmp_path / "x.cfl").read_bytes()
    assert (tmp_path / "y.hdr").read_text().splitlines()[1] == "2 3" + 14 * " 1"


@settings(max_examples=25)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.sampled_from(["", ".cfl", ".hdr"]))
def test_pairs_come_back(tmp_path_factory, shape, ending):
    path = tmp_path_factory.mktemp("cfl") / f"scan.v1{ending}"
    array = torch.from_numpy(numbers(*shape)).mT.conj() if len(shape) > 1 else torch.from_numpy(numbers(*shape))
    imaging.write_cfl(path, array)
    found = imaging.read_cfl(path)
    assert torch.equal(found.reshape(array.shape), array.resolve_conj())
    assert found.dim() == 1 or found.shape[-1] > 1


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        ("# Dimensions\n2 3\n", 47, r"it has 47 bytes, but x.hdr says \(2, 3\), which is 48"),
        ("# Dimensions\n2 3 2\n", 48, r"it has 48 bytes, but x.hdr says \(2, 3, 2\), which is 96"),
        ("2 3\n", 48, "a header without a line '# Dimensions'"),
        ("# Dimensions\n", 48, "a header without"),
        ("# Dimensions\n2 -3\n", 48, "dimensions '2 -3', expected 1 to 16 numbers > 0"),
        ("# Dimensions\n2 0\n", 0, "dimensions '2 0'"),
        ("# Dimensions\n" + 17 * "1 " + "\n", 8, "expected 1 to 16 numbers"),
        ("# Dimensions\n99999 99999 99999\n", 48, "which is"),
        (None, 48, "no such file as .*x.hdr"),
        ("# Dimensions\n2 3\n", None, "no such file as .*x.cfl"),
        ("\udcff\udcfe", 48, "utf-8"),
    ],
)
def test_broken_pairs_are_refused_in_one_sentence(tmp_path, header, size, said):
    if header is not None:
        (tmp_path / "x.hdr").write_bytes(header.encode(errors="surrogateescape"))
    if size is not None:
        (tmp_path / "x.cfl").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"read_cfl: cannot read .*x.cfl: .*{said}.*\. Expected BART's pair"):
        imaging.read_cfl(tmp_path / "x")


def test_what_is_no_array_of_barts_is_refused(tmp_path):
    for array in (torch.zeros(*17 * [1]), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="expected at most 16 dimensions, none empty"):
            imaging.write_cfl(tmp_path / "x", array)


def saved(folder, ending, array):
    path = folder / f"scan{ending}"
    if ending == ".npy":
        np.save(path, array)
    elif ending == ".npz":
        np.savez(path, scan=array)
    else:
        imaging.write_cfl(path, torch.from_numpy(array))
    return path


@pytest.mark.parametrize("ending", [".npy", ".npz", ".cfl"])
def test_axes_go_where_their_names_say(tmp_path, ending):
    array = numbers(4, 5, 3, 2)
    path = saved(tmp_path, ending, array)
    found = imaging.read_kspace(path, "row column coil slice")
    np.testing.assert_array_equal(found.numpy(), array.transpose(3, 2, 0, 1))
    assert found.dtype == torch.complex64
    assert found.is_contiguous()
    path = saved(tmp_path, ending, array[:, :, None, :, 0])
    found = imaging.read_kspace(path, "column row slice coil")
    np.testing.assert_array_equal(found.numpy(), array[..., 0].transpose(2, 1, 0)[None])
    path = saved(tmp_path, ending, array[:, :, 0, 0])
    np.testing.assert_array_equal(imaging.read_kspace(path, "row column").numpy(), array[None, None, :, :, 0, 0])


@pytest.mark.parametrize("dtype", [">c8", "<c16", "<f2", "<f4", ">f8"])
def test_precisions_and_parts(tmp_path, dtype):
    array = numbers(3, 4, 5, dtype=np.complex128)
    real = np.dtype(dtype).kind == "f"
    stored = (np.stack([array.real, array.imag], 1) if real else array).astype(dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(stored))
    found = imaging.read_kspace(tmp_path / "x.npy", "coil part row column" if real else "coil row column")
    assert found.shape == (1, 3, 4, 5)
    assert found.dtype == (torch.complex128 if dtype in ("<c16", ">f8") else torch.complex64)
    np.testing.assert_allclose(found[0].numpy(), array, rtol=1e-3 if dtype == "<f2" else 1e-6, atol=1e-3)


@pytest.mark.parametrize(
    ("array", "axes", "said"),
    [
        (numbers(3, 4, 5), "row column", r"an array \(3, 4, 5\), expected 2 axes, row, column"),
        (numbers(4, 5), "coil row column", r"an array \(4, 5\), expected 3 axes"),
        (numbers(4, 5).real, "row column", 'values of torch.float32, expected them to be complex; or name an axis "pa'),
        (numbers(4, 5, 2), "row column part", "expected them to be real with an axis of two parts"),
        (numbers(4, 5, 3).real, "row column part", "an axis 'part' of 3, expected 2"),
        (numbers(4, 0), "row column", "or with none"),
        (np.full((4, 5), np.nan, np.complex64), "row column", "not finite"),
        (np.zeros((4, 5), np.int16), "row column", "of int16, expected numbers"),
        (np.array([[None]]), "row column", "of object, expected numbers"),
    ],
)
def test_arrays_that_are_something_else_are_refused(tmp_path, array, axes, said):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=rf"read_kspace: cannot read .*x.npy: .*{said}.*\. Expected an array of .npy"):
        imaging.read_kspace(tmp_path / "x.npy", axes)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_files_cut_short_are_refused(tmp_path, ending):
    path = saved(tmp_path, ending, numbers(8, 16, 16))
    content = path.read_bytes()
    for length in (0, 20, 200, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"read_kspace: cannot read {path}"):
            imaging.read_kspace(path, "coil row column")


def test_files_that_are_none_and_names_that_are_none(tmp_path):
    for name, said in (("x.npy", "no such file"), ("x.cfl", "no such file as"), ("x.mat", "no such file")):
        with pytest.raises(DataError, match=said):
            imaging.read_kspace(tmp_path / name, "row column")
    (tmp_path / "x.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"an ending '.mat'. Expected an array of .npy, .npz or .cfl"):
        imaging.read_kspace(tmp_path / "x.mat", "row column")
    np.savez(tmp_path / "two.npz", kspace=numbers(4, 5), maps=numbers(3, 4, 5))
    with pytest.raises(DataError, match="2 arrays, 'kspace', 'maps'; try read_kspace"):
        imaging.read_kspace(tmp_path / "two.npz", "row column")
    assert imaging.read_kspace(tmp_path / "two.npz", "coil row column", name="maps").shape == (1, 3, 4, 5)
    with pytest.raises(DataError, match=r"no array 'mask', but kspace.npy, maps.npy"):
        imaging.read_kspace(tmp_path / "two.npz", "row column", name="mask")
    for axes in ("row", "row row column", "row column echo", "", None):
        with pytest.raises(ValueError, match=r'read_kspace\(axes=.*try "coil row column"'):
            imaging.read_kspace(tmp_path / "two.npz", axes)
