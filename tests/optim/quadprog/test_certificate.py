"""What proves that a program has no solution, and what does not."""

import torch

from torchimplicit.optim.quadprog.certificate import contradiction, falls, proves, ray
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.search import solutions

INF = torch.inf


def program(Q, q, rows, lower, upper):
    return Program(*(torch.tensor([x], dtype=torch.float64) for x in (Q, q, rows, lower, upper)), 0)


def test_a_direction_is_a_ray_where_the_objective_falls_and_nothing_is_in_the_way():
    step = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    flat, eye = [[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    endless = program(flat, [-1.0, 0.0], eye, [-INF, 0.0], [INF, 1.0])
    assert falls(endless, step).item()
    assert ray(endless, solutions).tolist() == [[1.0, 0.0]]
    blocked = program(flat, [-1.0, 0.0], eye, [-INF, 0.0], [5.0, 1.0])
    rising = program(flat, [1.0, 0.0], eye, [0.0, 0.0], [INF, 1.0])
    curved = program(eye, [-1.0, 0.0], eye, [-INF, 0.0], [INF, 1.0])
    for other in (blocked, rising, curved):
        assert not falls(other, step).item()
        assert ray(other, solutions).tolist() == [[0.0, 0.0]]
    behind = program(flat, [1.0, 0.0], eye, [-5.0, 0.0], [INF, 1.0])
    assert not falls(behind, -step).item()


def test_only_a_contradiction_proves_that_no_point_meets_the_bounds():
    rows, square = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    apart = program(square, [0.0, 0.0], rows, [1.0, 1.0, -INF], [INF, INF, 1.0])
    together = program(square, [0.0, 0.0], rows, [1.0, 1.0, -INF], [INF, INF, 3.0])
    far = torch.tensor([[-7.0, 4.0]], dtype=torch.float64)
    y = contradiction(apart, far, solutions)
    assert torch.allclose(y, torch.tensor([[-1.0, -1.0, 1.0]], dtype=torch.float64) / 3)
    assert proves(apart, y).item()
    assert contradiction(together, far, solutions).abs().max() == 0
    # The weights must balance, and their bounds contradict: for all points that are not absurdly far out.
    assert not proves(apart, torch.tensor([[-1.0, -1.0, 1.001]], dtype=torch.float64)).item()
    assert not proves(together, y).item()


def test_nothing_is_proved_against_a_point_that_meets_the_bounds():
    together = program([[1.0]], [0.0], [[1.0], [-1.0]], [-INF, -INF], [1.0, -1.0])
    inside = torch.ones(1, 1, dtype=torch.float64)
    assert contradiction(together, inside, lambda aux: torch.ones_like(aux.q)).abs().max() == 0
    nearly = program([[1.0]], [0.0], [[1.0], [-1.0]], [-INF, -INF], [1.0, -1.0 - 1e-10])
    assert contradiction(nearly, inside, solutions).abs().max() == 0
    assert contradiction(nearly, 2 * inside, solutions).abs().max() > 0
