"""The command `register`: what it finds, what it writes and others read, and what it says when it cannot."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.imaging.register.phantoms import D, moved, texture, turned
from torchimplicit import imaging
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.register.order import KINDS, Order
from torchimplicit.train.command.register.volumes import read_field

SIZE, OTHER = (24, 22, 20), (22, 24, 26)
FIXED = torch.tensor([[-2.0, 0, 0, 20], [0, 2.0, 0, -25], [0, 0, 2.5, -30], [0, 0, 0, 1]], dtype=D)
AXES = torch.tensor([[0, 0, 2.2, -28.0], [2.1, 0, 0, -24], [0, -2.0, 0, 20], [0, 0, 0, 1]], dtype=D)
MOVING = turned(0.2, (0.0, 0.0, 0.0), (0, 0, 0))[0] @ AXES  # oblique; ITK knows no shear
TRUTH = register.Linear(turned(0.12, (2.0, -1.5, 1.0), (0, 0, 0)))


def run(*words):
    return main(["register", *map(str, words)])


def labelled(image):
    """Two labels of an image's values."""
    return (image > 0.5).long() + (image > 1.5).long()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two volumes on grids of their own, one of them moved by what is known, with labels."""
    folder = tmp_path_factory.mktemp("pair")
    fine = Grid(SIZE, FIXED)
    fixed = texture(*SIZE, width=2.5)
    points = TRUTH.inverse()(Grid(OTHER, MOVING).points(fixed)[None])
    moving = register.sample(fixed, fine.voxels_of(points).mT.unflatten(2, OTHER), interpolation="cubic")
    for name, image, affine in (("fixed", fixed, FIXED), ("moving", moving, MOVING)):
        imaging.write_nifti(folder / f"{name}.nii.gz", Image(image[0, 0].float(), affine))
        imaging.write_nifti(folder / f"{name}-labels.nii", Image(labelled(image[0, 0]).short(), affine))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same in two dimensions."""
    folder = tmp_path_factory.mktemp("pictures")
    fixed = texture(40, 32, width=3.0)
    truth = register.Linear(turned(0.1, (2.0, -1.0), (19.5, 15.5)))
    for name, image in (("fixed", fixed), ("moving", moved(fixed, truth, Grid.of(fixed)))):
        grey = (image[0, 0] / 8 + 0.5).clamp(0, 1)
        imaging.write_png(folder / f"{name}.png", grey, bits=16)
        imaging.write_png(folder / f"{name}-labels.png", labelled(image[0, 0]).double() / 255)
    return folder, truth


def off(result, truth, grid):
    """Of the found transform, in units of the world, where the image has something to see."""
    points = grid.points(torch.zeros((), dtype=D))[None]
    middle = (points - grid.center).norm(dim=2) < 12
    return float(register.target_error(result(points), truth(points))[middle].mean())


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_linear_kinds_write_a_transform_that_itk_reads(pair, tmp_path, kind, capsys):
    sitk = pytest.importorskip("SimpleITK")
    words = ("--kind", kind, "--transform", tmp_path / "found.tfm", "--out", tmp_path / "warped.nii.gz")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    assert re.search(rf"{kind}: converged, \d+, \d\.\de-\d+, \d+, \d+\.\d s", capsys.readouterr().out)
    found = imaging.read_transform(tmp_path / "found.tfm")
    assert off(found, TRUTH, Grid(SIZE, FIXED)) < 0.2  # millimetres, of voxels of 2
    fixed, moving, warped = (sitk.ReadImage(str(each)) for each in _volumes(pair, tmp_path))
    itk = sitk.ReadTransform(str(tmp_path / "found.tfm"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, itk, sitk.sitkLinear, -100.0))
    _same_inside(sitk.GetArrayFromImage(warped), theirs)


def _volumes(pair, folder):
    return pair / "fixed.nii.gz", pair / "moving.nii.gz", folder / "warped.nii.gz"


def _same_inside(ours, theirs):
    """But where ITK has nothing."""
    inside = theirs > -99
    assert inside.mean() > 0.6
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4)


