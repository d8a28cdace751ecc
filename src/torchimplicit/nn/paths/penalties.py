r"""What makes a path cheap to solve, as rates that are integrated along it: $\int R(t, y)\, dt$ of every sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.options import require, require_count, require_instance
from torchimplicit.core.tree import Layout
from torchimplicit.nn.paths.vjp import linearise
from torchimplicit.path.solver import AdaptiveSolver, PathSolver

Noise = Literal["gaussian", "rademacher"]
IGNORED = 1e30  # a tolerance that no error reaches


def draw_probe(noise: Noise, like: Tensor) -> Tensor:
    """A random tensor of mean zero and unit covariance, shaped like another one."""
    if noise == "gaussian":
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)
    return torch.randint(2, like.shape, dtype=like.dtype, device=like.device) * 2 - 1


class Moment:
    """A field at one time and state: its slope, and what penalties ask of it beyond, computed once.

    Args:
        field: `field(t, y) -> dy/dt`, its further arguments given.
        t: times, `(B, 1, ...)`.
        y: state, `(B, ...)`, or a nest of such where nothing but the slope is asked for.
        probe: see `draw_probe`; None where there is none.
        plain: whether nothing but the slope will be asked for.
    """

    def __init__(self, field: Callable[[Any, Any], Any], t: Tensor, y: Any, probe: Tensor | None, plain: bool):
        self.field, self.t, self.y, self.probe, self.plain = field, t, y, probe, plain

    @cached_property
    def slope(self) -> Any:
        """`dy/dt`."""
        return self.field(self.t, self.y) if self.plain else self._linear[0]

    @cached_property
    def pulled(self) -> Tensor:
        r"""$\epsilon^\top \partial f / \partial y$, like `y`."""
        assert self.probe is not None
        return self._linear[1](self.probe)

    def trace(self) -> Tensor:
        r"""$\operatorname{tr} \partial f / \partial y$, `(B,)`, exactly: a product for every entry of a sample."""
        slope, vjp = self._linear
        total = torch.zeros_like(slope[:, :1].flatten(1)[:, 0])
        basis = torch.eye(slope.shape[1:].numel(), dtype=slope.dtype, device=slope.device)
        for i, row in enumerate(basis.view(-1, *slope.shape[1:])):
            total = total + vjp(row.expand_as(slope)).flatten(1)[:, i]
        return total

    @cached_property
    def _linear(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return linearise(lambda y: self.field(self.t, y), self.y)

    def derivative(self, order: int) -> Tensor:
        """The derivative of the path by time of this order, like `y`; 1 is the slope."""
        if order == 1:
            return self.slope
        tangent = torch.ones_like(self.t)

        def derivative(order: int, t: Tensor, y: Tensor) -> Tensor:
            if order == 1:
                return self.field(t, y)
            return torch.func.jvp(lambda t, y: derivative(order - 1, t, y), (t, y), (tangent, self.field(t, y)))[1]

        return derivative(order, self.t, self.y)


@dataclass(frozen=True, kw_only=True)
class PathPenalty:
    """Base of the penalties of a path. A subclass says their density.

    Attributes:
        noise: what its probe is drawn from, once a solve; None for none.
    """

    @property
    def noise(self) -> Noise | None:
        """See the class."""
        return None

    def density(self, moment: Moment) -> Tensor:
        """What is integrated, `(B,)`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class KineticEnergy(PathPenalty):
    r"""$\int |f|^2 dt$, of the optimal transport: straight paths of even speed. Costs no evaluation.

    Source: C. Finlay, J.-H. Jacobsen, L. Nurbekyan, A. Oberman, arXiv 2002.02798.
    """

    def density(self, moment: Moment) -> Tensor:
        """See `PathPenalty.density`."""
        total = sum(leaf.abs().square().flatten(1).sum(1) for leaf in pytree.tree_leaves(moment.slope))
        assert isinstance(total, Tensor)
        return total


