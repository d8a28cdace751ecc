"""Stage equations are solved, or their step is no step."""

import torch

from torchimplicit.ode.implicit.newton import REJECTED, Equation, Factors, JacobianCache, jacobian
from torchimplicit.path.stepsize import Tolerance

T = torch.zeros(3, dtype=torch.float64)
BASE = torch.tensor([[1.0], [0.0], [2.0]], dtype=torch.float64)
G = torch.ones_like(BASE)
NOBODY = T > 0


def some_have_no_root(t, y):
    """The stage is -1/2 of the base, but for the base of zero, where `w = w^2 + 1`."""
    return torch.where(BASE == 0, y.square() + 1, -y)


def test_a_stage_without_a_solution_has_failed_and_the_others_have_theirs():
    equation = Equation(some_have_no_root, T, G, BASE, torch.full_like(BASE, 1e-6))
    factors = Factors(jacobian(some_have_no_root, T, BASE), G)
    w, failed, _ = equation.solve(torch.zeros_like(BASE), factors, NOBODY, 0.1, 20)
    assert failed.tolist() == [False, True, False]
    assert torch.allclose(w[[0, 2]], -BASE[[0, 2]] / 2, rtol=1e-14)


def test_a_stage_that_has_not_arrived_in_time_has_failed():
    def cubic(t, y):
        return -(y**3)

    equation = Equation(cubic, T, G, BASE, torch.full_like(BASE, 1e-9))
    factors = Factors(jacobian(cubic, T, BASE), G)
    assert equation.solve(torch.zeros_like(BASE), factors, NOBODY, 0.1, 2)[1].tolist() == [True, False, True]
    w, failed, worst = equation.solve(torch.zeros_like(BASE), factors, NOBODY, 0.1, 200)
    assert not failed.any()
    assert torch.allclose(w, -((BASE + w) ** 3), atol=1e-9)
    assert (worst[[0, 2]] > 0.1).all(), "old Jacobians contract slowly"


def test_the_step_of_a_stage_that_failed_is_rejected_and_its_state_kept():
    cache = JacobianCache(1.0, Tolerance(1e-3, 1e-6, BASE), 0.1, 20)
    cache.begin(some_have_no_root, T, torch.ones_like(T), BASE)
    w = cache.solve(T, BASE, torch.zeros_like(BASE))
    end, error = cache.judge(BASE + w, torch.zeros_like(BASE), damps=False)
    assert torch.allclose(end, torch.tensor([[0.5], [0.0], [1.0]], dtype=torch.float64))
    ratio = cache.tolerance.ratio(error, BASE, end)
    assert ratio[[0, 2]].tolist() == [0, 0]
    assert ratio[1] > 0.1 * REJECTED
