"""Solves within solves, in both modes."""

import pytest
import torch
from torch.func import grad, hessian, jvp

import torchimplicit as ti

SOLVER, ADJOINT = ti.Anderson(rtol=1e-12), ti.Implicit(ti.GMRES(rtol=1e-11))


def solved(f, z0, *args):
    return ti.fixed_point(f, z0, *args, solver=SOLVER, adjoint=ADJOINT).value


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_forward_mode_where_a_solve_within_multiplies_what_is_held(order):
    """The product of two tensors without a tangent is made while the inner solve is differentiated."""
    y = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(2, 3)
    held = torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)

    def inner(x, *args):
        b, k, s = (args[order.index(i)] for i in range(3))
        return 0.5 * torch.tanh(s * k * x) + b

    def outer(z, y, k, s):
        given = z + y, k, s
        return 0.5 * solved(inner, torch.zeros_like(z), *(given[i] for i in order)).sin()

    def loss(y):
        return (solved(outer, torch.zeros_like(y), y, *held) ** 3).sum()

    h, v = 1e-5, torch.ones_like(y)
    difference = (loss(y + h * v) - loss(y - h * v)) / (2 * h)
    torch.testing.assert_close(jvp(loss, (y,), (v,))[1], difference, rtol=1e-7, atol=1e-8)
    second = (grad(loss)(y + h * v) - grad(loss)(y - h * v)) / (2 * h)
    found = (hessian(loss)(y).flatten(2) * v.flatten()).sum(2)
    torch.testing.assert_close(found, second, rtol=1e-6, atol=1e-7)