@dataclass(frozen=True, kw_only=True)
class JacobianFrobenius(PathPenalty):
    r"""$\int |\epsilon^\top \partial f / \partial y|^2 dt$: the Jacobian's squared Frobenius norm, by one probe.

    An unbiased estimate. Costs one vector-Jacobian product an evaluation, twice the time in training; none in a `CNF`
    with Hutchinson's trace, whose product it is. For a state of one tensor.

    Source: C. Finlay, J.-H. Jacobsen, L. Nurbekyan, A. Oberman, arXiv 2002.02798.

    Args:
        probe: what $\epsilon$ is drawn from, once a solve: "gaussian" or "rademacher".
    """

    probe: Noise = "gaussian"

    def __post_init__(self) -> None:
        """Refuses other words."""
        require(self, "probe", self.probe in ("gaussian", "rademacher"), "'gaussian' or 'rademacher'")

    @property
    def noise(self) -> Noise | None:
        """See `PathPenalty`."""
        return self.probe

    def density(self, moment: Moment) -> Tensor:
        """See `PathPenalty.density`."""
        return moment.pulled.square().flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class TaylorDerivative(PathPenalty):
    r"""$\int |d^K y / dt^K|^2 dt$: paths that are polynomials of degree below $K$ cost nothing.

    A method of order $p$ sees $d^{p+1} y / dt^{p+1}$ as its error, so a smaller penalty means longer steps. Computed by
    nested forward differentiation, at a price: training a small network took 7, 15 and 37 times as long with orders 2,
    3 and 4 as without, at the same steps, and pays where evaluations are saved later. For a state of one tensor, and a
    field with as many derivatives (not of ReLU).

    Source: J. Kelly, J. Bettencourt, M. J. Johnson, D. Duvenaud, arXiv 2007.04504.

    Args:
        order: $K$, an integer >= 1; 1 is the kinetic energy.
    """

    order: int = 3

    def __post_init__(self) -> None:
        """Refuses other numbers."""
        require_count(self, "order")

    def density(self, moment: Moment) -> Tensor:
        """See `PathPenalty.density`."""
        return moment.derivative(self.order).square().flatten(1).sum(1)


def noise_of(penalties: Sequence[PathPenalty]) -> Noise | None:
    """What the probe of some penalties is drawn from; None where none has one."""
    for penalty in penalties:
        if penalty.noise is not None:
            return penalty.noise
    return None


def check_penalties(owner: str, penalties: Any) -> tuple[PathPenalty, ...]:
    """The penalties as a tuple.

    Raises:
        TypeError: something is no penalty, the class in place of an instance for example.
        ValueError: probes of two kinds, of which a solve has one.
    """
    found = tuple(penalties) if isinstance(penalties, Sequence) else (penalties,)
    for penalty in found:
        require_instance(f"{owner}(penalties=...)", penalty, PathPenalty, "KineticEnergy()")
    if len({penalty.noise for penalty in found} - {None}) > 1:
        raise ValueError(f"{owner}(penalties={found}): got probes of two kinds, expected one for all; try the same")
    return found


def beside(solver: PathSolver, state: Any, y: Any, batch_dims: int) -> PathSolver:
    """A solver whose steps follow the errors of `y` alone, the first part of a state, as if that were all."""
    if not isinstance(solver, AdaptiveSolver):
        return solver
    part, whole = Layout(y, batch_dims), Layout(state, batch_dims)
    share = (part.width / whole.width) ** 0.5  # errors are means over all unknowns
    tolerances = {}
    for name in ("rtol", "atol"):
        value = getattr(solver, name)
        if isinstance(value, Tensor):
            rows = part.flatten(value.to(part.dtype).expand(part.shapes[0])) if part.plain else value
        else:
            rows = torch.full((1, part.width), value, dtype=part.dtype, device=part.device)
        ignored = rows.new_full((len(rows), whole.width - part.width), IGNORED)
        tolerances[name] = torch.cat((rows * share, ignored), dim=1)
    return replace(solver, **tolerances)
