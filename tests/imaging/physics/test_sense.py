"""Coils: what scanners and other libraries measure, bad maps and masks."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.physics.dense import normal

im, C = ti.imaging, torch.complex128
MAPS, SOME = torch.ones(2, 4, 6, dtype=torch.complex64), torch.ones(4, 6, dtype=torch.bool)


def test_the_transform_is_centred_and_orthonormal():
    """Written as the sum that it stands for, for odd and even sizes."""
    x = normal(2, 4, 5, dtype=C)
    found = im.fftc(x)
    for n, axis in ((4, 1), (5, 2)):
        place = torch.arange(n, dtype=torch.float64) - n // 2
        turn = torch.exp(-2j * torch.pi * place[:, None] * place / n) / n**0.5
        x = torch.tensordot(x, turn, dims=([axis], [1])).movedim(-1, axis)
    assert torch.allclose(found, x, atol=1e-13)
    assert torch.allclose(im.ifftc(found), normal(2, 4, 5, dtype=C), atol=1e-13)
    assert torch.allclose(im.fftc(im.fftc(found, (-2,)), (-1,)), im.fftc(found), atol=1e-13)


def test_a_coil_of_ones_is_the_single_coil():
    x, mask = normal(3, 4, 6, dtype=C), im.cartesian(6, 2, 0.2)
    many, one = im.Sense(torch.ones(1, 4, 6, dtype=C), mask), im.Fourier(mask)
    y = one.A(x)
    assert torch.equal(many.A(x)[:, 0], y)
    assert torch.allclose(many.gram(x), one.gram(x), atol=1e-14)
    close = ti.CG(rtol=1e-12)
    assert torch.allclose(many.prox(x, many.A(x), 0.5, solver=close), one.prox(x, y, 0.5), atol=1e-10)
    assert torch.equal(one.gram(x) != one.A_adjoint(y), torch.zeros_like(x, dtype=torch.bool)) or torch.allclose(
        one.gram(x), one.A_adjoint(y), atol=1e-14
    )


def test_a_mask_of_ones_gives_the_truth_back():
    x, maps = normal(2, 4, 6, dtype=C), normal(3, 4, 6, dtype=C, seed=1)
    op = im.Sense(maps)
    assert torch.allclose(op.A_dagger(op.A(x), solver=ti.CG(rtol=1e-12)), x, atol=1e-9)
    assert torch.allclose(im.Fourier().A_dagger(im.Fourier().A(x)), x, atol=1e-14)


def test_maps_of_zero_somewhere_leave_zeros_there():
    maps, x = normal(3, 4, 6, dtype=C), normal(1, 4, 6, dtype=C, seed=1)
    maps[:, :, :2] = 0
    op = im.Sense(maps)
    found = op.A_dagger(op.A(x), solver=ti.CG(rtol=1e-12), on_failure="raise")
    assert torch.equal(found[..., :2], torch.zeros_like(found[..., :2]))
    assert torch.allclose(found[..., 2:], x[..., 2:], atol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: im.Sense(MAPS, SOME.long()),
            TypeError,
            r"Sense\(mask=...\): got a tensor of torch.int64.*mask > 0",
        ),
        (lambda: im.Sense(MAPS, "lines"), TypeError, r"got a str, expected a tensor of torch.bool"),
        (lambda: im.Sense(MAPS, ~SOME), ValueError, "got a mask that shows nothing, expected some entries"),
        (lambda: im.Sense(MAPS, torch.stack([SOME, ~SOME])), ValueError, "shows nothing"),
        (lambda: im.Sense(MAPS, SOME.T), ValueError, r"shape \(6, 4\) with maps \(2, 4, 6\), expected .*\(B, 4, 6\)"),
        (lambda: im.Sense(MAPS, SOME.expand(2, 3, 4, 6)), ValueError, r"expected one that broadcasts to \(B, 4, 6\)"),
        (
            lambda: im.Sense(MAPS.expand(3, 2, 4, 6), SOME.expand(2, 4, 6)),
            ValueError,
            r"got shape \(2, 4, 6\) with maps \(3, 2, 4, 6\)",
        ),
        (lambda: im.Sense(torch.zeros_like(MAPS)), ValueError, r"Sense\(maps=...\): got zeros alone"),
        (lambda: im.Sense(MAPS * torch.nan), ValueError, "got 48 entries that are NaN or infinite.*nan_to_num"),
        (lambda: im.Sense(MAPS[0]), ValueError, r"expected \(C, H, W\) or \(B, C, H, W\); try maps\[None\]"),
        (lambda: im.Sense(MAPS.real.int()), TypeError, r"got a tensor of torch.int32, expected a complex one"),
        (lambda: im.Sense(MAPS).A(MAPS[:, :3]), ValueError, r"got images \(2, 3, 6\), expected \(B, 4, 6\)"),
        (lambda: im.Sense(MAPS).A(torch.ones(1, 4, 6).int()), TypeError, "images that are a tensor of torch.int32"),
        (lambda: im.Sense(MAPS).A_adjoint(MAPS), ValueError, r"measurements \(2, 4, 6\), expected \(B, 2, 4, 6\)"),
        (lambda: im.Sense(MAPS, dims=(0, 1)), ValueError, r"Fourier\(dims=\(0, 1\)\): expected \(-2, -1\), or one"),
        (lambda: im.Fourier(~SOME), ValueError, r"Fourier\(mask=...\): got a mask that shows nothing"),
        (lambda: im.Fourier(SOME).A(MAPS[..., :5]), ValueError, r"got images \(2, 4, 5\), expected \(B, ..., 4, 6\)"),
        (lambda: im.Inpainting(SOME.long()), TypeError, "got a tensor of torch.int64, expected a tensor of torch.bool"),
        (lambda: im.Inpainting(SOME, (4, 4)), ValueError, r"got shape \(4, 6\), expected that of an image, \(4, 4\)"),
        (lambda: im.Inpainting(~SOME), ValueError, "shows nothing"),
        (lambda: im.Inpainting(SOME).A(torch.zeros(2, 4)), ValueError, r"got images \(2, 4\), expected \(B, 4, 6\)"),
        (lambda: im.Greyscale().A(torch.zeros(2, 1, 4, 4)), ValueError, r"got images \(2, 1, 4, 4\), expected \(B, 3"),
        (lambda: im.Stack(), TypeError, "got nothing, expected operators"),
        (lambda: im.Sum(im.Greyscale(), abs), TypeError, "got Greyscale, builtin_function_or_method, expected"),
        (
            lambda: im.Stack(im.Greyscale(), im.Blur(torch.ones(1, 1))).A(torch.ones(1, 3, 2, 2)),
            ValueError,
            r"got measurements \(1, 1, 2, 2\), \(1, 3, 2, 2\), expected one shape",
        ),
        (
            lambda: torch.ones(2) * im.Greyscale(),
            ValueError,
            r"got a tensor \(2,\), expected a number or",
        ),
        (lambda: im.Operator().A(SOME), NotImplementedError, r"Operator: expected a method A\(x\)"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("dims", [(-2, -1), None])
@pytest.mark.parametrize("batch", [None, 3])
def test_lines_that_are_left_out_are_solved_by_a_matrix_each(axis, dims, batch):
    sizes = {-2: 6, -1: 5}
    lines = im.cartesian(sizes[axis], 2, 0.2, seed=0 if batch is None else range(batch))
    mask = lines.mT if axis == -2 else lines
    maps = normal(*(() if batch is None else (batch,)), 2, 6, 5, dtype=C, seed=1)
    op, shift = im.Sense(maps, mask, dims or (axis,)), torch.tensor(0.3, dtype=torch.float64)
    x = normal(batch or 2, 6, 5, dtype=C)
    inverse = op.lines(shift, x)
    assert inverse is not None
    assert torch.allclose(op.gram(inverse(x)) + shift * inverse(x), x, atol=1e-12)
    rows = torch.tensor([1])
    assert torch.allclose(inverse.take(rows)(x[rows]), inverse(x)[rows], atol=1e-14)


def test_points_and_large_images_have_no_matrices(monkeypatch):
    shift = torch.tensor(0.3)
    assert im.Sense(MAPS, im.poisson_disc((4, 6), 2)).lines(shift, MAPS) is None
    assert im.Sense(MAPS).lines(shift, MAPS) is None
    lines = im.Sense(MAPS, im.cartesian(6, 2, 0.2))
    assert lines.lines(shift, MAPS) is not None
    monkeypatch.setattr("torchimplicit.imaging.physics.lines.LARGEST", 4 * 36 * 8 - 1)
    assert lines.lines(shift, MAPS) is None
