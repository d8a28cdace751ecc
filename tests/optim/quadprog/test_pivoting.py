"""Pivoting finds the bounds that are met, or says that it did not; what it leaves is solved all the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optim.quadprog.test_operations import programs
from torchimplicit.optim import qp
from torchimplicit.optim.quadprog.definite import CholeskySolver
from torchimplicit.optim.quadprog.pivoting import Board, pivot
from torchimplicit.optim.quadprog.prepare import Prepared
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.reduction import reduce

INF = torch.inf


def stated(Q, q, G, h, A, b):
    return Program(
        Q, q, torch.cat((A, G), 1), torch.cat((b, torch.full_like(h, -INF)), 1), torch.cat((b, h), 1), A.shape[1]
    )


def prepared(program):
    return Prepared.of(program, torch.linalg.cholesky(program.Q))


def board(program):
    return Board.of(prepared(program))


def same_either_way(program, monkeypatch):
    monkeypatch.setattr("torchimplicit.optim.quadprog.prepare._SMALL", 0)
    gathered = pivot(board(program), None, 16)
    monkeypatch.undo()
    return gathered, pivot(board(program), None, 16)


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_bounds_are_those_of_the_solution(seed):
    with torch.no_grad():
        tensors = [part.detach() for part in programs(8, 6, 6, 1, seed)]
    side, _, ended = pivot(board(stated(*tensors)), None, 16)
    solution = qp(*tensors)
    active = torch.cat((solution.active.equality, solution.active.inequality), 1)
    assert (side == active)[ended].all()
    assert ended.sum() >= 7  # of eight; the others go round in circles for longer


def test_rows_in_their_places_and_rows_gathered_are_the_same(monkeypatch):
    tensors = [part.detach() for part in programs(32, 8, 8, 2, 1)]
    for one, other in zip(*same_either_way(stated(*tensors), monkeypatch), strict=True):
        assert torch.equal(one, other)


def test_a_program_takes_the_same_rounds_alone_and_beside_others():
    tensors = [part.detach() for part in programs(64, 8, 8, 2, 2)]
    side, steps, ended = pivot(board(stated(*tensors)), None, 16)
    for i in (0, int(steps.argmax())):
        alone = pivot(board(stated(*(part[i : i + 1] for part in tensors))), None, 16)
        assert torch.equal(alone[0][0], side[i])
        assert (alone[1][0], alone[2][0]) == (steps[i], ended[i])


def test_more_rows_than_can_be_met_at_once_are_left_alone():
    tensors = [part.detach() for part in programs(4, 3, 40, 0, 0)]
    _, _, ended = pivot(board(stated(*tensors)), None, 16)
    assert not ended.any()
    assert qp(*tensors).report.converged


def test_a_guess_that_is_right_takes_no_round_more():
    tensors = [part.detach() for part in programs(16, 6, 6, 1, 4)]
    program = stated(*tensors)
    side, steps, _ = pivot(board(program), None, 16)
    again = pivot(board(program), side, 16)
    assert steps.max() > 0
    assert torch.equal(again[0], side)
    assert not again[1].any()


@pytest.mark.parametrize("p", [0, 2])
def test_the_slim_system_is_the_same_matrix(p):
    """`H'H` is the `K` that rows and rows make, with equations and without; and so are its solves."""
    draw = torch.Generator().manual_seed(p)
    program = stated(*(part.detach() for part in programs(2, 6, 24, p, p)))
    K = reduce(prepared(program))
    few = Program(
        program.Q, program.q, program.rows[:, : p + 6], program.lower[:, : p + 6], program.upper[:, : p + 6], p
    )
    other = reduce(prepared(few))
    y = torch.rand(2, 24, dtype=torch.float64, generator=draw)
    inverse = torch.rand(2, 24, dtype=torch.float64, generator=draw) + 0.1
    torch.testing.assert_close(K.w[:, :6], other.w)
    some = torch.cat((y[:, :6], torch.zeros_like(y[:, 6:])), 1)
    torch.testing.assert_close(K.reduction.times(some)[:, :6], other.reduction.times(y[:, :6]))
    back = K.reduction.factor(inverse).solve(K.reduction.times(y) + inverse * y)
    torch.testing.assert_close(back, y)


def test_weakly_active_bounds_are_left_to_the_interior_point():
    """A row that is met without a multiplier may be one of several that could hold."""
    one = Program(
        torch.eye(2, dtype=torch.float64)[None], torch.tensor([[-1.0, -2.0]], dtype=torch.float64),
        torch.ones(1, 3, 2, dtype=torch.float64), torch.full((1, 3), -INF, dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.float64), 0,
    )  # fmt: skip
    side = torch.tensor([[1, 0, 0]], dtype=torch.int8)
    steps = torch.zeros(1, dtype=torch.int64)
    assert not CholeskySolver(prepared(one), strict=True).attempt(side, steps)[0].optimal.item()
    assert CholeskySolver(prepared(one), strict=False).attempt(side, steps)[0].optimal.item()
