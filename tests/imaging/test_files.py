"""Files of images: what comes back is what was written, and what is refused."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import PIL.Image
import pytest
import torch

from torchimplicit import imaging
from torchimplicit.imaging import DataError, Image

REAL = Path(nibabel.__file__).parent / "tests" / "data"
AFFINE = torch.tensor([[-2.0, 0.1, 0, 10], [0.1, 2, 0.2, -20], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize(("name", "orientation"), [("anatomical.nii", "LAS"), ("example4d.nii.gz", "LAS")])
def test_real_volumes_are_read_as_nibabel_reads_them(name, orientation):
    image, expected = imaging.read_nifti(REAL / name), nibabel.load(REAL / name)
    assert image.orientation == orientation
    np.testing.assert_array_equal(image.data.numpy(), expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(image.affine.numpy(), expected.affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8, torch.complex64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 1), (3, 4, 5, 2)])
def test_nifti_comes_back(tmp_path, suffix, dtype, shape):
    path = tmp_path / f"image{suffix}"
    image = Image((10 * torch.rand(*shape)).to(dtype), AFFINE)
    imaging.write_nifti(path, image)
    back = imaging.read_nifti(path)
    assert torch.equal(back.data, image.data)
    torch.testing.assert_close(back.affine, AFFINE, rtol=0, atol=1e-6)
    assert int(nibabel.load(path).header["sform_code"]) == 1


def test_dtypes_without_a_place_in_nifti_are_changed_as_said(tmp_path):
    path = tmp_path / "image.nii"
    for given, kept in ((torch.bool, torch.uint8), (torch.bfloat16, torch.float32), (torch.int64, torch.int32)):
        imaging.write_nifti(path, Image(torch.ones(2, 2, 2, dtype=given), AFFINE))
        assert imaging.read_nifti(path).data.dtype == kept
    with pytest.raises(ValueError, match="expected 32 bits"):
        imaging.write_nifti(path, Image(torch.full((2, 2, 2), 2**40), AFFINE))
    with pytest.raises(ValueError, match=r"ends in \.nii"):
        imaging.write_nifti(tmp_path / "image.mgz", Image(torch.ones(2, 2, 2), AFFINE))


def test_sform_stands_before_qform_and_units_count(tmp_path):
    file = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), None)
    file.header.set_sform(np.diag([1.0, 2, 3, 1]), code=2)
    file.header.set_qform(np.diag([4.0, 4, 4, 1]), code=1)
    file.header.set_xyzt_units("mm")
    nibabel.save(file, tmp_path / "both.nii")
    assert imaging.read_nifti(tmp_path / "both.nii").spacing == (1, 2, 3)
    file.header.set_sform(None, code=0)
    file.header.set_xyzt_units("meter")
    nibabel.save(nibabel.Nifti2Image(np.zeros((2, 2, 2), np.float32), None, file.header), tmp_path / "q.nii")
    assert imaging.read_nifti(tmp_path / "q.nii").spacing == (4000, 4000, 4000)


def test_a_long_axis_is_written_as_nifti_2(tmp_path):
    imaging.write_nifti(tmp_path / "long.nii", Image(torch.ones(33_000, 1, 1), AFFINE))
    assert isinstance(nibabel.load(tmp_path / "long.nii"), nibabel.Nifti2Image)
    assert imaging.read_nifti(tmp_path / "long.nii").data.shape == (33_000, 1, 1)


def test_nifti_without_orientation_is_refused_unless_it_is_told(tmp_path):
    file = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), None)
    file.header.set_sform(None, code=0)
    file.header.set_qform(None, code=0)
    nibabel.save(file, tmp_path / "nowhere.nii")
    with pytest.raises(DataError, match=r"nowhere.nii: neither sform nor qform.*try read_nifti\(path, affine"):
        imaging.read_nifti(tmp_path / "nowhere.nii")
    assert imaging.read_nifti(tmp_path / "nowhere.nii", AFFINE).orientation == "LAS"


def test_displacements_are_those_of_itk(tmp_path):
    field = Image(torch.randn(3, 4, 5, 3), AFFINE)
    imaging.write_displacement(tmp_path / "field.nii.gz", field)
    file = nibabel.load(tmp_path / "field.nii.gz")
    assert file.shape == (3, 4, 5, 1, 3)
    assert int(file.header["intent_code"]) == 1007
    lps = file.get_fdata(dtype=np.float32)[:, :, :, 0]
    np.testing.assert_array_equal(lps * [-1, -1, 1], field.data.numpy())
    assert torch.equal(imaging.read_displacement(tmp_path / "field.nii.gz").data, field.data)
    with pytest.raises(DataError, match="try read_displacement"):
        imaging.read_nifti(tmp_path / "field.nii.gz")
    with pytest.raises(DataError, match=r"expected .X, Y, Z, 1, 3. of intent"):
        imaging.read_displacement(REAL / "anatomical.nii")
    with pytest.raises(ValueError, match=r"expected floats: an Image \(X, Y, Z, 3\), or"):
        imaging.write_displacement(tmp_path / "field.nii", Image(torch.zeros(3, 3, 3), AFFINE))


@pytest.mark.parametrize("intent", [1006, 1007])
def test_itk_reads_vectors_as_we_do(tmp_path, intent):
    """Those of intent 1006 are RAS to ITK, those of 1007 LPS."""
    sitk = pytest.importorskip("SimpleITK")
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5, 1, 3)).astype(np.float32)
    file = nibabel.Nifti1Image(vectors, np.diag([-2.0, 1.5, 3.0, 1.0]))  # ITK knows no shear
    file.header["intent_code"] = intent
    nibabel.save(file, tmp_path / "theirs.nii")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "theirs.nii"))).transpose(2, 1, 0, 3)
    ours = imaging.read_displacement(tmp_path / "theirs.nii")
    np.testing.assert_array_equal(ours.data.numpy() * [-1, -1, 1], theirs)
    imaging.write_displacement(tmp_path / "ours.nii", ours)
    again = sitk.ReadImage(str(tmp_path / "ours.nii"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again).transpose(2, 1, 0, 3), theirs)
    sitk.WriteImage(again, str(tmp_path / "again.nii"))
    assert torch.equal(imaging.read_displacement(tmp_path / "again.nii").data, ours.data)


def test_fields_of_pictures_are_those_of_itk(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    field = torch.randn(2, 5, 7)
    imaging.write_displacement(tmp_path / "ours.nii", field)
    theirs = sitk.ReadImage(str(tmp_path / "ours.nii"))
    assert theirs.GetDirection() == (1, 0, 0, 1)
    assert theirs.GetOrigin() == (0, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs)[..., ::-1], field.permute(1, 2, 0).numpy())
    sitk.WriteImage(theirs, str(tmp_path / "theirs.nii"))
    for name in ("ours", "theirs"):
        assert torch.equal(imaging.read_displacement(tmp_path / f"{name}.nii"), field)
    theirs.SetOrigin((3.0, 0.0))
    sitk.WriteImage(theirs, str(tmp_path / "elsewhere.nii"))
    with pytest.raises(DataError, match="expected one in pixels"):
        imaging.read_displacement(tmp_path / "elsewhere.nii")


@pytest.mark.parametrize("reader", ["read_nifti", "read_displacement", "read_fastmri", "read_ismrmrd", "read_png"])
@pytest.mark.parametrize("content", [None, b"", b"something else, and long enough for any header" * 20])
def test_what_is_no_such_file_is_refused_in_one_sentence_with_the_path(tmp_path, reader, content):
    path = tmp_path / ("x.png" if reader == "read_png" else "x.h5" if "_nifti" not in reader else "x.nii")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{reader}: cannot read {path}: .*\. Expected"):
        getattr(imaging, reader)(path)


def test_a_cut_nifti_is_refused(tmp_path):
    for name in ("anatomical.nii", "example4d.nii.gz"):
        content = (REAL / name).read_bytes()
        for length in (100, 400, len(content) // 2):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(DataError, match=name):
                imaging.read_nifti(tmp_path / name)


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "file.h5"
    generator = np.random.default_rng(0)
    arrays = {
        "kspace": generator.normal(size=(3, 2, 8, 6, 2)).astype(np.float32).view(np.complex64)[..., 0],
        "reconstruction_rss": generator.random((3, 4, 4), np.float32),
        "mask": np.array([1, 0, 1, 1, 0, 1], np.float32),
        "ismrmrd_header": b"<ismrmrdHeader/>",
    }

    def make(**changes):
        with h5py.File(path, "w") as file:
            for name, value in (arrays | changes).items():
                if value is not None:
                    file[name] = value
            file.attrs.update({"max": np.float64(1.5), "acquisition": "AXT2"})
        return path, arrays

    return make


def test_fastmri_is_read_slice_by_slice(volume):
    path, arrays = volume()
    read = imaging.read_fastmri(path, slice(1, 3))
    np.testing.assert_array_equal(read.kspace.numpy(), arrays["kspace"][1:])
    np.testing.assert_array_equal(read.target.numpy(), arrays["reconstruction_rss"][1:])
    assert read.mask.tolist() == [True, False, True, True, False, True]
    assert read.header == "<ismrmrdHeader/>"
    assert read.attributes == {"max": 1.5, "acquisition": "AXT2"}
    path, _ = volume(kspace=arrays["kspace"][:, 0], reconstruction_rss=None, mask=None, ismrmrd_header=None)
    read = imaging.read_fastmri(path)
    assert read.kspace.shape == (3, 1, 8, 6)
    assert read.target is read.mask is read.header is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kspace": None}, "no array 'kspace', but 'ismrmrd_header', 'mask'"),
        ({"kspace": np.zeros((3, 8, 6), np.int16)}, "'kspace' is .* of int16, expected 3 or 4 dimensions of numbers"),
        ({"kspace": np.full((3, 8, 6), np.nan, np.complex64)}, "not finite"),
        ({"mask": np.ones(5)}, "a mask of .5,. beside 6 columns"),
        ({"mask": np.zeros(6)}, "a mask that takes no column"),
        ({"reconstruction_rss": np.zeros((2, 4, 4), np.float32)}, "a reconstruction .* beside k-space"),
    ],
)
def test_fastmri_refuses(volume, changes, said):
    path, _ = volume(**changes)
    with pytest.raises(DataError, match=f"read_fastmri: cannot read {path}: .*{said}"):
        imaging.read_fastmri(path)


def test_a_cut_hdf5_is_refused(volume):
    path, _ = volume()
    content = path.read_bytes()
    for length in (50, 1000, len(content) - 100):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"cannot read {path}: .*Expected a file of fastMRI"):
            imaging.read_fastmri(path)


XML = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><trajectory>{trajectory}</trajectory><encodedSpace>
<matrixSize><x>8</x><y>6</y><z>1</z></matrixSize></encodedSpace><encodingLimits><kspace_encoding_step_1>
<center>2</center></kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"""
COUNTERS = (
    "kspace_encode_step_1",
    "kspace_encode_step_2",
    "average",
    "slice",
    "contrast",
    "phase",
    "repetition",
    "set",
)
HEAD = np.dtype(
    [
        ("flags", "<u8"),
        *((name, "<u2") for name in ("number_of_samples", "active_channels", "center_sample")),
        ("idx", [(name, "<u2") for name in COUNTERS]),
    ]
)


