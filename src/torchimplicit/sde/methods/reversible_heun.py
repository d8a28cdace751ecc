"""The reversible method of Heun for Stratonovich equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Step
from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.path.undo import Mend, Pair, Undo
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import driven
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.paired import NoisyPair
from torchimplicit.sde.solver import Calculus, SDESolver
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class ReversibleHeun(NoisyPair, SDESolver, FixedSolver):
    r"""Two states that reflect at each other, one evaluation a step, and an inverse as cheap.

    With the fields at $z$ alone, $z_{k+1} = 2 y_k - z_k + h f(z_k) + g(z_k) \Delta W$ and
    $y_{k+1} = y_k + \frac h2 (f(z_k) + f(z_{k+1})) + \frac12 (g(z_k) + g(z_{k+1})) \Delta W$: strong order 1 for noise
    that commutes (diagonal, scalar, additive), 1/2 for general noise.

    With `adjoint=Reversible()` the gradient is exact in constant memory, at one evaluation a step forward, and one with
    its derivative backward; other adjoints take it like any method. Nothing damps the distance $y - z$: drift that
    contracts makes it grow as $e^{\lambda t}$, however short the steps, which `DRIFTED` tells. `Heun()` with
    `adjoint=Reversible()` is damped, and dearer; for strongly contracting drifts take `Heun()` with another adjoint.

    For every noise, Stratonovich. One evaluation of drift and diffusion a step, and one at the start.

    Source: P. Kidger, J. Foster, X. Li, T. Lyons, Efficient and Accurate Gradients for Neural SDEs, NeurIPS 2021,
    algorithms 1 and 2.
    """

    order: ClassVar[int] = 1
    strong: ClassVar[Mapping[Structure, float]] = {"additive": 1.0, "commuting": 1.0, "general": 0.5}
    calculus: ClassVar[Calculus] = "stratonovich"

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, pair: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        y, z = pair.chunk(2, dim=1)
        way = _way(h, *(sde.met(pair) or sde.both(span.start, z)), path.W)
        reflected = torch.sub(torch.add(y, y), z) + way
        z = reflected if len(h) == 1 else torch.where(h > 0, reflected, z)  # what stands still is not reflected
        there = sde.both(span.stop, z)
        y = torch.add(y, way + _way(h, *there, path.W), alpha=0.5)
        return sde.meet(torch.cat((y, z), dim=1), there), None

    def paired(self, name: str, like: Tensor, coupling: float) -> ReversibleHeun:
        """See `PathSolver.paired`: it is a pair."""
        return self

    def undo(self, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Mend) -> Undo:
        """See `PairSolver.undo`."""
        return Reflected(field, ts, wanted, mend)


class Node(NamedTuple):
    """Drift and diffusion at a second state, with their graphs, and the gradient that they have from the step behind.

    Attributes:
        leaf: that state, `(B, n)`.
        f: the drift there.
        g: the diffusion there.
        to_f: gradient of the drift; None behind the last step.
        to_g: gradient of the diffusion.
    """

    leaf: Tensor
    f: Tensor
    g: Tensor
    to_f: Tensor | None = None
    to_g: Tensor | None = None


class Reflected(Undo):
    """Takes steps of `ReversibleHeun` back. Fields at a state serve the steps before and behind it; see `Undo`."""

    field: NoisyField
    node: Node | None = None

    def step(self, step: Step, end: Pair, cotangent: Pair) -> tuple[Pair, Pair]:
        """See `Undo.step`."""
        (y, z), (to_y, to_z), span = end, cotangent, step.span
        h, w = span.h.to(y.dtype).unsqueeze(1), self.field.increment(span, z).W
        there = self._node(self.span(step).stop, z) if self.node is None else self.node
        half = 0.5 * to_y  # of the way there, y' = y + (way + way') / 2
        to_z = to_z + self._pull(there, h, w, half)
        way_there = _way(h, there.f.detach(), there.g.detach(), w)
        before = torch.sub(torch.add(y, y), z + way_there)
        before = self.mend(before if step.all_move else torch.where(h > 0, before, z))
        here = self._node(self.span(step).start, before)
        way = _way(h, here.f.detach(), here.g.detach(), w)
        start = torch.sub(y, way + way_there, alpha=0.5)
        to_way = half + to_z  # z' = 2 y - z + way
        if self.ts.requires_grad:
            self._pull_times(step, there, here, half, to_way)
        self.node = here._replace(to_f=h * to_way, to_g=_outer(to_way, w, here.g))
        moved = torch.add(to_y, to_z, alpha=2), -to_z
        if not step.all_move:
            start = torch.where(h > 0, start, y)
            moved = [torch.where(h > 0, *each) for each in zip(moved, (to_y, to_z), strict=True)]
        return (start, before), moved

    def finish(self, cotangent: Pair) -> Pair:
        """See `Undo.finish`."""
        if self.node is None:
            return cotangent
        to_y, to_z = cotangent
        nothing = to_z[:0]
        return to_y, to_z + self._pull(self.node, nothing, nothing, None)

    def _node(self, t: Tensor, z: Tensor) -> Node:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            return Node(leaf, *self.field.both(t, leaf))

    def _pull(self, node: Node, h: Tensor, w: Tensor, to_way: Tensor | None) -> Tensor | float:
        """The gradient of a second state by those of the fields there, from the steps behind and before it.

        Args:
            node: fields at the state.
            h: length of the step before it, `(B, 1)`.
            w: noise over that.
            to_way: gradient of the way `h f + g w`; None for no step before it.
        """
        to_f, to_g = node.to_f, node.to_g
        if to_way is not None:
            more_f, more_g = h * to_way, _outer(to_way, w, node.g)
            to_f, to_g = (more_f, more_g) if to_f is None or to_g is None else (to_f + more_f, to_g + more_g)
        assert to_f is not None
        assert to_g is not None
        return self.pull((node.f, node.g), node.leaf, (to_f, to_g))

    def _pull_times(self, step: Step, there: Node, here: Node, to_there: Tensor, to_here: Tensor) -> None:
        """Adds what times have by the length of a step, and by the noise, whose normals are held."""
        with torch.enable_grad():
            span = self.span(step)
            h, w = span.h.to(to_here.dtype).unsqueeze(1), self.field.increment(span, to_here).W
            ways = [_way(h, each.f.detach(), each.g.detach(), w) for each in (there, here)]
        self.pull(ways, None, (to_there, to_here))


def _way(h: Tensor, f: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """`h f + g w`."""
    return driven(h * f, g, w)


def _outer(a: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """The gradient of a diffusion `g` by that of `g w`, `(B, n)`."""
    return a * w if g.dim() == 2 else a.unsqueeze(2) * w.unsqueeze(1)