@pytest.mark.parametrize("kind", ["affine", "demons", "velocity"])
def test_a_field_is_one_for_itk(pair, tmp_path, kind):
    """Their resampling of the moving image by our field is our warped image."""
    sitk = pytest.importorskip("SimpleITK")
    words = ("--kind", kind, "--field", tmp_path / "field.nii.gz", "--out", tmp_path / "warped.nii.gz")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    fixed, moving, warped = (sitk.ReadImage(str(each)) for each in _volumes(pair, tmp_path))
    field = sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64)
    itk = sitk.DisplacementFieldTransform(field)
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, itk, sitk.sitkLinear, -100.0))
    _same_inside(sitk.GetArrayFromImage(warped), theirs)
    ours = imaging.read_nifti(tmp_path / "warped.nii.gz")
    assert torch.corrcoef(torch.stack((ours.data.flatten(), _data(pair / "fixed.nii.gz").flatten())))[0, 1] > 0.98


def _data(path):
    return imaging.read_nifti(path).data


@pytest.mark.parametrize("kind", ["rigid", "velocity"])
def test_pictures_and_their_fields_are_those_of_itk(pictures, tmp_path, kind):
    sitk = pytest.importorskip("SimpleITK")
    folder, truth = pictures
    files = folder / "fixed.png", folder / "moving.png"
    linear = ("--transform", tmp_path / "found.txt") if kind == "rigid" else ()
    words = ("--kind", kind, "--field", tmp_path / "field.nii", "--out", tmp_path / "warped.png", *linear)
    assert run(*files, *words) == 0
    fixed, moving = (sitk.ReadImage(str(each), sitk.sitkFloat32) for each in files)
    transforms = [sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii"), sitk.sitkVectorFloat64))]
    if linear:
        transforms.append(sitk.ReadTransform(str(tmp_path / "found.txt")))
        found = imaging.read_transform(tmp_path / "found.txt")
        assert off(found, truth, Grid.of(texture(40, 32))) < 0.05
    for itk in transforms:
        theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, itk, sitk.sitkLinear, -65535.0)) / 65535
        ours = imaging.read_png(tmp_path / "warped.png")[0].numpy()
        inside = theirs >= 0
        assert inside.mean() > 0.6
        np.testing.assert_allclose(ours[inside], theirs[inside], atol=1 / 255)  # ours is written in eight bits


def test_labels_are_warped_and_compared(pair, tmp_path, capsys):
    words = ("--labels", pair / "moving-labels.nii", "--fixed-labels", pair / "fixed-labels.nii")
    words = (*words, "--out-labels", tmp_path / "labels.nii", "--report", tmp_path / "report.html", "--kind", "rigid")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    found, truth = _data(tmp_path / "labels.nii"), _data(pair / "fixed-labels.nii")
    assert found.dtype == torch.int32
    assert set(found.unique().tolist()) == {0, 1, 2}
    expected = register.dice(found[None, None], truth[None, None].int(), [1, 2])
    before, after = re.search(r"Dice: (\S+) before, (\S+) after", capsys.readouterr().out).groups()
    assert float(after) == pytest.approx(float(expected.mean()), abs=1e-3)
    assert float(after) > float(before) + 0.2
    page = (tmp_path / "report.html").read_text()
    assert f"<td>2</td><td>{_before(pair):.3f}</td><td>{float(expected[0, 1]):.3f}</td>" in page


def _before(pair):
    """The Dice of label 2 as the files lie, counted by hand."""
    moving, truth = (imaging.read_nifti(pair / f"{name}-labels.nii") for name in ("moving", "fixed"))
    at = moving.voxels(Grid(SIZE, FIXED).points(torch.zeros((), dtype=D))).round().long()
    at = torch.stack([at[:, axis].clamp(0, n - 1) for axis, n in enumerate(OTHER)])
    a, b = moving.data[tuple(at)] == 2, truth.data.flatten() == 2
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_labels_of_pictures(pictures, tmp_path):
    folder, _ = pictures
    words = ("--labels", folder / "moving-labels.png", "--fixed-labels", folder / "fixed-labels.png")
    words = (*words, "--out-labels", tmp_path / "labels.png", "--kind", "rigid", "--report", tmp_path / "report.html")
    assert run(folder / "fixed.png", folder / "moving.png", *words) == 0
    found = (255 * imaging.read_png(tmp_path / "labels.png")).round().long()
    assert set(found.unique().tolist()) == {0, 1, 2}
    assert "40 x 32, 1 x 1 pixels" in (tmp_path / "report.html").read_text()


