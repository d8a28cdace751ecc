"""When the loop stops a sample, with which status, at which iterate: runs on residuals that are made up."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.problem import FixedPoint
from torchimplicit.solve import Solver, iterate

S = ti.Status


class Place(NamedTuple):
    z: torch.Tensor
    residual: torch.Tensor
    step: int


@dataclass(frozen=True, kw_only=True)
class Scripted(Solver):
    """Iterates whose residuals `(steps + 1, B)` are given; the iterate of step k is `size + k`."""

    residuals: list = field(default_factory=list)
    size: float = 1.0

    def place(self, k):
        rows = torch.tensor(self.residuals[min(k, len(self.residuals) - 1)], dtype=torch.float64).unsqueeze(1)
        return Place(torch.full_like(rows, self.size + k), rows, k)

    def init(self, problem, z):
        return self.place(0)

    def step(self, problem, state):
        return self.place(state.step + 1)


def run(residuals, **options):
    solver = Scripted(residuals=residuals, **options)
    start = torch.zeros(len(residuals[0]), 1, dtype=torch.float64)
    problem = FixedPoint(lambda z: z, start, ())
    with torch.no_grad(), problem.bind([]) as residual:
        return iterate(solver, residual, start, trace=True)


def test_a_sample_arrives_at_its_tolerance_and_no_step_earlier():
    result = run([[1.0], [0.1], [0.011], [0.0099], [0.001]], rtol=0.0, atol=0.01)
    assert result.report.status.tolist() == [S.CONVERGED]
    assert result.report.steps.tolist() == [3]
    assert result.z.item() == 4.0
    assert result.report.residual.item() == pytest.approx(0.0099)


@pytest.mark.parametrize("options", [{"rtol": 0.0, "atol": 1e-3}, {"rtol": 1e-3, "atol": 0.0}], ids=str)
def test_tolerances_are_of_the_root_mean_square_which_copies_of_unknowns_do_not_change(options):
    one, many = (
        ti.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(1, n).double(), solver=ti.Picard(**options)).report
        for n in (1, 400)
    )
    assert many.steps.tolist() == one.steps.tolist()
    assert many.residual.item() == pytest.approx(one.residual.item(), rel=1e-12)


def test_the_relative_tolerance_is_of_the_iterate():
    # Iterates are 1, 2, 3: the tolerance of step 1 is 0.2.
    assert run([[1.0], [0.21], [0.2]], rtol=0.1, atol=0.0).report.steps.tolist() == [2]
    assert run([[1.0], [0.19], [0.01]], rtol=0.1, atol=0.0).report.steps.tolist() == [1]


def test_every_sample_stops_on_its_own_and_keeps_its_iterate():
    result = run(
        [[1.0, 1.0, 1.0], [0.001, 0.5, 1.0], [0.5, 0.001, 1.0], [5.0, 5.0, 1.0]], rtol=0.0, atol=0.01, max_steps=3
    )
    assert result.report.status.tolist() == [S.CONVERGED, S.CONVERGED, S.MAX_STEPS]
    assert result.report.steps.tolist() == [1, 2, 3]
    assert result.z.flatten().tolist() == [2.0, 3.0, 1.0]
    assert result.report.residual.tolist() == [0.001, 0.001, 1.0]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_no_more_steps_are_made_than_allowed(steps):
    result = run([[1.0], [0.9], [0.8], [0.7], [0.6]], rtol=0.0, atol=0.01, max_steps=steps)
    assert result.report.status.tolist() == [S.MAX_STEPS]
    assert result.report.steps.tolist() == [steps]
    assert result.report.trace.shape == (steps + 1, 1)


def test_a_start_that_satisfies_the_condition_takes_no_step():
    result = run([[0.0], [1.0]], rtol=0.0, atol=0.0)
    assert result.report.status.tolist() == [S.CONVERGED]
    assert result.report.steps.tolist() == [0]


def test_the_best_iterate_is_the_answer():
    result = run([[1.0], [0.3], [0.2], [0.25], [0.3], [0.28]], rtol=0.0, atol=0.01, max_steps=5)
    assert result.z.item() == 3.0
    assert result.report.residual.item() == pytest.approx(0.2)
    assert result.report.trace.flatten().tolist() == pytest.approx([1.0, 0.3, 0.2, 0.25, 0.3, 0.28])


def test_a_growing_iterate_does_not_arrive_by_loosening_its_own_tolerance():
    # The residual stands at 1 while the iterate grows past 1 / rtol: a map that moves on and on.
    result = run([[1.0]] * 60, rtol=0.05, atol=0.0, max_steps=59)
    assert result.report.status.tolist() == [S.STAGNATED]


def test_stagnation_is_twenty_steps_without_a_better_residual():
    script = [[1.0], [0.5]] + [[0.5]] * 19 + [[0.4]] + [[0.4]] * 30
    result = run(script, rtol=0.0, atol=1e-3, max_steps=60)
    assert result.report.status.tolist() == [S.STAGNATED]
    assert result.report.steps.tolist() == [21 - 1 + 1 + 20]
    assert result.report.residual.item() == pytest.approx(0.4)


def test_a_residual_at_the_rounding_of_the_state_stagnates_sooner():
    floor = torch.finfo(torch.float64).eps
    result = run([[1.0], [floor]] + [[floor]] * 30, rtol=0.0, atol=1e-30, max_steps=30)
    assert result.report.status.tolist() == [S.STAGNATED]
    assert result.report.steps.item() == 4


def test_divergence_is_growth_by_a_million():
    assert run([[1.0], [0.9e6], [0.9e6]], rtol=0.0, atol=0.01, max_steps=2).report.status.tolist() == [S.MAX_STEPS]
    result = run([[1.0], [1.1e6], [1.0]], rtol=0.0, atol=0.01, max_steps=2)
    assert result.report.status.tolist() == [S.DIVERGED]
    assert result.z.item() == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_what_is_not_finite_is_neither_converged_nor_diverged(bad, at):
    script = [[1.0, 1.0], [0.5, 0.5], [0.2, 0.2], [0.1, 0.1], [0.001, 0.001]]
    script[at][0] = bad
    result = run(script, rtol=0.0, atol=0.01)
    assert result.report.status.tolist() == [S.NON_FINITE, S.CONVERGED]
    assert result.report.steps.tolist() == [at, 4]
    assert result.z[1].item() == 5.0


def test_a_stopped_sample_is_not_looked_at_again():
    result = run([[1.0, 1.0], [0.001, 0.9], [math.nan, 0.8], [1e9, 0.001]], rtol=0.0, atol=0.01)
    assert result.report.status.tolist() == [S.CONVERGED, S.CONVERGED]
    assert torch.isnan(result.report.trace[2:, 0]).all()


def test_looks_may_be_rare_and_the_answer_is_one_that_was_looked_at():
    script = [[1.0], [0.5], [0.001], [0.4], [0.3], [0.2], [0.009], [0.1]]
    result = run(script, rtol=0.0, atol=0.01, check_every=3)
    assert result.report.steps.tolist() == [6]
    assert result.z.item() == 7.0


def test_rare_looks_make_no_more_steps_than_allowed():
    result = run([[1.0 / (k + 1)] for k in range(9)], rtol=0.0, atol=1e-9, check_every=3, max_steps=4)
    assert result.report.steps.tolist() == [4]
    assert result.z.item() == 5.0


@pytest.mark.parametrize(
    ("size", "dtype"), [(1e-30, torch.float32), (1e25, torch.float32), (1e-170, torch.float64), (1e200, torch.float64)]
)
def test_a_state_whose_squares_its_dtype_does_not_have_is_judged_by_its_true_size(size, dtype):
    solution = ti.fixed_point(lambda z: 0.5 * z + size, torch.zeros(1, 2, dtype=dtype), solver=ti.Picard(atol=0.0))
    torch.testing.assert_close(solution.value / size, torch.full((1, 2), 2.0, dtype=dtype), rtol=2e-4, atol=0.0)
    assert 0 < float(solution.residual) <= 2e-4 * size
