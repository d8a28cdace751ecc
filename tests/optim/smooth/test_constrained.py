"""`argmin` under equality constraints: values, multipliers and derivatives through the KKT system."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.optim import ConstrainedSolution

TIGHT = ti.Newton(rtol=1e-13, atol=1e-13)
EXACT = [ti.Implicit(ti.LU()), ti.Implicit(ti.GMRES(rtol=1e-13))]


def distance(z, p, a):
    return (z - p).square().sum(1)


def curve(z, p, a):
    """A superellipse with half axes `a`."""
    return (z / a).pow(4).sum(1) - 1


def data(batch=3):
    generator = torch.Generator().manual_seed(0)
    p = 2 + 2 * torch.rand(batch, 2, dtype=torch.float64, generator=generator)
    return p, 1 + torch.rand(batch, 2, dtype=torch.float64, generator=generator)


def nearest(p, a, **options):
    options = {"solver": TIGHT, "adjoint": EXACT[0], **options}
    return ti.argmin(distance, torch.ones_like(p), p, a, constraints=curve, **options)


@pytest.mark.parametrize("adjoint", EXACT, ids=str)
def test_the_closest_point_on_a_curve_and_its_derivatives(adjoint):
    p, a = (tensor.requires_grad_() for tensor in data(2))
    solution = nearest(p, a, adjoint=adjoint)
    assert isinstance(solution, ConstrainedSolution)
    assert curve(solution.value, p, a).abs().max() < 1e-12
    angle = torch.linspace(0, torch.pi / 2, 20001, dtype=torch.float64)
    around = torch.stack([angle.cos(), angle.sin()], dim=-1).sqrt()[:, None] * a
    brute = (around - p).square().sum(2).amin(0)
    torch.testing.assert_close(distance(solution.value, p, a), brute, rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(lambda p, a: nearest(p, a, adjoint=adjoint).value, (p, a))
    assert torch.autograd.gradcheck(lambda p, a: nearest(p, a, adjoint=adjoint).multipliers, (p, a))
    assert torch.autograd.gradgradcheck(lambda p, a: nearest(p, a, adjoint=adjoint).value, (p, a))


def test_multipliers_are_the_price_of_a_constraint():
    generator = torch.Generator().manual_seed(0)
    Q = torch.randn(4, 6, 6, dtype=torch.float64, generator=generator)
    Q = Q @ Q.mT + torch.eye(6, dtype=torch.float64)
    A = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    level = torch.randn(4, 2, dtype=torch.float64, generator=generator).requires_grad_()

    def energy(z, Q, level):
        return 0.5 * (z.unsqueeze(1) @ Q @ z.unsqueeze(2)).flatten() + z.sum(1)

    solution = ti.argmin(
        energy,
        torch.zeros(4, 6, dtype=torch.float64),
        Q,
        level,
        constraints=lambda z, Q, level: {"rows": z @ A.mT - level},
        solver=TIGHT,
        adjoint=EXACT[0],
    )
    (price,) = torch.autograd.grad(energy(solution.value, Q, level).sum(), level)
    torch.testing.assert_close(price, -solution.multipliers["rows"])
    assert solution.steps.tolist() == [1, 1, 1, 1], "a quadratic energy under linear constraints is one linear solve"
    exact = ti.qp(Q, torch.ones(6, dtype=torch.float64), A=A, b=level.detach())
    torch.testing.assert_close(solution.value, exact.value)


def test_a_stationary_point_that_is_no_minimum_is_said():
    p, a = data()
    # On the far side of the curve; the energy is as convex as before, and its minimum under the constraint elsewhere.
    options = {"solver": ti.Newton(rtol=1e-9), "on_failure": "ignore"}
    far = ti.argmin(distance, -a * 2**-0.25, p, a, constraints=curve, **options)
    arrived = curve(far.value, p, a).abs() < 1e-6
    assert arrived.any()
    assert (far.status[arrived] == ti.Status.SADDLE).all()
    anything = ti.argmin(distance, -a * 2**-0.25, p, a, constraints=curve, check_minimum=False, **options)
    assert (anything.status[arrived] == ti.Status.CONVERGED).all()


def test_the_lagrangians_hessian_may_be_indefinite_where_the_minimum_is_one():
    # The energy falls to the sides of the minimum; only along the constraint it rises.
    solution = ti.argmin(
        lambda z: z[:, 0].square() - 2 * z[:, 1].square(),
        torch.tensor([[0.5, 0.9]], dtype=torch.float64),
        constraints=lambda z: z[:, 1] - 1,
        solver=TIGHT,
    )
    torch.testing.assert_close(solution.value, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


def test_warm_starts_take_the_multipliers_and_trajectories_leave_them_out():
    p, a = data()
    first = nearest(p, a, save_steps=(0, 2), trace=True)
    assert torch.equal(first.trajectory[0], torch.ones_like(p))
    assert first.trajectory[1].shape == p.shape
    again = nearest(p, a, warm_start=first)
    assert again.steps.tolist() == [0, 0, 0]
    elsewhere = ti.argmin(distance, first.value, p, a)
    assert nearest(p, a, warm_start=elsewhere).report.converged


def test_samples_are_independent():
    p, a = data()
    worse = p.clone()
    worse[1] = torch.nan

    def run(p):
        p = p.clone().requires_grad_()
        solution = nearest(p, a, on_failure="ignore")
        solution.value.sin().sum().backward()
        return solution, p.grad

    (one, grad_one), (two, grad_two) = run(p), run(worse)
    for name in ("value", "multipliers", "status", "steps"):
        assert torch.equal(getattr(one, name)[[0, 2]], getattr(two, name)[[0, 2]]), name
    assert torch.equal(grad_one[[0, 2]], grad_two[[0, 2]])
    assert two.status[1] == ti.Status.NON_FINITE
    assert (grad_two[1] == 0).all()


def test_parameters_of_both_modules_get_gradients():
    class Shift(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

        def energy(self, z):
            return (z - self.value).square().sum(1)

        def forward(self, z):
            return z.sum(1) - self.value

    center, level = Shift([1.0, 2.0]), Shift(1.0)
    solution = ti.argmin(center.energy, torch.zeros(3, 2, dtype=torch.float64), constraints=level, adjoint=EXACT[0])
    torch.testing.assert_close(solution.value, torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64))
    solution.value[:, 0].sum().backward()
    torch.testing.assert_close(center.value.grad, torch.tensor([1.5, -1.5], dtype=torch.float64))
    torch.testing.assert_close(level.value.grad, torch.tensor(1.5, dtype=torch.float64))


def test_vmap_and_one_coupled_problem():
    p, a = data(4)
    mapped = torch.vmap(lambda p, a: nearest(p, a).value)(p.view(2, 2, 2), a.view(2, 2, 2))
    torch.testing.assert_close(mapped.view(4, 2), nearest(p, a).value)
    coupled = ti.argmin(
        lambda z, p: (z - p).square().sum(),
        torch.ones(2, dtype=torch.float64),
        p[0],
        constraints=lambda z, p: z.square().sum() - 1,
        solver=TIGHT,
        batch_dims=0,
    )
    torch.testing.assert_close(coupled.value, p[0] / p[0].norm())
    torch.testing.assert_close(coupled.multipliers, p[0].norm() - 1)


def test_constraints_that_depend_on_one_another_are_reported():
    p, a = data()
    doubled = ti.argmin(
        distance,
        torch.ones_like(p),
        p,
        a,
        constraints=lambda z, p, a: curve(z, p, a).unsqueeze(1).expand(-1, 2),
        on_failure="ignore",
    )
    assert (doubled.status != ti.Status.CONVERGED).all()


@pytest.mark.parametrize(
    ("energy", "constraints", "error", "says"),
    [
        (distance, 3, TypeError, "constraints: got a int, expected a callable"),
        (distance, lambda z, p, a: z.sum(), ValueError, r"constraints returned shape \(\), expected \(3, \.\.\.\)"),
        (distance, lambda z, p, a: z > 0, TypeError, r"torch.bool"),
        (distance, lambda z, p, a: torch.cat([z, z], 1), ValueError, "constraints are 4 for 2 unknowns"),
        (lambda z, p, a: z.sum(), curve, ValueError, r"energy returned shape \(\), expected \(3,\)"),
    ],
)
def test_wrong_constraints(energy, constraints, error, says):
    p, a = data()
    with pytest.raises(error, match=says):
        ti.argmin(energy, torch.ones_like(p), p, a, constraints=constraints)


def test_a_captured_tensor_and_a_solver_that_goes_down_are_refused():
    p, a = data()
    a.requires_grad_()
    with pytest.raises(ti.CaptureError):
        ti.argmin(lambda z, p: (z - p).square().sum(1), p, p, constraints=lambda z, p: (z / a).square().sum(1) - 1)
    with pytest.raises(ValueError, match=r"constraints=..., solver=LBFGS\(\)\).*expected Newton\(\)"):
        nearest(p, a, solver=ti.LBFGS())
