"""The verdict itself: every condition by the size of its own terms, whatever hides beside it."""

import pytest
import torch

from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.verdict import feasible, judge

INF = torch.inf


def t(*values):
    return torch.tensor([values], dtype=torch.float64)


def program(Q, q, rows, lower, upper):
    return Program(t(*Q), t(*q), t(*rows), t(*lower), t(*upper), 0)


def test_a_solution_passes_and_its_residual_is_rounding():
    one = program([[1.0]], [-2.0], [[1.0]], [-INF], [1.0])
    residual, solved = judge(one, t(1.0), t(1.0))
    assert solved.item()
    assert residual.item() == 0


@pytest.mark.parametrize(
    ("z", "y"),
    [
        ((1.0, 0.3), (1.0, 0.0)),
        ((1.0 + 1e-7, 2e-9), (1.0, 0.0)),
        ((1.0, 2e-9), (1.0 + 1e-7, 0.0)),
        ((0.5, 2e-9), (1.5, 0.0)),
    ],
)
def test_a_small_unknown_is_judged_by_its_own_size(z, y):
    """The second unknown is a billionth of the first, and right at 2e-9."""
    one = program([[1.0, 0.0], [0.0, 1.0]], [-2.0, -2e-9], [[1.0, 0.0], [0.0, 1.0]], [-INF, -INF], [1.0, 1.0])
    assert judge(one, t(1.0, 2e-9), t(1.0, 0.0))[1].item()
    assert not judge(one, t(*z), t(*y))[1].item()


def test_multipliers_that_cancel_each_other_hide_nothing():
    twice = program([[0.0]], [1.0], [[1.0], [1.0]], [0.0, 0.0], [0.0, 0.0])
    assert judge(twice, t(0.0), t(-0.5, -0.5))[1].item()
    assert not judge(twice, t(0.0), t(1e19, -1e19))[1].item()


def test_points_that_run_off_hide_nothing():
    flat = program([[1.0, -1.0], [-1.0, 1.0]], [1e-11, 1e-11], [[1.0, 0.0]], [-INF], [INF])
    assert not judge(flat, t(-1e19, -1e19), t(0.0))[1].item()
    apart = program([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], [[1.0, -1.0]], [1.0], [INF])
    assert not judge(apart, t(1e19, 1e19), t(0.0))[1].item()
    assert not feasible(apart, t(1e19, 1e19)).item()


def test_a_multiplier_must_belong_to_a_bound_that_is_met():
    one = program([[1.0]], [-2.0], [[1.0]], [0.0], [3.0])
    assert judge(one, t(2.0), t(0.0))[1].item()
    assert not judge(one, t(1.0), t(1.0))[1].item()
    assert not judge(one, t(2.5), t(-0.5))[1].item()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(size):
    one = program([[1.0]], [-2.0 * size], [[1.0 / size]], [-INF], [1.0])
    assert judge(one, t(size), t(size * size))[1].item()
    assert not judge(one, t(size * (1 + 1e-6)), t(size * size))[1].item()
    assert not judge(one, t(size), t(size * size * (1 + 1e-6)))[1].item()
