"""The reversible method of Heun for Stratonovich equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Step
from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.path.undo import Undo
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
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`; on pairs `(B, 2n)`."""
        y, z, (f, g) = *y.chunk(2, dim=1), sde.met(y) or sde.both(span.start, y.chunk(2, dim=1)[1])
        z = driven(torch.addcmul(torch.sub(2 * y, z), h, f), g, path.W)
        f_there, g_there = there = sde.both(span.stop, z)
        y = driven(torch.addcmul(y, 0.5 * h, f + f_there), g + g_there, 0.5 * path.W)
        return sde.meet(torch.cat((y, z), dim=1), there), None

    def paired(self, name: str, like: Tensor, coupling: float) -> ReversibleHeun:
        """See `PathSolver.paired`: it is a pair."""
        return self

    def undo(self, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Callable[[Tensor], Tensor]) -> Undo:
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

    def step(self, step: Step, end: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """See `Undo.step`."""
        (y, z), (to_y, to_z) = end.chunk(2, dim=1), cotangent.chunk(2, dim=1)
        span = step.span
        h, w = span.h.to(y.dtype).unsqueeze(1), self.field.increment(span, z).W
        there = self.node or self._node(self.span(step).stop, z)
        f, g = there.f.detach(), there.g.detach()
        # y' = y + h/2 (f + f') + (g + g') w/2
        half_f, half_g = 0.5 * h * to_y, _outer(to_y, 0.5 * w, g)
        to_z = to_z + self._pull(there, half_f, half_g)
        before = driven(torch.addcmul(torch.sub(2 * y, z), h, f, value=-1), g, -w)
        before = self.mend(before if step.all_move else torch.where(h > 0, before, z))
        here = self._node(self.span(step).start, before)
        f_here, g_here = here.f.detach(), here.g.detach()
        start = driven(torch.addcmul(y, h, f + f_here, value=-0.5), g + g_here, -0.5 * w)
        start = self.mend(start if step.all_move else torch.where(h > 0, start, y))
        if self.ts.requires_grad:
            self._pull_times(step, (f, g, f_here, g_here), to_y, to_z)
        # z' = 2 y - z + h f + g w
        self.node = here._replace(to_f=torch.addcmul(half_f, h, to_z), to_g=half_g + _outer(to_z, w, g))
        moved = torch.cat((torch.add(to_y, to_z, alpha=2), -to_z), dim=1)
        still = moved if step.all_move else torch.where(h > 0, moved, torch.cat((to_y, to_z), dim=1))
        return torch.cat((start, before), dim=1), still

    def finish(self, cotangent: Tensor) -> Tensor:
        """See `Undo.finish`."""
        if self.node is None:
            return cotangent
        to_y, to_z = cotangent.chunk(2, dim=1)
        return torch.cat((to_y, to_z + self._pull(self.node, 0.0, 0.0)), dim=1)

    def _node(self, t: Tensor, z: Tensor) -> Node:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            return Node(leaf, *self.field.both(t, leaf))

    def _pull(self, node: Node, to_f: Any, to_g: Any) -> Tensor | float:
        """The gradient of a second state by those of the fields there, from both steps."""
        if node.to_f is not None and node.to_g is not None:
            to_f, to_g = node.to_f + to_f, node.to_g + to_g
        return self.pull((node.f, node.g), node.leaf, (to_f, to_g))

    def _pull_times(self, step: Step, fields: Sequence[Tensor], to_y: Tensor, to_z: Tensor) -> None:
        """Adds what times have by the length of a step, and by the noise, whose normals are held."""
        f, g, f_here, g_here = fields
        with torch.enable_grad():
            span = self.span(step)
            h, w = span.h.to(to_y.dtype).unsqueeze(1), self.field.increment(span, to_z).W
            gained = [driven(0.5 * h * (f + f_here), g + g_here, 0.5 * w), driven(h * f_here, g_here, w)]
        self.pull(gained, None, [to_y, to_z])


def _outer(a: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """The gradient of a diffusion `g` by that of `g w`, `(B, n)`."""
    return a * w if g.dim() == 2 else a.unsqueeze(2) * w.unsqueeze(1)