def acquisitions(path, lines, trajectory="cartesian"):
    """Lines of (row counter, values (C, N), centre, flags, counters that are not 0)."""
    kind = np.dtype([("head", HEAD), ("data", h5py.vlen_dtype(np.float32))])
    table = np.zeros(len(lines), kind)
    for entry, (row, values, centre, flags, counters) in zip(table, lines, strict=True):
        head = entry["head"]
        head["flags"], head["center_sample"] = flags, centre
        head["active_channels"], head["number_of_samples"] = values.shape
        for name, value in ({"kspace_encode_step_1": row} | counters).items():
            head["idx"][name] = value
        entry["data"] = values.astype(np.complex64).reshape(-1).view(np.float32)
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = np.array([XML.format(trajectory=trajectory).encode()], dtype=object)
        file.create_dataset("dataset/data", data=table)


def line(number, length=8, coils=2):
    return np.arange(coils * length).reshape(coils, length) + 1j * number


def test_ismrmrd_lines_go_where_their_counters_say(tmp_path):
    path = tmp_path / "scan.h5"
    lines = [
        (0, line(1), 4, 0, {}),
        (4, line(2, 5), 1, 0, {"slice": 1}),  # a partial echo: its centre is sample 1
        (4, line(4, 5), 1, 0, {"slice": 1, "average": 1}),
        (3, line(9), 4, 1 << 18, {}),  # of noise
    ]
    acquisitions(path, lines)
    kspace, mask = imaging.read_ismrmrd(path)
    assert kspace.shape == (2, 2, 6, 8)
    np.testing.assert_array_equal(kspace[0, :, 1].numpy(), line(1))
    np.testing.assert_array_equal(kspace[1, :, 5, 3:].numpy(), line(3, 5))
    assert mask[0].any(1).tolist() == [False, True, False, False, False, False]
    assert mask[1].sum() == 5
    assert kspace[~mask[:, None].expand_as(kspace)].abs().max() == 0