def test_the_report_says_and_shows_what_was_found(pair, tmp_path):
    words = ("--report", tmp_path / "deep" / "report.html", "--inverse", tmp_path / "back.nii.gz")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    page = (tmp_path / "deep" / "report.html").read_text()
    assert page.count("<td>converged</td>") == 2
    assert "22 x 24 x 26, 2.1 x 2 x 2.2 mm) onto" in page
    assert "voxels that fold</td><td>0 of 10560" in page
    assert page.count("data:image/png;base64") == 2
    before, after = re.search(r"before and after</td><td>(\S+), (\S+)</td>", page).groups()
    assert float(before) < 0.9 < float(after)


def test_the_inverse_leads_back(pair, tmp_path, capsys):
    words = ("--kind", "velocity", "--field", tmp_path / "field.nii.gz", "--inverse", tmp_path / "back.nii.gz")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    said = capsys.readouterr().out
    rms, most = map(float, re.search(r"ends (\S+) mm from the start by RMS, (\S+) mm", said).groups())
    assert rms < 0.05
    assert rms <= most
    there, back = (imaging.read_displacement(tmp_path / f"{name}.nii.gz") for name in ("field", "back"))
    points = Grid(OTHER, MOVING).points(torch.zeros((), dtype=D))
    at = points + back.data.reshape(-1, 3)
    voxels = there.voxels(at).T[None]
    inside = ((voxels >= 0) & (voxels <= torch.tensor(SIZE).view(1, 3, 1) - 1)).all(1)[0]
    away = at + register.sample(there.data.movedim(3, 0)[None].double(), voxels)[0].T - points
    assert inside.float().mean() > 0.5
    assert float(away[inside].norm(dim=1).square().mean().sqrt()) < 0.1  # what is stored is at voxels alone


def test_a_transform_is_where_the_next_one_starts(pair, tmp_path, capsys):
    imaging.write_transform(tmp_path / "start.tfm", TRUTH)
    words = ("--kind", "rigid", "--transform", tmp_path / "found.tfm")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    far = int(re.search(r"rigid: converged, (\d+)", capsys.readouterr().out)[1])
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words, "--initial", tmp_path / "start.tfm") == 0
    near = int(re.search(r"rigid: converged, (\d+)", capsys.readouterr().out)[1])
    assert near <= far
    assert off(imaging.read_transform(tmp_path / "found.tfm"), TRUTH, Grid(SIZE, FIXED)) < 0.1


@pytest.mark.parametrize(("kind", "similarity"), [("demons", "ssd"), ("bspline", "ncc"), ("variational", "lncc")])
def test_free_kinds_and_similarities_bring_pictures_together(pictures, tmp_path, kind, similarity, capsys):
    folder, _ = pictures
    words = ("--labels", folder / "moving-labels.png", "--fixed-labels", folder / "fixed-labels.png")
    assert run(folder / "fixed.png", folder / "moving.png", "--kind", kind, "--similarity", similarity, *words) == 0
    said = capsys.readouterr().out
    assert re.search(rf"affine: converged.*\n{kind}: converged", said)
    before, after = map(float, re.search(r"Dice: (\S+) before, (\S+) after", said).groups())
    assert after > max(0.8, before + 0.1)


def test_a_negative_is_found_by_mutual_information(pictures, tmp_path):
    folder, truth = pictures
    imaging.write_png(tmp_path / "negative.png", 1 - imaging.read_png(folder / "fixed.png")[0].square(), bits=16)
    words = ("--kind", "rigid", "--similarity", "mi", "--transform", tmp_path / "found.txt")
    assert run(tmp_path / "negative.png", folder / "moving.png", *words) == 0
    assert off(imaging.read_transform(tmp_path / "found.txt"), truth, Grid.of(texture(40, 32))) < 0.3


