"""The contracts notice what breaks them."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import torchimplicit as ti
from torchimplicit import sde
from torchimplicit.ode import ExplicitRK, FixedSolver, Tableau
from torchimplicit.optim import projection
from torchimplicit.testing import (
    check_minimiser,
    check_path_adjoint,
    check_path_solver,
    check_projection,
    check_sde_solver,
)

RALSTON = Tableau(c=(0.0, 2 / 3), a=((), (2 / 3,)), b=(0.25, 0.75))


@dataclass(frozen=True, kw_only=True)
class Ralston(ExplicitRK, FixedSolver):
    """Ralston's method, order 2, with Hermite's cubic inside its steps."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = RALSTON


@dataclass(frozen=True, kw_only=True)
class Boastful(Ralston):
    order: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class Mixing(Ralston):
    def stepper(self, like, graph):
        step = super().stepper(like, graph)

        def mixing(field, span, y, slope):
            stepped = step(field, span, y, slope)
            return stepped._replace(y=stepped.y + 0 * stepped.y.sum())

        return mixing


def test_a_strangers_tableau_keeps_the_contract():
    check_path_solver(Ralston())


def test_an_order_that_is_not_reached_is_noticed():
    with pytest.raises(AssertionError, match=r"order 2\.0.* at the ends of its steps, 3 is stated"):
        check_path_solver(Boastful())


def test_samples_that_depend_on_each_other_are_noticed():
    with pytest.raises(AssertionError, match="samples depend on their batch mates"):
        check_path_solver(Mixing())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"b": (0.25, 0.8)}, r"the weights b, to add up to 1: 1\.0, got 1\.05"),
        ({"a": ((), (0.5,))}, r"row 1 of a, to add up to its node c\[1\]: 0\.66.*, got 0\.5"),
        ({"a": ((),)}, "as many rows of a as nodes c: 2, got 1"),
        ({"a": ((0.1,), (2 / 3,))}, "in row 0 of a, one number for each stage before it: 0, got 1"),
        ({"c": (0.0, 2 / 3, 1.0)}, "as many rows of a as nodes c: 3, got 2"),
        ({"e": (0.5, 0.5)}, r"the weights e of the error estimate, to add up to 0: 0\.0, got 1\.0"),
        ({"interpolant": ((1.0, -0.5), (0.0, 0.75))}, r"row 0 of the interpolant, to add up to b\[0\]"),
    ],
)
def test_a_tableau_that_is_none_is_refused(change, text):
    values = {"c": RALSTON.c, "a": RALSTON.a, "b": RALSTON.b} | change
    with pytest.raises(ValueError, match=text):
        Tableau(**values)


@dataclass(frozen=True)
class Half(ti.Direct):
    def solve(self, call, y0, ts, tensors):
        value = super().solve(call, y0, ts, tensors)
        return value.detach() + 0.5 * (value - value.detach())


def test_a_gradient_of_paths_that_is_off_is_noticed():
    with pytest.raises(AssertionError, match=r"gradient of the start is off by 5\.0e-01 of its size"):
        check_path_adjoint(Half())


@dataclass(frozen=True, kw_only=True)
class Sloppy(ti.LBFGS):
    def step(self, problem, state):
        new = super().step(problem, state)
        return new._replace(active=new.active & False)


def test_a_minimiser_that_stops_early_is_noticed():
    with pytest.raises((AssertionError, ti.ConvergenceError), match=r"stagnated|off by|converged"):
        check_minimiser(Sloppy())


@pytest.mark.parametrize(
    ("project", "text"),
    [
        (lambda x: x.softmax(-1), "a point of the set moves"),
        (lambda x: projection.simplex(2 * x), "a point of the set moves|lies beyond"),
        (lambda x: projection.l2_ball(x).round(), "lies beyond|is not the nearest"),
        (lambda x: projection.box(x - x.mean(0, keepdim=True), -1.0, 1.0), "moves|batch mates"),
        (lambda x: projection.l2_ball(x).double(), "the dtype"),
        (lambda x: projection.l2_ball(x).detach() + 0 * x, "Jacobian|Numerical"),
    ],
)
def test_a_projection_that_is_none_is_noticed(project, text):
    with pytest.raises((AssertionError, RuntimeError), match=text):
        check_projection(project)


@dataclass(frozen=True, kw_only=True)
class Wrong(sde.EulerMaruyama):
    """Of the other calculus, in silence."""

    calculus: ClassVar[str] = "stratonovich"


@dataclass(frozen=True, kw_only=True)
class Proud(sde.EulerMaruyama):
    strong: ClassVar[dict[str, float]] = {"additive": 1.0, "commuting": 1.0, "general": 0.5}


@dataclass(frozen=True, kw_only=True)
class Sharing(sde.EulerMaruyama):
    def advance(self, sde, span, h, y, path):
        return super().advance(sde, span, h, y, path)[0] + 0 * y.sum(), None


@dataclass(frozen=True, kw_only=True)
class Drawing(sde.EulerMaruyama):
    """Draws its own noise, once more in every step."""

    def advance(self, sde, span, h, y, path):
        return super().advance(sde, span, h, y, path)[0] + 1e-9 * torch.randn_like(y), None


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (Wrong(), r"strong order -?0\.\d+ of noise diagonal, 0.5 is stated"),
        (Proud(), r"strong order 0\.\d+ of noise diagonal, 1.0 is stated"),
        (Sharing(), "samples depend on their batch mates"),
        (Drawing(), "a seed does not repeat its path"),
    ],
)
def test_what_is_wrong_with_a_solver_of_stochastic_paths_is_noticed(solver, text):
    with pytest.raises(AssertionError, match=text):
        check_sde_solver(solver)
