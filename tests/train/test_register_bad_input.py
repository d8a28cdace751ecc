"""What the command `register` is given by mistake: words and an exit status of 1, never a black image in silence."""

import re

import nibabel
import numpy as np
import pytest
import torch

from tests.imaging.register.phantoms import D, texture, turned
from torchimplicit import imaging
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.register import run as module

SIZE = (16, 18, 14)
AFFINE = torch.diag(torch.tensor([-2.0, 2.0, 2.0, 1.0], dtype=D))


def save(folder, name, data, affine=AFFINE):
    file = nibabel.Nifti1Image(np.asarray(data), None if affine is None else affine.numpy())
    if affine is None:
        file.header.set_sform(None, code=0)
        file.header.set_qform(None, code=0)
    nibabel.save(file, folder / name)


@pytest.fixture
def files(tmp_path):
    """Good ones of every sort, and bad ones by name."""
    x = texture(*SIZE)[0, 0].float().numpy()
    labels = (x > 0.5).astype(np.uint8)
    hole = x.copy()
    hole[3, 3, 3] = np.nan
    elsewhere = AFFINE.clone()
    elsewhere[0, 3] = 500.0
    for name, data, affine in (
        ("fixed.nii", x, AFFINE),
        ("moving.nii", np.roll(x, 1, 0), AFFINE),
        ("double.nii", np.roll(x, 1, 0).astype(np.float64), AFFINE),
        ("constant.nii", 0 * x + 7, AFFINE),
        ("empty.nii", 0 * x, AFFINE),
        ("hole.nii", hole, AFFINE),
        ("elsewhere.nii", x, elsewhere),
        ("nowhere.nii", x, None),
        ("series.nii", np.stack([x] * 3, -1), AFFINE),
        ("complex.nii", x.astype(np.complex64), AFFINE),
        ("slice.nii", x[:, :, :1], AFFINE),
        ("labels.nii", labels, AFFINE),
        ("no-labels.nii", 0 * labels, AFFINE),
        ("floats.nii", labels.astype(np.float32), AFFINE),
        ("halves.nii", labels * np.float32(0.5), AFFINE),
        ("short-labels.nii", labels[1:], AFFINE),
        ("moved-labels.nii", labels, elsewhere),
    ):
        save(tmp_path, name, data, affine)
    imaging.write_png(tmp_path / "grey.png", texture(24, 20)[0, 0].float() / 8 + 0.5)
    imaging.write_png(tmp_path / "colour.png", torch.rand(3, 24, 20))
    u = torch.zeros(*SIZE, 3)
    for name, field in (
        ("field", Image(u, AFFINE)),
        ("short-field", Image(u[1:], AFFINE)),
        ("moved-field", Image(u, elsewhere)),
        ("nan-field", Image(torch.where(torch.arange(u.numel()).view_as(u) == 5, torch.nan, u), AFFINE)),
        ("flat-field", u[:2, :, :, 0].contiguous()),
    ):
        imaging.write_displacement(tmp_path / f"{name}.nii", field)
    flat = register.Linear(turned(0.1, (0.0, 0.0, 0.0), (0, 0, 0)))
    imaging.write_transform(tmp_path / "flat.tfm", flat)
    text = (tmp_path / "flat.tfm").read_text().splitlines()
    text[3] = "Parameters: 1 0 0 2 0 0 0 0 1 0 0 0"
    (tmp_path / "singular.tfm").write_text("\n".join(text))
    imaging.write_transform(tmp_path / "two.tfm", register.Linear(torch.eye(3, dtype=D)[None]))
    (tmp_path / "text.nii").write_text("this is no image")
    return tmp_path


def run(folder, *words):
    """Every word that has a dot is a file in the folder."""
    return main(["register", *[str(folder / word) if "." in word else word for word in words]])


