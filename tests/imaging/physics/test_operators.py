"""Every operator against its dense matrix: adjoint, Gram operator, norm, least squares, proximal operator."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.physics.dense import matrix, normal

im, D, C = ti.imaging, torch.float64, torch.complex128
MASK = torch.tensor([[True, False, True, True, False]])
GRID = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
MAPS = normal(3, 4, 5, dtype=C, seed=2)
KERNEL = normal(3, 3, seed=3)
OPERATORS = {
    "sense": (im.Sense(MAPS, GRID), (4, 5), C),
    "sense-lines": (im.Sense(MAPS, MASK), (4, 5), C),
    "sense-rows": (im.Sense(MAPS, MASK[:, :4].T), (4, 5), C),
    "sense-hybrid": (im.Sense(MAPS, MASK, dims=(-1,)), (4, 5), C),
    "sense-other-axis": (im.Sense(MAPS, MASK, dims=(-2,)), (4, 5), C),
    "sense-full": (im.Sense(MAPS), (4, 5), C),
    "fourier": (im.Fourier(GRID), (4, 5), C),
    "fourier-lines": (im.Fourier(MASK), (4, 5), C),
    "inpainting": (im.Inpainting(GRID), (4, 5), D),
    "inpainting-complex": (im.Inpainting(GRID[0], (2, 5)), (2, 5), C),
    "greyscale": (im.Greyscale(), (3, 2, 2), D),
    "valid": (im.Blur(KERNEL), (2, 5, 4), D),
    "valid-complex": (im.Blur(normal(3, 1, dtype=C)), (1, 5, 4), C),
    "circular": (im.Blur(KERNEL, "circular"), (2, 5, 4), D),
    "circular-channels": (im.Blur(normal(2, 3, 5), "circular"), (2, 5, 6), C),
    "reflect": (im.Blur(normal(5, 3), "reflect"), (1, 5, 4), D),
    "reflect-channels": (im.Blur(normal(2, 3, 5), "reflect"), (2, 3, 4), C),
}
CASES = pytest.mark.parametrize(("operator", "shape", "dtype"), OPERATORS.values(), ids=OPERATORS)


@CASES
def test_against_the_dense_matrix(operator, shape, dtype):
    A, x = matrix(operator, shape, dtype), normal(2, *shape, dtype=dtype)
    y = operator.A(x)
    other = normal(*y.shape, dtype=y.dtype, seed=4)
    size = torch.linalg.matrix_norm(A, 2)
    assert torch.allclose(y.flatten(1), x.flatten(1).to(A) @ A.T, rtol=0, atol=1e-12)
    assert torch.allclose(operator.A_adjoint(other).flatten(1).to(A), other.flatten(1) @ A.conj(), rtol=0, atol=1e-12)
    assert torch.allclose(
        operator.gram(x).flatten(1).to(A), x.flatten(1).to(A) @ (A.mH @ A).T, rtol=0, atol=1e-12 * float(size) ** 2
    )
    assert torch.allclose(operator.norm(x, rtol=1e-14, max_steps=200), size.expand(2), rtol=1e-12)
