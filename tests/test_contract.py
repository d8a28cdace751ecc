"""The contracts over every solver, adjoint and projection. A new one is a row in these tables."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit import sde
from torchimplicit.optim import projection
from torchimplicit.testing import (
    CASES,
    check_adjoint,
    check_linear_solver,
    check_minimiser,
    check_path_adjoint,
    check_path_solver,
    check_projection,
    check_sde_solver,
    check_solver,
    check_transforms,
)
from torchimplicit.testing.paths import GROWTH, OSCILLATOR, SPLIT

SOLVERS = [
    ti.Picard(),
    ti.Picard(damping=0.8),
    ti.Anderson(),
    ti.Anderson(period=1),
    ti.Anderson(window=1),
    ti.Anderson(window=2, period=2, damping=0.9),
    ti.Broyden(),
    ti.Broyden(memory=1),
    ti.Broyden(memory=2, halvings=2),
    ti.Newton(),
    ti.Newton(linear_solver=ti.GMRES(rtol=1e-8)),
    ti.Newton(linear_solver=ti.GMRES(rtol=1e-8), forcing=False),
    ti.Newton(halvings=0),
    ti.PseudoTransient(),
    ti.PseudoTransient(dt=5.0, linear_solver=ti.GMRES(rtol=1e-8)),
    ti.Polyalgorithm(),
    ti.Polyalgorithm(first=ti.Picard(), after=2),
]

TIGHT_LINEAR = [ti.GMRES(rtol=1e-12), ti.GMRES(rtol=1e-12, restart=4, max_steps=400), ti.LU(), ti.BiCGStab(rtol=1e-12)]
EXACT = [*(ti.Implicit(solver) for solver in TIGHT_LINEAR), ti.Implicit(ti.Neumann(terms=150))]
APPROXIMATE = [ti.Phantom(), ti.Phantom(steps=5, damping=0.7), ti.Implicit(ti.Neumann(terms=2))]
TIGHT = {"rtol": 1e-13, "atol": 1e-13, "max_steps": 200}


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_solver(solver):
    check_solver(solver)


@pytest.mark.parametrize("adjoint", EXACT, ids=str)
def test_exact_adjoint(adjoint):
    check_adjoint(adjoint)
    check_transforms(adjoint)


@pytest.mark.parametrize("solver", [ti.Picard(**TIGHT), ti.Newton(**TIGHT)], ids=str)
def test_implicit_differentiation_does_not_ask_for_the_solver(solver):
    check_adjoint(ti.Implicit(ti.LU()), solver)


@pytest.mark.parametrize("adjoint", [ti.Unrolled(), ti.Unrolled(checkpoint=True)], ids=str)
@pytest.mark.parametrize("solver", [ti.Picard(**TIGHT), ti.Anderson(**TIGHT), ti.Broyden(**TIGHT)], ids=str)
def test_unrolled_adjoint(adjoint, solver):
    check_adjoint(adjoint, solver, second=not adjoint.checkpoint)


def test_unrolled_newton_steps():
    check_adjoint(ti.Unrolled(), ti.Newton(**TIGHT))


@pytest.mark.parametrize("solver", [ti.Picard(**TIGHT), ti.Anderson(**TIGHT)], ids=str)
def test_unrolled_under_transforms(solver):
    # Derivatives of the iterates converge behind the iterates themselves, the more so the higher the order.
    check_transforms(ti.Unrolled(), solver, vmap=False, tolerance=1e-6)


def test_preconditioning_by_what_the_forward_solve_has_learnt_stays_exact():
    adjoint, solver = ti.Implicit(ti.GMRES(rtol=1e-12), precondition=True), ti.Broyden(**TIGHT)
    check_adjoint(adjoint, solver)
    check_transforms(adjoint, solver)


@pytest.mark.parametrize("adjoint", [ti.Shine(), ti.Shine(refine=2)], ids=str)
def test_approximate_adjoint_by_what_the_forward_solve_has_learnt(adjoint):
    check_adjoint(adjoint, ti.Broyden(**TIGHT), exact=False)


@pytest.mark.parametrize("adjoint", APPROXIMATE, ids=str)
def test_approximate_adjoint(adjoint):
    check_adjoint(adjoint, exact=False)


@pytest.mark.parametrize("terms", [1, 3, 6])
@pytest.mark.parametrize("kind", [lambda k: ti.Phantom(steps=k), lambda k: ti.Implicit(ti.Neumann(terms=k))])
def test_bias_of_truncated_series_is_the_contraction_to_the_number_of_terms(kind, terms):
    rho = 0.6
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    jacobian = basis @ torch.diag(torch.linspace(-rho, rho, 5, dtype=torch.float64)) @ basis.T
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5).requires_grad_()

    def gradient(adjoint):
        value = ti.fixed_point(
            lambda z, x, a: z @ a + x, torch.zeros_like(x), x, jacobian, solver=ti.Anderson(**TIGHT), adjoint=adjoint
        ).value
        return torch.autograd.grad((value**2).sum(), x)[0]

    exact, biased = gradient(ti.Implicit(ti.LU())), gradient(kind(terms))
    error = (biased - exact).norm(dim=1) / exact.norm(dim=1)
    assert (error <= rho**terms).all()
    assert (error >= 0.05 * rho**terms).all(), "the bias is real: the series is truncated"


@pytest.mark.parametrize("solver", TIGHT_LINEAR, ids=str)
def test_linear_solver(solver):
    check_linear_solver(solver)


def test_linear_solver_for_symmetric_systems():
    check_linear_solver(ti.CG(rtol=1e-12), symmetric=True)


def test_every_state_shape_is_in_the_table():
    assert {case.name for case in CASES} == {"tensor", "volume", "nested", "coupled", "complex"}


EXPLICIT = [ti.Euler, ti.Midpoint, ti.Heun, ti.Bosh3, ti.RK4, ti.Dopri5, ti.Tsit5, ti.Dopri8]
PATHS = [
    *((method, GROWTH) for method in (*EXPLICIT, ti.Kvaerno3, ti.ESDIRK54)),
    (ti.KenCarp4, SPLIT),
    *((method, OSCILLATOR) for method in (ti.Leapfrog, ti.Suzuki4)),
]


@pytest.mark.parametrize(("method", "case"), PATHS, ids=lambda each: getattr(each, "__name__", ""))
def test_path_solver(method, case):
    check_path_solver(method(), case)


SDE_SOLVERS = [
    sde.EulerMaruyama(), sde.Milstein(), sde.SRID2(), sde.Heun(dt=1.0), sde.Midpoint(), sde.ReversibleHeun(),
    sde.LogODE(), sde.SRA1(), sde.ShARK(),
]  # fmt: skip


@pytest.mark.parametrize("solver", SDE_SOLVERS, ids=lambda each: type(each).__name__)
def test_sde_solver(solver):
    check_sde_solver(solver)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(2), ti.Checkpointed(), ti.Direct(), ti.Reversible()], ids=str)
def test_path_adjoint(adjoint):
    check_path_adjoint(adjoint)


def test_path_adjoint_that_is_no_exact_one():
    check_path_adjoint(ti.Backsolve(), exact=False)


@pytest.mark.parametrize("solver", [ti.LBFGS(), ti.NewtonCG(), ti.LevenbergMarquardt()], ids=str)
def test_minimiser(solver):
    check_minimiser(solver)


NORMAL = torch.tensor([1.0, -2.0, 0.5, 1.0, 0.0, 3.0], dtype=torch.float64)
PROJECTIONS = {
    "affine": lambda x: projection.affine(x, NORMAL.view(2, 3).repeat(1, 2).to(x), torch.ones(2).to(x)),
    "box": lambda x: projection.box(x, -1.0, 0.5),
    "box_section": lambda x: projection.box_section(x, -1.0, 2.0, NORMAL.to(x), 1.0),
    "capped_simplex": lambda x: projection.capped_simplex(x, 2.0, 0.7),
    "halfspace": lambda x: projection.halfspace(x, NORMAL.to(x), 1.0),
    "isotonic": projection.isotonic,
    "l1_ball": projection.l1_ball,
    "l2_ball": projection.l2_ball,
    "linf_ball": projection.linf_ball,
    "second_order_cone": projection.second_order_cone,
    "simplex": projection.simplex,
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projection(name):
    check_projection(PROJECTIONS[name])