OUT = ("--out", "out.nii", "--report", "report.html")
BAD = {  # fixed, moving and options; what is said
    "no overlap": (
        ("fixed.nii", "elsewhere.nii"),
        "affine ended infeasible, nothing was written. .*try --initial centers",
    ),
    "constant": (("fixed.nii", "constant.nii"), "infeasible, nothing was written. .*the moving image is constant"),
    "empty": (("empty.nii", "moving.nii"), "infeasible, nothing was written. .*the fixed image is constant"),
    "not finite": (("fixed.nii", "hole.nii"), "non_finite, nothing was written. .*1 values that are NaN"),
    "no affine": (("fixed.nii", "nowhere.nii"), "nowhere.nii: neither sform nor qform.*set_sform"),
    "four dimensions": (("series.nii", "moving.nii"), r"series.nii: got \(16, 18, 14, 3\), 3 volumes, expected one"),
    "complex": (("complex.nii", "moving.nii"), "complex.nii: got complex values, expected real ones. Try their magn"),
    "one slice": (("slice.nii", "slice.nii"), r"got a single voxel along axis 2"),
    "a picture on a volume": (("fixed.nii", "grey.png"), "got a picture and a volume, expected two of as many dim"),
    "grey on colour": (("colour.png", "grey.png"), "expected as many dimensions, samples and channels"),
    "no file": (("fixed.nii", "absent.nii"), "cannot read .*absent.nii: no such file"),
    "no image": (("text.nii", "moving.nii"), "cannot read .*text.nii"),
    "no such kind of file": (
        ("fixed.jpg", "moving.nii"),
        r"fixed.jpg: expected a volume, .nii or .nii.gz, or a picture",
    ),
    "no kind": (("fixed.nii", "moving.nii", "--kind", "magic"), "--kind magic: expected one of rigid, similarity"),
    "no start": (("fixed.nii", "moving.nii", "--initial", "middle"), "cannot read middle: no such file"),
    "singular start": (("fixed.nii", "moving.nii", "--initial", "singular.tfm"), "singular.tfm: .*singular"),
    "start in 2-D": (("fixed.nii", "moving.nii", "--initial", "two.tfm"), r"expected \(1, 4, 4\)"),
    "no similarity": (("fixed.nii", "moving.nii", "--similarity", "cc"), "--similarity cc: expected one of ncc, lncc"),
    "a similarity that a kind does not know": (
        ("fixed.nii", "moving.nii", "--similarity", "mi"),
        "--kind velocity compares by one of lncc, ssd. Images of different kinds.*--kind rigid --similarity mi",
    ),
    "a field for a linear kind": (
        ("fixed.nii", "moving.nii", "--initial", "field.nii", "--kind", "rigid"),
        "--kind rigid is linear and starts from a .tfm or .txt",
    ),
    "a field that is none": (
        ("fixed.nii", "moving.nii", "--initial", "labels.nii"),
        "cannot read .*labels.nii.*intent",
    ),
    "a field of a grid": (
        ("fixed.nii", "moving.nii", "--initial", "short-field.nii"),
        "short-field.nii: got 15 x 18 x 14, expected 16 x 18 x 14 as the fixed image",
    ),
    "a field elsewhere": (
        ("fixed.nii", "moving.nii", "--initial", "moved-field.nii"),
        "moved-field.nii: got the affine .* that of the fixed image.*the field lies elsewhere",
    ),
    "a field that is not finite": (
        ("fixed.nii", "moving.nii", "--initial", "nan-field.nii"),
        "nan-field.nii: got 1 values that are NaN or infinite",
    ),
    "a picture's field": (
        ("fixed.nii", "moving.nii", "--initial", "flat-field.nii"),
        "flat-field.nii: got a picture's field, expected one of as many dimensions",
    ),
    "a mask of a grid": (
        ("fixed.nii", "moving.nii", "--fixed-mask", "short-labels.nii"),
        "short-labels.nii: got 15 x 18 x 14, expected 16 x 18 x 14 as the fixed image",
    ),
    "a mask elsewhere": (
        ("fixed.nii", "moving.nii", "--moving-mask", "moved-labels.nii"),
        "moved-labels.nii: got the affine .* that of the moving image.*the mask lies elsewhere",
    ),
    "a mask that is none": (
        ("fixed.nii", "moving.nii", "--fixed-mask", "hole.nii"),
        "hole.nii: got values that are negative or not finite, expected a mask",
    ),
    "a mask of nothing": (
        ("fixed.nii", "moving.nii", "--moving-mask", "no-labels.nii"),
        "affine ended infeasible, nothing was written. .*the mask of the moving image leaves nothing of it",
    ),
    "no steps": (("fixed.nii", "moving.nii", "--max-steps", "0"), "--max-steps 0: expected a number >= 1"),
    "labels of halves": (("fixed.nii", "moving.nii", "--labels", "halves.nii"), "halves.nii: got values such as 0.5"),
    "no labels": (("fixed.nii", "moving.nii", "--labels", "no-labels.nii"), "no-labels.nii: got no label but 0"),
    "labels of a grid": (
        ("fixed.nii", "moving.nii", "--labels", "short-labels.nii"),
        "short-labels.nii: got 15 x 18 x 14, expected 16 x 18 x 14 as the moving image",
    ),
    "labels elsewhere": (
        ("fixed.nii", "moving.nii", "--labels", "labels.nii", "--fixed-labels", "moved-labels.nii"),
        "moved-labels.nii: got the affine .* that of the fixed image.*lie elsewhere",
    ),
    "labels of a picture": (
        ("fixed.nii", "moving.nii", "--labels", "grey.png"),
        "grey.png: got 24 x 20, expected 16 x 18 x 14",
    ),
    "fixed labels alone": (
        ("fixed.nii", "moving.nii", "--fixed-labels", "labels.nii"),
        "--fixed-labels .*: expected --labels",
    ),
    "transform of a field": (
        ("fixed.nii", "moving.nii", "--transform", "x.tfm"),
        "is no linear transform. Try --field",
    ),
    "a field as text": (
        ("fixed.nii", "moving.nii", "--field", "x.tfm"),
        "--field .*: expected a name that ends in .nii",
    ),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_it_says_so_and_writes_nothing(files, words, said, capsys):
    before = sorted(files.iterdir())
    assert run(files, *words, *(() if words[0] == "colour.png" else OUT)) == 1
    printed = capsys.readouterr()
    assert re.search(said, printed.err.replace("\n", " ")), printed.err
    assert "converged" not in printed.out
    assert sorted(files.iterdir()) == before


def test_what_looks_bad_and_is_not(files, capsys):
    """Doubles beside singles, and labels that are whole numbers in floats."""
    words = ("--labels", "floats.nii", "--out-labels", "out.nii", "--kind", "rigid")
    assert run(files, "fixed.nii", "double.nii", *words) == 0
    assert set(imaging.read_nifti(files / "out.nii").data.unique().tolist()) == {0, 1}
    assert run(files, "fixed.nii", "elsewhere.nii", "--kind", "rigid", "--initial", "centers") == 0
    seen = np.ones(SIZE, np.uint8)
    seen[3, 3, 3] = 0  # what is no number there does not count
    save(files, "seen.nii", seen)
    assert run(files, "fixed.nii", "hole.nii", "--kind", "rigid", "--moving-mask", "seen.nii") == 0
    capsys.readouterr()


def test_a_grid_that_itk_does_not_read_is_told(files, capsys):
    image = imaging.read_nifti(files / "fixed.nii")
    for lean, told in ((0.0, False), (0.2, True)):
        affine = image.affine.clone()
        affine[0, 1] = lean
        imaging.write_nifti(files / "leaning.nii", Image(image.data, affine))
        assert run(files, "leaning.nii", "moving.nii", "--kind", "rigid", "--max-steps", "1") in (0, 1)
        assert ("not at right angles" in capsys.readouterr().out) == told


def test_a_folder_that_cannot_be_made_fails_before_work_starts(files, capsys):
    (files / "file.d").write_text("no folder")
    words = ("--report", "file.d/report.html")
    assert run(files, "fixed.nii", "moving.nii", *words) == 1
    said = capsys.readouterr()
    assert "file.d" in said.err
    assert said.out == ""


def test_a_field_that_folds_has_no_inverse(files, monkeypatch, capsys):
    """And the rest is written all the same."""

    def folding(fixed, moving, kind, **options):
        found = align(fixed, moving, kind, **options)
        grid = found.fixed
        u = torch.zeros(1, 3, *grid.size)
        u[:, 0, 8:] = -2.0
        first = register.Displacement(u, grid)
        return register.Registration(first.then(found.transform), grid, found.moving, found.report)

    align = module.align
    monkeypatch.setattr(module, "align", folding)
    words = ("--kind", "affine", "--inverse", "back.nii", "--field", "field.nii", "--report", "report.html")
    assert run(files, "fixed.nii", "moving.nii", *words) == 1
    said = capsys.readouterr()
    assert "--inverse ended infeasible and was not written" in said.err
    assert "turns space over, where it has no inverse" in said.err
    assert "folds: 504 of 4032 voxels" in said.out
    assert (files / "field.nii").exists()
    assert not (files / "back.nii").exists()
    assert "504 of 4032" in (files / "report.html").read_text()


def test_fields_of_another_grid_are_refused():
    grid = Grid(SIZE, AFFINE)
    with pytest.raises(ValueError, match=r"Displacement: got vectors \(1, 3, 4, 4, 4\) on a grid \(16, 18, 14\)"):
        register.Displacement(torch.zeros(1, 3, 4, 4, 4), grid)
    image = Image(texture(*SIZE)[0, 0], AFFINE)
    found = register.align(image, image, register.Rigid())
    with pytest.raises(ValueError, match="expected one on the moving grid"):
        found.warp(Image(image.data, 2 * AFFINE + torch.diag(torch.tensor([0, 0, 0, -1.0]))))
    with pytest.raises(ValueError, match=r"got fields .* expected two of one grid"):
        register.compose(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 4))
