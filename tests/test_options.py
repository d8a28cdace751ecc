"""Options of every public class: what is given works, or is refused in words that say what was expected."""

import dataclasses
import math
import re

import pytest
import torch

import torchimplicit as ti
from torchimplicit import adjoint, diagnose, linear, nn, ode, optim, sde, solve

D = torch.float64
REQUIRED = {ti.Fixed: {"dt": 0.1}, ti.Event: {"condition": lambda t, y: y[:, 0] - 0.5}}  # options without a default
GIVEN = {
    "a string": "x",
    "None": None,
    "NaN": math.nan,
    "infinity": math.inf,
    "a negative number": -0.5,
    "a negative integer": -1,
    "zero": 0,
    "True": True,
    "a tensor": torch.tensor([0.1, 0.01], dtype=D),
    "a number in a tensor": torch.tensor(0.01, dtype=D),
    "a list": [1.0],
    "an object": object(),
}


def exported():
    """The public classes whose objects are options: frozen, and made without arguments, as no result of a solve is."""
    classes = {}
    for space in (ti, adjoint, diagnose, linear, nn, ode, optim, sde, solve):
        for kind in (getattr(space, name) for name in space.__all__):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:
                needed = {each.name for each in dataclasses.fields(kind) if is_needed(each)}
                if needed == REQUIRED.get(kind, {}).keys():
                    classes[kind] = None
    return list(classes)


def is_needed(field):
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


CLASSES = exported()


def path(**options):
    y0, ts = torch.ones(3, 2, dtype=D, requires_grad=True), torch.tensor([0.0, 0.5, 1.0], dtype=D)
    solver = options.pop("solver", ti.RK4(dt=0.5))
    field = lambda t, y: torch.stack((y[:, 1], -y[:, 0]), 1)  # noqa: E731
    field = ti.Split(field, field) if isinstance(solver, ti.KenCarp4) else field
    solution = ti.odeint(field, y0, ts, solver=solver, **options)
    solution.value.sum().backward()
    assert solution.value.isfinite().all()
    assert y0.grad.isfinite().all()


def noisy(solver):
    y0, ts = torch.ones(3, 2, dtype=D, requires_grad=True), torch.tensor([0.0, 0.5, 1.0], dtype=D)
    kind = "additive" if "diagonal" not in solver.kinds else "diagonal"
    diffusion = (lambda t, y: torch.full_like(y, 0.1)) if kind == "additive" else (lambda t, y: 0.1 * y)
    options = {"noise": kind, "calculus": solver.calculus, "brownian": 1, "on_failure": "ignore"}
    solution = ti.sdeint(lambda t, y: -y, diffusion, y0, ts, solver=solver, **options)
    solution.value.sum().backward()
    assert solution.value.isfinite().all()
    assert y0.grad.isfinite().all()


def point(**options):
    x = torch.ones(3, 2, dtype=D, requires_grad=True)
    solution = ti.fixed_point(lambda z, x: 0.5 * torch.cos(z) + x, torch.zeros_like(x), x, **options)
    solution.value.sum().backward()
    assert solution.value.isfinite().all()
    assert x.grad.isfinite().all()


def minimum(solver):
    x = torch.ones(3, 2, dtype=D)
    if isinstance(solver, ti.LevenbergMarquardt):
        solution = ti.least_squares(lambda z, x: z - x, 0 * x, x, solver=solver, on_failure="ignore")
    else:
        solution = ti.argmin(lambda z, x: (z - x).square().sum(1), 0 * x, x, solver=solver, on_failure="ignore")
    assert solution.value.isfinite().all()


def control(solver):
    dynamics, cost = lambda x, u: x + 0.1 * u, lambda x, u: (x.square() + u.square()).sum(1)
    x0 = torch.ones(2, 1, dtype=D)
    assert ti.ilqr(dynamics, cost, x0, 3, controls=1, solver=solver, on_failure="ignore").value.isfinite().all()


def noise(source):
    bound = source.bind(torch.zeros(2, 1, dtype=D))
    found = bound.increment(0, 0.5) if isinstance(source, sde.Brownian) else bound.between(0.0, 0.5)
    assert found.W.isfinite().all()


USES = {  # by the base of what is given, the more special first
    sde.SDESolver: noisy,
    ti.ode.PathSolver: lambda given: path(solver=given, on_failure="ignore"),
    ti.ode.PathAdjoint: lambda given: path(adjoint=given, on_failure="ignore"),
    ti.PID: lambda given: path(solver=ti.Tsit5(control=given)),
    ti.Fixed: lambda given: path(solver=ti.Tsit5(control=given)),
    ti.Event: lambda given: path(event=given, solver=ti.Tsit5()),
    ti.solve.Minimiser: minimum,
    ti.FISTA: lambda given: point(solver=given, on_failure="ignore"),
    ti.solve.Solver: lambda given: point(solver=given, on_failure="ignore"),
    ti.linear.LinearSolver: lambda given: point(adjoint=ti.Implicit(given), on_failure="ignore"),
    ti.adjoint.Adjoint: lambda given: point(solver=ti.Broyden(), adjoint=given, on_failure="ignore"),
    optim.BoxDDP: control,
    sde.Brownian: noise,
    sde.Tree: noise,
}


def faults(kind):
    """What is wrong with what a class says, or does, of each thing that is given to each of its fields."""
    abstract = any(issubclass(other, kind) for other in CLASSES if other is not kind)
    use = next((use for base, use in USES.items() if issubclass(kind, base)), None)
    for field in (each.name for each in dataclasses.fields(kind)):
        for words, value in GIVEN.items():
            try:
                config = kind(**REQUIRED.get(kind, {}) | {field: value})
            except (TypeError, ValueError) as error:
                if not re.match(rf"{kind.__name__}\({field}\b.*\).*expected ", str(error), re.DOTALL):
                    yield f"{field}, {words}: {error}"
                continue
            except Exception as error:
                yield f"{field}, {words}: {type(error).__name__}: {error}"
                continue
            if use is not None and not abstract:
                try:
                    use(config)
                except Exception as error:
                    yield f"{field}, {words}, taken, and then {type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_option_works_or_is_refused_in_words(kind):
    assert not list(faults(kind))


def test_the_classes_are_found():
    assert {ti.Anderson, ti.GMRES, ti.Tsit5, ti.PID, ti.Fixed, ti.Backsolve, ti.Event, sde.Brownian} < set(CLASSES)
    assert not any(issubclass(kind, ti.Solution) for kind in CLASSES)