@pytest.mark.parametrize(
    ("lines", "trajectory", "said"),
    [
        ([(0, line(1), 4, 0, {})], "radial", "a trajectory 'radial', expected 'cartesian'"),
        ([(0, line(1), 4, 1 << 18, {})], "cartesian", "no acquisition of an image"),
        ([(5, line(1), 4, 0, {"contrast": i}) for i in (0, 1)], "cartesian", "2 values of contrast"),
        ([(0, line(1), 4, 0, {}), (1, line(1, 8, 3), 4, 0, {})], "cartesian", r"of \[2, 3\] channels"),
        ([(9, line(1), 4, 0, {})], "cartesian", "line 10, columns 0 to 8 outside of 6 x 8"),
        ([(0, line(np.inf), 4, 0, {})], "cartesian", "expected 2 x 2 x 8 finite ones"),
    ],
)
def test_ismrmrd_refuses(tmp_path, lines, trajectory, said):
    acquisitions(tmp_path / "scan.h5", lines, trajectory)
    with pytest.raises(DataError, match=said):
        imaging.read_ismrmrd(tmp_path / "scan.h5")


@pytest.mark.parametrize(("shape", "bits"), [((1, 5, 4), 8), ((3, 5, 4), 8), ((1, 5, 4), 16)])
def test_png_comes_back_to_the_level(tmp_path, shape, bits):
    image = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    imaging.write_png(tmp_path / "x.png", 4 * image - 1, window=(-1.0, 3.0), bits=bits)
    back = imaging.read_png(tmp_path / "x.png")
    assert back.shape == shape
    assert (back - image).abs().max() <= 0.5001 / (2**bits - 1)


