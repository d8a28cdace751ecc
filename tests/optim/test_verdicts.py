"""What decides whether a program has a solution."""

import importlib

import torch

import torchimplicit as ti
from torchimplicit.optim.quadprog.feasibility import violation
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.solve import _ray

INF = torch.inf


def program(Q, q, rows, lower, upper):
    return Program(*(torch.tensor([x], dtype=torch.float64) for x in (Q, q, rows, lower, upper)), 0)


def test_a_direction_is_a_ray_where_the_objective_falls_and_nothing_is_in_the_way():
    step = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    flat, eye = [[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    assert _ray(program(flat, [-1.0, 0.0], eye, [-INF, 0.0], [INF, 1.0]), step).tolist() == [[1.0, 0.0]]
    blocked = program(flat, [-1.0, 0.0], eye, [-INF, 0.0], [5.0, 1.0])
    rising = program(flat, [1.0, 0.0], eye, [-INF, 0.0], [INF, 1.0])
    curved = program(eye, [-1.0, 0.0], eye, [-INF, 0.0], [INF, 1.0])
    for other in (blocked, rising, curved):
        assert _ray(other, step).tolist() == [[0.0, 0.0]]
    behind = program(flat, [1.0, 0.0], eye, [-5.0, 0.0], [INF, 1.0])
    assert _ray(behind, -step).tolist() == [[0.0, 0.0]]


def test_only_a_contradiction_proves_that_no_point_meets_the_bounds():
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    apart = program([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], rows, [1.0, 1.0, -INF], [INF, INF, 1.0])
    together = program([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], rows, [1.0, 1.0, -INF], [INF, INF, 3.0])
    start = torch.tensor([[-7.0, 4.0]], dtype=torch.float64)
    t, proved = violation(apart, start)
    assert proved.item()
    assert torch.allclose(t @ apart.rows[0], torch.zeros(1, 2, dtype=torch.float64), atol=1e-9)
    assert not violation(together, start)[1].item()
    assert not violation(apart, start, max_steps=0)[1].item()  # bounds are violated, but nothing is proved yet


def test_a_plan_whose_slope_is_not_zero_is_not_vouched_for(monkeypatch):
    control = importlib.import_module("torchimplicit.optim.control.lqr")
    eye = torch.eye(1, dtype=torch.float64)
    arguments = (eye, eye, eye, eye, torch.ones(2, 1, dtype=torch.float64), 4)
    assert control.lqr(*arguments).report.converged
    monkeypatch.setattr(control, "ACCURATE", -1.0)
    assert control.lqr(*arguments, on_failure="ignore").status.tolist() == [ti.Status.STAGNATED] * 2