def test_a_mask_hides_an_artefact(pictures, tmp_path):
    folder, truth = pictures
    grey, mask = imaging.read_png(folder / "fixed.png")[0], torch.ones(40, 32)
    grey[14:24, 18:26], mask[14:24, 18:26] = 1.0, 0.0
    imaging.write_png(tmp_path / "bright.png", grey, bits=16)
    imaging.write_png(tmp_path / "mask.png", mask)
    words = ("--kind", "rigid", "--transform", tmp_path / "found.txt")
    away = []
    for hidden in ((), ("--fixed-mask", tmp_path / "mask.png")):
        run(tmp_path / "bright.png", folder / "moving.png", *words, *hidden)
        away.append(off(imaging.read_transform(tmp_path / "found.txt"), truth, Grid.of(texture(40, 32))))
    assert away[1] < 0.1 < away[0]


def test_a_similarity_goes_to_every_stage_that_knows_it():
    def names(kind, similarity=None):
        stages = Order(Path("a.nii"), Path("b.nii"), kind, similarity).stages()
        return [type(each.similarity).__name__ for each in stages.values()]

    assert names("velocity") == ["NCC", "LNCC"]
    assert names("velocity", "ssd") == ["SSD", "SSD"]
    assert names("bspline", "lncc") == ["NCC", "LNCC"]
    assert names("bspline", "mi") == ["MutualInformation"] * 2


@pytest.mark.parametrize("kind", ["demons", "velocity", "variational"])
def test_a_field_is_where_a_deformation_starts(pictures, tmp_path, kind, capsys):
    """In place of the affine stage, and near the end; what is found is the same."""
    folder, _ = pictures
    files, field = (folder / "fixed.png", folder / "moving.png", "--kind", kind), tmp_path / "first.nii.gz"
    assert run(*files, "--field", field) == 0
    far = int(re.search(rf"{kind}: converged, (\d+)", capsys.readouterr().out)[1])
    assert run(*files, "--initial", field, "--field", tmp_path / "second.nii.gz", "--report", tmp_path / "r.html") == 0
    said = capsys.readouterr().out
    assert "affine" not in said
    assert int(re.search(rf"{kind}: converged, (\d+)", said)[1]) <= far
    first, second = (imaging.read_displacement(each) for each in (field, tmp_path / "second.nii.gz"))
    assert float((first - second).norm(dim=0)[8:-8, 8:-8].mean()) < 0.2  # pixels
    assert f"from {field}" in (tmp_path / "r.html").read_text()


def test_the_linear_part_of_a_field_is_apart_from_the_rest(pair, tmp_path):
    """In a volume, in millimetres: of a rigid field it is all."""
    words = ("--kind", "rigid", "--field", tmp_path / "field.nii.gz", "--transform", tmp_path / "found.tfm")
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 0
    start = read_field(tmp_path / "field.nii.gz", imaging.read_nifti(pair / "fixed.nii.gz"), "fixed")
    rest, base = start.parts
    found = imaging.read_transform(tmp_path / "found.tfm")
    torch.testing.assert_close(base.matrix, found.matrix, atol=1e-4, rtol=0)
    assert rest.vectors.abs().max() < 1e-4
    points = torch.tensor([[[3.0, -4, 2], [10, 5, -6]]], dtype=D)
    torch.testing.assert_close(start(points), found(points), atol=1e-3, rtol=0)


def test_what_did_not_converge_is_written_said_and_an_error(pair, tmp_path, capsys):
    words = (
        "--kind",
        "velocity",
        "--max-steps",
        1,
        "--out",
        tmp_path / "out.nii",
        "--report",
        tmp_path / "report.html",
    )
    assert run(pair / "fixed.nii.gz", pair / "moving.nii.gz", *words) == 1
    said = capsys.readouterr().err
    assert "velocity ended max_steps. What was written is as far as it came" in said
    assert "--max-steps" in said
    assert _data(tmp_path / "out.nii").std() > 0.1
    assert "<td>max_steps</td>" in (tmp_path / "report.html").read_text()


def test_every_kind_is_told_of_in_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert [kind for kind in KINDS if kind not in said] == []


def save(folder, name, data, affine=FIXED):
    nibabel.save(nibabel.Nifti1Image(np.asarray(data), None if affine is None else np.asarray(affine)), folder / name)
    return folder / name
