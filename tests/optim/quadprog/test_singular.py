"""Saddle-point systems that are nearly singular: what one shift leaves, the smaller ones solve."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit import qp
from torchimplicit.optim.quadprog.singular import Singular

ANGLE = st.floats(2, 8).map(lambda power: 10**-power)


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=30)
@given(ANGLE, st.floats(-3, 3), st.floats(-3, 3))
def test_rows_that_are_nearly_one_are_solved(angle, first, second):
    rows, force = t([1.0, 1.0], [1.0, 1.0 + angle]), t(first, second)
    system = Singular.build(torch.zeros(1, 2, 2, dtype=torch.float64), rows[None], torch.ones(1, 2))
    _, y, residual = system.solve(force[None], torch.zeros(1, 2, dtype=torch.float64))
    expected = torch.linalg.solve(rows.T, force)
    assert (y[0] - expected).abs().max() <= 1e-7 * expected.abs().max() + 1e-300
    assert residual.item() <= 1e-6


@settings(max_examples=30)
@given(ANGLE)
def test_a_corner_of_nearly_one_row_has_its_derivative(angle):
    rows, h = t([1.0, 1.0], [1.0, 1.0 + angle]), t(1.0, 1.0).requires_grad_()
    solution = qp(None, -(t(1.0, 2.0) @ rows), rows, h)
    assert solution.determined.value.item()
    slopes = torch.stack([torch.autograd.grad(part, h, retain_graph=True)[0] for part in solution.value])
    expected = torch.linalg.inv(rows)
    assert solution.backward.converged
    assert (slopes - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_small_differences_of_large_terms_are_solved_to_their_own_last_digit():
    """Rounding of the terms excuses no more than there is of it."""
    Q, none = t([1.0, 1.0], [1.0, 1.0001]), torch.zeros(1, 0, dtype=torch.float64)
    system = Singular.build(Q[None], torch.zeros(1, 0, 2, dtype=torch.float64), none)
    z, _, _ = system.solve((Q @ t(1.0, 2.0))[None], none, terms=t(1e5))
    assert (z[0] - t(1.0, 2.0)).abs().max() <= 1e-11