def test_the_curve_of_srgb_is_undone(tmp_path):
    PIL.Image.fromarray(np.array([[0, 10, 188, 255]], np.uint8)).save(tmp_path / "x.png")
    expected = torch.tensor([0, 10 / 255 / 12.92, 0.5028865, 1.0])
    torch.testing.assert_close(imaging.read_png(tmp_path / "x.png", linear=True)[0, 0], expected)


def test_png_refuses(tmp_path):
    path = tmp_path / "x.png"
    PIL.Image.fromarray(np.zeros((3, 3, 4), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"8 bits of kind 6 \(mode RGBA\). Expected a PNG of grey or RGB"):
        imaging.read_png(path)
    imaging.write_png(path, torch.rand(3, 40, 40))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=f"cannot read {path}"):
        imaging.read_png(path)
    for image, options, said in (
        (torch.zeros(2, 3, 3), {}, r"expected floats \(H, W\)"),
        (torch.zeros(3, 3, dtype=torch.uint8), {}, "expected floats"),
        (torch.zeros(3, 3, 3), {"bits": 16}, "8 bits, or 16 in grey"),
        (torch.zeros(3, 3), {"window": (1.0, 1.0)}, "expected low < high"),
        (torch.full((3, 3), torch.nan), {}, "not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            imaging.write_png(path, image, **options)
