"""Linear transforms in ITK's text: what it writes is read, what is written it reads, and the rest is refused."""

import pytest
import torch

from torchimplicit import imaging
from torchimplicit.imaging import DataError, register

D = torch.float64


def transform(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(space + 1, dtype=D)
    matrix[:-1] += 0.2 * torch.randn(space, space + 1, dtype=D, generator=generator)
    return register.Linear(matrix[None])


def points(space, count=5):
    return torch.randn(1, count, space, dtype=D, generator=torch.Generator().manual_seed(1))


def turned(x):
    """Points as ITK has them: LPS, or columns first."""
    return x.flip(-1) if x.shape[-1] == 2 else x * torch.tensor([-1, -1, 1])


@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("suffix", [".tfm", ".txt"])
def test_itk_reads_what_is_written(tmp_path, space, suffix):
    sitk = pytest.importorskip("SimpleITK")
    ours, x = transform(space), points(space)
    imaging.write_transform(tmp_path / f"found{suffix}", ours)
    theirs = sitk.ReadTransform(str(tmp_path / f"found{suffix}"))
    moved = torch.tensor([theirs.TransformPoint(each) for each in turned(x[0]).tolist()], dtype=D)
    assert torch.allclose(turned(moved), ours(x)[0], atol=1e-12)
    assert torch.allclose(imaging.read_transform(tmp_path / f"found{suffix}").matrix, ours.matrix, atol=1e-15)


@pytest.mark.parametrize("space", [2, 3])
def test_what_itk_writes_is_read(tmp_path, space):
    """With a center, which it counts from."""
    sitk = pytest.importorskip("SimpleITK")
    theirs = sitk.AffineTransform(space)
    theirs.SetMatrix((torch.eye(space) + 0.3 * torch.randn(space, space)).double().flatten().tolist())
    theirs.SetCenter([4.0, -5.0, 6.0][:space])
    theirs.SetTranslation([1.0, 2.0, 3.0][:space])
    sitk.WriteTransform(theirs, str(tmp_path / "theirs.tfm"))
    ours, x = imaging.read_transform(tmp_path / "theirs.tfm"), points(space)
    moved = torch.tensor([theirs.TransformPoint(each) for each in turned(x[0]).tolist()], dtype=D)
    assert torch.allclose(turned(ours(x)[0]), moved, atol=1e-12)


HEAD = "#Insight Transform File V1.0\n#Transform 0\n"
TWO = "Transform: AffineTransform_double_2_2\nParameters: {}\nFixedParameters: 0 0\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("", "it starts with ''"),
        ("1 0 0\n0 1 0\n", "it starts with '1 0 0"),
        (HEAD, "it holds no transform"),
        (
            HEAD + "Transform: Euler2DTransform_double_2_2\nParameters: 0 0 0\nFixedParameters: 0 0\n",
            "Euler2D.*try Simp",
        ),
        (HEAD + 2 * TWO.format("1 0 0 1 0 0"), "it holds AffineTransform_double_2_2, AffineTransform_double_2_2"),
        (HEAD + TWO.format("1 0 0 1 0"), "it holds 5 parameters, expected 6 finite numbers"),
        (HEAD + TWO.format("1 0 0 nan 0 0"), "finite"),
        (HEAD + TWO.format("1 0 0 one 0 0"), "could not convert"),
        (HEAD + TWO.format("1 2 2 4 0 0"), r"singular"),
    ],
)
def test_what_is_no_such_transform_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "x.tfm").write_text(text)
    with pytest.raises(DataError, match=rf"read_transform: cannot read {tmp_path / 'x.tfm'}: .*{said}"):
        imaging.read_transform(tmp_path / "x.tfm")
    (tmp_path / "x.tfm").write_bytes(b"\x80\x81")
    with pytest.raises(DataError, match=r"x\.tfm"):
        imaging.read_transform(tmp_path / "x.tfm")


def test_what_cannot_be_written_is_refused(tmp_path):
    good = transform(3)
    with pytest.raises(ValueError, match=r"a path that ends in \.tfm or \.txt"):
        imaging.write_transform(tmp_path / "x.mat", good)
    with pytest.raises(TypeError, match="got a Chain, expected a Linear one; try write_displacement"):
        imaging.write_transform(tmp_path / "x.tfm", register.Chain((good,)))
    with pytest.raises(ValueError, match="expected one sample"):
        imaging.write_transform(tmp_path / "x.tfm", register.Linear(good.matrix.expand(2, -1, -1)))
    flat = good.matrix.clone()
    flat[0, 0] = flat[0, 1]
    with pytest.raises(ValueError, match="singular"):
        imaging.write_transform(tmp_path / "x.tfm", register.Linear(flat))
    assert list(tmp_path.iterdir()) == []
