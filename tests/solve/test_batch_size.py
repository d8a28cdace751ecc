"""A point and its gradient are the same to the bit however many samples there are, where the function's values are."""

import pytest
import torch

import torchimplicit as ti

SIZES = [1, 2, 3, 7, 16, 33]  # of 64
D = torch.float64


def states(dtype, width):
    return torch.randn(64, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def contraction(z, x):
    return x + 0.6 * z / (1 + z * z)


def rise(z, x):
    return z + 0.6 * z / (1 + z * z) - x


def energy(z, x):
    return (0.25 * (z * z).square() + 0.5 * (z - x).square()).sum(1)


POINTS = {
    "Picard": (ti.fixed_point, contraction, ti.Picard()),
    "Anderson": (ti.fixed_point, contraction, ti.Anderson()),
    "Anderson of period 1": (ti.fixed_point, contraction, ti.Anderson(period=1)),
    "Broyden": (ti.fixed_point, contraction, ti.Broyden()),
    "Broyden of a root": (ti.root, rise, ti.Broyden()),
    "Newton": (ti.root, rise, ti.Newton()),
    "Newton by GMRES": (ti.root, rise, ti.Newton(linear_solver=ti.GMRES())),
    "PseudoTransient": (ti.root, rise, ti.PseudoTransient()),
    "SteadyState": (ti.root, rise, ti.SteadyState(rtol=1e-4, atol=1e-4)),
    "LBFGS": (ti.argmin, energy, ti.LBFGS()),
}
ADJOINTS = {
    "GMRES": ti.Implicit(), "LU": ti.Implicit(ti.LU()), "BiCGStab": ti.Implicit(ti.BiCGStab()),
    "Neumann": ti.Implicit(ti.Neumann()), "Phantom": ti.Phantom(),
}  # fmt: skip


def alike(solve):
    """Whether the first samples of 64 are what fewer of them are."""
    whole, steps, slope = solve(64)
    for size in SIZES:
        part, taken, its_slope = solve(size)
        assert torch.equal(taken, steps[:size]), size
        assert torch.equal(part, whole[:size]), size
        assert torch.equal(its_slope, slope[:size]), size


@pytest.mark.parametrize("width", [3, 37])
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_points(point, dtype, width):
    function, f, solver = point
    z0, x = states(dtype, width), states(dtype, width).flip(1)

    def solve(size):
        some = x[:size].clone().requires_grad_()
        solution = function(f, z0[:size], some, solver=solver)
        solution.value.square().sum().backward()
        return solution.value.detach(), solution.steps, some.grad

    alike(solve)


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
def test_adjoints(adjoint):
    z0, x = states(D, 5), states(D, 5).flip(1)

    def solve(size):
        some = x[:size].clone().requires_grad_()
        solution = ti.fixed_point(contraction, z0[:size], some, adjoint=adjoint, solver=ti.Anderson(rtol=1e-8))
        solution.value.square().sum().backward()
        return solution.value.detach(), solution.steps, some.grad

    alike(solve)
