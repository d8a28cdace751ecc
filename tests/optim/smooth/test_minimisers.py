"""The solvers that go down: `LBFGS`, `NewtonCG`, and `LevenbergMarquardt` on sums of squares."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

import torchimplicit as ti
from torchimplicit.testing.minimisers import minimum

DOWN = [ti.LBFGS(), ti.NewtonCG(), ti.LevenbergMarquardt()]
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def starts(batch, width=2, seed=0):
    return torch.randn(batch, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("solver", DOWN, ids=str)
def test_a_batch_in_rosenbrocks_valley(solver):
    solution = minimum(starts(64), solver=replace(solver, **TIGHT), trace=True)
    torch.testing.assert_close(solution.value, torch.ones(64, 2, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert int(solution.steps.max()) <= 60
    assert solution.nfev <= 175, "those of the steps and of the looks, for the whole batch whenever one sample has come"
    assert len(set(solution.steps.tolist())) > 5, "every sample stops on its own"
    trace = solution.trace
    assert (trace[1:] > 2 * trace[:-1]).any(), "the gradient grows on the way, and that is no failure"


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_thirty_unknowns(solver):
    solution = minimum(starts(4, 30), solver=solver)
    assert solution.report.converged
    # Rosenbrock's function has another minimum where the first unknown is about -1.
    exact = minimum(solution.value, solver=replace(solver, **TIGHT)).value
    assert exact[:, 0].sign().tolist() == [-1, 1, -1, 1]
    torch.testing.assert_close(exact[1::2], torch.ones_like(exact[1::2]))
    torch.testing.assert_close(solution.value, exact, rtol=5e-4, atol=1e-9)


def test_newton_cg_takes_fewer_evaluations_far_from_the_minimum_by_loose_solves():
    def quartic(z):
        return (z - 1).pow(4).sum(1) + (torch.arange(1, 21, dtype=torch.float64) * z.square()).sum(1)

    start = 3 * torch.ones(1, 20, dtype=torch.float64)
    few = ti.argmin(quartic, start, solver=ti.NewtonCG(**TIGHT))
    exact = ti.argmin(quartic, start, solver=ti.Newton(**TIGHT))
    torch.testing.assert_close(few.value, exact.value)
    assert int(few.steps) <= 12
    slow = ti.argmin(quartic, start, solver=ti.LBFGS(**TIGHT))
    assert int(few.steps) < int(slow.steps)


@pytest.mark.parametrize(
    ("solver", "other"),
    [
        (ti.LBFGS(), {"memory": 1}),
        (ti.LBFGS(), {"trials": 1}),
        (ti.LBFGS(), {"rtol": 1e-9, "atol": 1e-9}),
        (ti.NewtonCG(), {"products": 1}),
        (ti.NewtonCG(), {"trials": 1}),
        (ti.LevenbergMarquardt(), {"damping": 1e3}),
        (ti.LevenbergMarquardt(), {"linear_solver": ti.CG(rtol=0.1)}),
    ],
    ids=str,
)
def test_every_option_changes_the_run(solver, other):
    one, two = (
        minimum(starts(8, 5), solver=replace(option, max_steps=500), trace=True, on_failure="ignore").trace
        for option in (solver, replace(solver, **other))
    )
    assert one.shape != two.shape or not torch.equal(one.nan_to_num(), two.nan_to_num())


def test_fista_is_a_plain_value():
    solver = ti.FISTA()
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver
        assert repr(copied) == repr(solver)


@pytest.mark.parametrize("solver", DOWN, ids=str)
def test_the_batch_goes_on_without_those_that_have_arrived(solver):
    shift = torch.zeros(2048, 8, dtype=torch.float64)
    start = torch.ones_like(shift)
    start[::16] = starts(128, 8)
    few = minimum(start, shift, solver=solver, batched_args=(0,))
    whole = minimum(start, shift, solver=solver)
    torch.testing.assert_close(few.value, whole.value, rtol=1e-5, atol=1e-5)
    assert few.report.converged


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_gradients_against_finite_differences(solver):
    def wavy(z, a):
        return z.square().sum(1) + torch.cosh(0.5 * z * a).sum(1) - (torch.sin(a) * z).sum(1) + 0.1 * z.pow(4).sum(1)

    def value(a):
        adjoint = ti.Implicit(ti.CG(rtol=1e-13))
        return ti.argmin(wavy, torch.zeros_like(a), a, solver=replace(solver, **TIGHT), adjoint=adjoint).value

    a = torch.linspace(-1, 1.5, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(value, a)
    assert torch.autograd.gradgradcheck(value, a)
    many = torch.stack([a.detach(), -a.detach()])
    torch.testing.assert_close(torch.vmap(value)(many), torch.stack([value(one) for one in many]))


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_the_hypergradient_of_a_logistic_regression(solver):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, dtype=torch.float64, generator=generator)
    y = (x[:, :3].sum(1) > 0).double()
    decay = torch.full((8,), -2.0, dtype=torch.float64, requires_grad=True)

    def training(w, x, y, decay):
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y) + (decay.exp() * w.square()).sum()

    def validation(decay, solver=replace(solver, **TIGHT)):
        fit = ti.argmin(
            training,
            torch.zeros(8, dtype=torch.float64),
            x[:30],
            y[:30],
            decay,
            solver=solver,
            adjoint=ti.Implicit(ti.CG(rtol=1e-12)),
            batch_dims=0,
        )
        return torch.nn.functional.binary_cross_entropy_with_logits(x[30:] @ fit.value, y[30:])

    assert torch.autograd.gradcheck(validation, decay)


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_float32_reaches_its_own_tolerance(solver):
    solution = minimum(starts(16).float(), solver=solver)
    torch.testing.assert_close(solution.value, torch.ones(16, 2), rtol=5e-3, atol=5e-3)


def saddle(z):
    return z[:, 0].square() - z[:, 1].square() + 0.25 * z.pow(4).sum(1)


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_saddles_are_left_and_said(solver):
    near = torch.tensor([[1.0, 1e-3], [1.0, -1e-3], [-0.5, 0.0]], dtype=torch.float64)
    solution = ti.argmin(saddle, near, solver=solver, on_failure="ignore")
    torch.testing.assert_close(
        solution.value, torch.tensor([[0, 2**0.5], [0, -(2**0.5)], [0, 0]], dtype=torch.float64), rtol=0, atol=1e-3
    )
    # The last one is on the line from which the gradient never leads away.
    assert solution.status.tolist() == [ti.Status.CONVERGED, ti.Status.CONVERGED, ti.Status.SADDLE]
    with pytest.raises(ti.ConvergenceError, match=r"saddle: sample 2 .*\n.*another start"):
        ti.argmin(saddle, near, solver=solver)
    anything = ti.argmin(saddle, near, solver=solver, check_minimum=False)
    assert anything.report.converged
    assert anything.nfev == solution.nfev, "the Hessian of the last look serves"


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_a_start_so_near_a_saddle_that_the_gradient_grows_a_billionfold(solver):
    start = torch.tensor([[0.0, 1e-10]], dtype=torch.float64)
    solution = ti.argmin(saddle, start, solver=replace(solver, **TIGHT))
    torch.testing.assert_close(solution.value, torch.tensor([[0.0, 2**0.5]], dtype=torch.float64))


@pytest.mark.parametrize("solver", DOWN[:2], ids=str)
def test_an_energy_without_a_minimum_does_not_converge(solver):
    for energy in (lambda z: -z.sum(1), lambda z: -z.square().sum(1)):
        solution = ti.argmin(energy, torch.ones(2, 2, dtype=torch.float64), solver=solver, on_failure="ignore")
        assert (solution.status != ti.Status.CONVERGED).all()


def test_a_maximum_of_many_unknowns_is_found_out_and_a_flat_valley_is_not_accused():
    def one_falls(z):
        weight = torch.ones(40, dtype=torch.float64)
        weight[17] = -0.5
        return (weight * z.square()).sum(1)

    start = torch.zeros(2, 40, dtype=torch.float64)
    assert ti.argmin(one_falls, start, on_failure="ignore").status.tolist() == [ti.Status.SADDLE] * 2
    flat = ti.argmin(lambda z: z[:, 0].square() + 0 * z.sum(1), start + 1)
    assert flat.report.converged


def test_what_cannot_be_is_refused():
    z = torch.ones(2, 3)
    for solver in DOWN:
        with pytest.raises(TypeError, match=r"minimises an energy.*try argmin"):
            ti.fixed_point(lambda z: z / 2, z, solver=solver)
    with pytest.raises(TypeError, match="try least_squares"):
        ti.argmin(lambda z: z.square().sum(1), z, solver=ti.LevenbergMarquardt())
    center = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"Unrolled.*try adjoint=Implicit\(\)"):
        ti.argmin(lambda z, c: (z - c).square().sum(1), z, center, adjoint=ti.Unrolled())
    with pytest.raises(ValueError, match=r"check_minimum: got 1"):
        ti.argmin(lambda z: z.square().sum(1), z, check_minimum=1)
    for make, says in (
        (lambda: ti.LBFGS(memory=0), r"LBFGS\(memory=0\)"),
        (lambda: ti.LBFGS(trials=0), r"LBFGS\(trials=0\)"),
        (lambda: ti.NewtonCG(products=0), r"NewtonCG\(products=0\)"),
        (lambda: ti.NewtonCG(trials=1.5), r"NewtonCG\(trials=1.5\)"),
        (lambda: ti.LevenbergMarquardt(damping=-1), r"damping=-1"),
        (lambda: ti.LevenbergMarquardt(linear_solver=ti.LU), "a LinearSolver"),
        (lambda: ti.FISTA(restart=1), r"FISTA\(restart=1\)"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
