"""Symplectic solvers for mechanical systems: no drift of the energy, however long the path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.tree import Layout
from torchimplicit.ode.explicit.tableau import Row
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import HermiteInterpolant
from torchimplicit.path.solver import FixedSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


@dataclass(frozen=True, kw_only=True)
class SymplecticSolver(FixedSolver):
    r"""Base of the symplectic solvers, for separable fields $\dot q = u(t, p)$, $\dot p = F(t, q)$.

    The state is a pair `(q, p)` of equal shapes, or a tensor `(B, 2 d)` whose halves they are, and `f` returns the
    slopes of both likewise. The map of a step preserves volume and the symplectic form, and a step back from its end
    leads to its start: so the energy of a Hamiltonian field, $H = T(p) + V(q)$, wavers within a bound of $O(h^r)$ and
    does not drift. Steps are fixed: choosing them by an error would lose just that. For a field that is not separable
    (a magnetic force, friction, $H(q, p)$ of any form) take `Dopri8`; it is refused at the first step.

    A step is a chain of kicks, $p$ by $F$, and drifts, $q$ by $u$, each one evaluation of `f`, of which half is used.
    """

    substeps: ClassVar[Row]  # of which each is a leapfrog of its own; they add up to 1

    def check(self, layout: Layout) -> None:
        """Refuses a state that is no pair.

        Raises:
            ValueError: says what was got.
        """
        pair = len(layout.shapes) == 2 and layout.shapes[0] == layout.shapes[1]
        shape = layout.shapes[0]
        rows = len(shape) == 1 or (len(shape) == 2 and shape[0] == layout.batch)
        halves = len(layout.shapes) == 1 and layout.width % 2 == 0 and rows
        if not pair and not halves:
            raise ValueError(
                f"{type(self).__name__}: got a state of {layout.describe()}, expected a pair (q, p) of one shape, or "
                "a tensor (B, 2 d) whose halves they are; try y0 = (q, p), and f(t, y) that returns the slopes of both"
            )

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        checked = graph  # a path that is made again has been checked

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            nonlocal checked
            slope = field(span.start, y) if slope is None else slope
            if not checked and not transforms.active():
                checked = True
                _check_separable(field, span.start, span.h, y)
            return _chain(self.substeps, field, span, y, slope)

        return step


def _chain(substeps: Row, field: Field, span: Span, y: Tensor, slope: Tensor) -> Stepped:
    """Leapfrogs of these parts of the step, one after another: kick, drift, kick."""
    size, width = span.h.to(y.dtype).unsqueeze(1), y.shape[1] // 2
    q, p = y.split(width, 1)
    force = slope[:, width:]
    done = 0.0
    for i, part in enumerate(substeps):
        stride = part * size
        p = p + 0.5 * stride * force
        middle = field(span.at(done + 0.5 * part), torch.cat((q, p), 1))
        q = q + stride * middle[:, :width]
        done = 1.0 if i == len(substeps) - 1 else done + part
        slope = field(span.at(done), torch.cat((q, p), 1))
        force = slope[:, width:]
        p = p + 0.5 * stride * force
    end = torch.cat((q, p), 1)
    # The slope handed on is for the next step, which looks at the force alone, and that the last kick does not change.
    # It is not the whole slope, and so none of those that the path inside is made of.
    return Stepped(end, None, slope, HermiteInterpolant(field, span, size, y, end))


def _check_separable(field: Field, t: Tensor, h: Tensor, y: Tensor) -> None:
    """Refuses a field whose force depends on `p`, or whose velocity depends on `q`.

    Raises:
        ValueError: it is one.
    """
    width = y.shape[1] // 2
    here, size = field(t, y), h.to(y.dtype).unsqueeze(1)
    for half, words in (
        (slice(None, width), "the velocity, dq/dt, depends on q"),
        (slice(width, None), "the force, dp/dt, depends on p"),
    ):
        moved = y.clone()
        moved[:, half] += size * here[:, half] + 0.01 * (1 + y[:, half].abs())
        there = field(t, moved)
        slack = 1e3 * torch.finfo(y.dtype).eps * (1 + here[:, half].abs())
        if bool(((there - here)[:, half].abs() > slack).any()):
            raise ValueError(f"the field is not separable: {words}; try Dopri8(), or Tsit5()")


@dataclass(frozen=True, kw_only=True)
class Leapfrog(SymplecticSolver):
    """The leapfrog, Stoermer's and Verlet's method, order 2: kick, drift, kick. Two evaluations a step."""

    order: ClassVar[int] = 2
    substeps: ClassVar[Row] = (1.0,)


_P = 1 / (4 - 4 ** (1 / 3))


@dataclass(frozen=True, kw_only=True)
class Suzuki4(SymplecticSolver):
    """Five leapfrogs, one of them backward, order 4: ten evaluations a step.

    Unlike the better known composition of three, by Forest and Ruth and by Yoshida, it evaluates nothing outside of the
    step, and has a seventh of its error after as many evaluations (measured on a pendulum).

    Source: M. Suzuki, Phys. Lett. A 146 (1990) 319.
    """

    order: ClassVar[int] = 4
    substeps: ClassVar[Row] = (_P, _P, 1 - 4 * _P, _P, _P)
