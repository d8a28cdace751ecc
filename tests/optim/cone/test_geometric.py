"""Geometric programs in logarithms: values and multipliers of cvxpy, gradients in closed form, refusals that help."""

import pickle

import cvxpy as cp
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from torchimplicit.optim import GeometricProgram, canonicalise

DOUBLE = torch.float64
TIGHT = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def positive(*shape, seed=0):
    return torch.rand(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + 0.5


def largest_box():
    """The largest box of given walls, floor and proportions."""
    sides = h, w, d = [cp.Variable(pos=True, name=name) for name in "hwd"]
    walls, floor, least = [cp.Parameter(pos=True, name=name) for name in ("walls", "floor", "least")]
    constraints = [2 * (h * w + h * d) <= walls, w * d <= floor, h / w >= least]
    problem = cp.Problem(cp.Maximize(h * w * d), constraints)
    return (
        problem,
        [walls, floor, least],
        sides,
        constraints,
        [100 * positive(3), 10 * positive(3, seed=1), positive(3)],
    )


def posynomial():
    """A vector of unknowns, a matrix of coefficients, and an exponent that is learnt."""
    x, C, p = cp.Variable(3, pos=True), cp.Parameter((2, 3), pos=True, name="C"), cp.Parameter(name="p")
    constraints = [C @ x <= 2, x[0] ** p * x[1] >= 0.1 * x[2]]
    problem = cp.Problem(cp.Minimize(cp.sum(1 / x) + cp.max(x) + x[0] * x[1] ** -0.5), constraints)
    return problem, [C, p], [x], constraints, [positive(3, 2, 3), torch.tensor(0.7, dtype=DOUBLE)]


def factor_and_exponent():
    """One parameter in both roles."""
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True, name="a")
    return cp.Problem(cp.Minimize(a * x + 1 / x**a), []), [a], [x], [], [positive(3)]


models = pytest.mark.parametrize(
    "model", [largest_box, posynomial, factor_and_exponent], ids=lambda model: model.__name__
)


@models
def test_variables_and_multipliers_are_those_of_cvxpy(model):
    problem, parameters, variables, duals, values = model()
    layer = ti.nn.Convex(problem, parameters, variables, duals=duals, gp=True, on_failure="raise")
    found = layer(*values)
    for i in range(3):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = (value[i] if value.dim() > parameter.ndim else value).numpy()
        problem.solve(gp=True, solver=cp.CLARABEL, **TIGHT)
        wanted = [*(x.value for x in variables), *(c.dual_value for c in duals)]
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(
                mine[i], torch.as_tensor(theirs).double(), rtol=1e-5, atol=1e-5
            )  # its accuracy, not ours
    assert layer.report.converged
    assert float(layer.report.residual.max()) < 1e-10


@models
def test_gradients_agree_with_finite_differences(model):
    problem, parameters, variables, duals, values = model()
    layer = ti.nn.Convex(problem, parameters, variables, duals=duals, gp=True, on_failure="raise")
    inputs = [value.clone().requires_grad_() for value in values]
    assert gradcheck(lambda *values: layer(*values), inputs, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(lambda *values: layer(*values)[: len(variables)], inputs, fast_mode=True)


def test_the_closed_form_over_sixty_powers_of_ten():
    x, a, b = cp.Variable(pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    layer = ti.nn.Convex(cp.Problem(cp.Minimize(a * x + b / x)), [a, b], [x], gp=True, on_failure="raise")
    scale = 10.0 ** torch.arange(-30, 31, 10, dtype=DOUBLE)
    first, second = positive(7).requires_grad_(), (scale * positive(7, seed=1)).requires_grad_()
    (value,) = layer(first, second)
    torch.testing.assert_close(value, (second / first).sqrt(), rtol=1e-8, atol=0)
    by_first, by_second = torch.autograd.grad(value.sum(), [first, second])
    torch.testing.assert_close(by_first, -value.detach() / (2 * first), rtol=1e-7, atol=0)
    torch.testing.assert_close(by_second, value.detach() / (2 * second), rtol=1e-7, atol=0)


def test_a_program_that_has_no_solution_says_so_and_leaves_the_others_alone():
    x, least = cp.Variable(pos=True), cp.Parameter(pos=True, name="least")
    layer = ti.nn.Convex(cp.Problem(cp.Minimize(1 / x), [x <= 1, x >= least]), [least], [x], gp=True, on_failure="nan")
    bounds = torch.tensor([0.5, 2.0, 0.5], dtype=DOUBLE, requires_grad=True)
    (value,) = layer(bounds)
    assert [ti.Status(s).name for s in layer.report.status.tolist()] == ["CONVERGED", "INFEASIBLE", "CONVERGED"]
    assert value[1].isnan()
    torch.testing.assert_close(value[[0, 2]], torch.ones(2, dtype=DOUBLE))


def test_precision_copies_and_a_program_without_cvxpy():
    problem, parameters, variables, _, values = largest_box()
    program = canonicalise(problem, parameters, variables, gp=True)
    assert isinstance(program, GeometricProgram)
    again = pickle.loads(pickle.dumps(program)).solve([value.float() for value in values])
    for low, high in zip(again.variables, program.solve(values).variables, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=0)


x, y = cp.Variable(pos=True, name="x"), cp.Variable(name="y")
a = cp.Parameter(pos=True, name="a")


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_parameters_that_are_not_positive_are_refused_by_name(value):
    layer = ti.nn.Convex(cp.Problem(cp.Minimize(a * x + 1 / x)), [a], [x], gp=True)
    with pytest.raises(ValueError, match=rf"parameter a: got {value:g} at batch index 1, expected > 0, .*softplus"):
        layer(torch.tensor([1.0, value, -3.0]))
    with pytest.raises(ValueError, match=r"parameter a: got shape \(2, 2\)"):
        layer(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"got 0 parameters, expected 1: a"):
        layer()
    with pytest.warns(ti.ConvergenceWarning, match="non_finite: sample 1"):
        layer(torch.tensor([1.0, torch.nan]))
    layer(torch.nn.functional.softplus(torch.tensor([1.0, value])))  # what the message says to try
    assert layer.report.converged


@pytest.mark.parametrize(
    ("problem", "gp", "message"),
    [
        (cp.Problem(cp.Minimize(a * y), [y >= 1]), True, r"the objective: .*declared positive are y: try pos=True"),
        (cp.Problem(cp.Minimize(a * x), [x - a <= 1]), True, r"because of constraint 0: .* It is convex: try gp=False"),
        (cp.Problem(cp.Minimize(a * x + 1 / (a * x))), False, r"It is a geometric program: try gp=True"),
        (cp.Problem(cp.Minimize(a * x), [x >= 1]), 1, r"gp=1.*True or False"),
    ],
)
def test_problems_of_the_other_kind_are_told_which(problem, gp, message):
    with pytest.raises(ValueError, match=message):
        ti.nn.Convex(problem, [a], problem.variables(), gp=gp)
