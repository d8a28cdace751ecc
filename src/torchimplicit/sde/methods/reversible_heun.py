"""The reversible method of Heun for Stratonovich equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.path.adjoint.drift import LIMIT
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Step
from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.path.undo import Mend, Pair, Undo
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import driven
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.paired import NoisyPair, part_of, size_of, spread
from torchimplicit.sde.solver import Calculus, SDESolver
from torchimplicit.sde.structure import Structure

NEAR = 0.05  # of the way that a sample goes: two states that are no further apart than that need no other look
WRONG = 0.1  # of that way: how wrong a sample may be


@dataclass(frozen=True, kw_only=True)
class ReversibleHeun(NoisyPair, SDESolver, FixedSolver):
    r"""Two states that reflect at each other, one evaluation a step, and an inverse as cheap.

    With the fields at $z$ alone, $z_{k+1} = 2 y_k - z_k + h f(z_k) + g(z_k) \Delta W$ and

    $$y_{k+1} = y_k + \frac h2 (f(z_k) + f(z_{k+1})) + \frac12 (g(z_k) + g(z_{k+1})) \Delta W.$$

    Strong order 1 for noise that commutes (diagonal, scalar, additive), 1/2 for general noise.

    With `adjoint=Reversible()` the gradient is exact in constant memory, at one evaluation a step forward, and one with
    its derivative backward; other adjoints take it like any method. Nothing damps the distance $y - z$: drift that
    contracts makes it grow as $e^{\lambda t}$, however short the steps. The second state is on either side in turn:
    linear fields hardly feel that for long, others are asked for what is not their mean. Where $y$ is wrong for it by a
    tenth of the way that it goes, by an estimate at the output where the two are furthest apart, `DRIFTED` tells; what
    comes and goes between two outputs it does not see. `Heun()` with `adjoint=Reversible()` is damped, and dearer; for
    strongly contracting drifts take `Heun()` with another adjoint.

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
        if (known := sde.met(pair)) is None:
            y, z = pair.chunk(2, dim=1)
            known = y, z, *sde.both(span.start, z)
        y, z, f, g = known
        reflected = driven(torch.addcmul(torch.lerp(z, y, 2.0), h, f), g, path.W)
        z = reflected if len(h) == 1 else torch.where(h > 0, reflected, z)  # what stands still is not reflected
        f_there, g_there = there = sde.both(span.stop, z)
        y = _between(y, h, f + f_there, g + g_there, path.W, 0.5)
        return sde.meet(torch.cat((y, z), dim=1), (y, z, *there)), None

    def paired(self, name: str, like: Tensor, coupling: float) -> ReversibleHeun:
        """See `PathSolver.paired`: it is a pair."""
        return self

    def apart(self, field: Field, ts: Tensor, y: Tensor, z: Tensor) -> Tensor:
        r"""See `PairSolver.apart`: how wrong the first states are for it, over a tenth of the way that they go.

        The second states are $y \mp d$ in turn. So over the path $y$ is wrong by the time times
        $\frac12 (f(y - d) + f(y + d)) - f(y)$, and by what $f$ makes of the half of a step that is over on one side,
        $\frac h4 (f(y - d) - f(y + d))$; the diffusion likewise, by the root of the time.
        """
        assert isinstance(field, NoisyField)
        size = size_of(field, ts, y)
        part = part_of(y - z, size)
        worst, everybody = part.argmax(0), torch.arange(y.shape[1], device=y.device)
        part = part[worst, everybody]
        if bool((part <= NEAR).all()):
            return LIMIT * part
        t, y, z = (each[worst, everybody] for each in (ts, y, z))
        h = (ts.diff(dim=0).amax(0) if self.dt is None else torch.full_like(t, self.dt)).to(y.dtype).unsqueeze(1)
        (f, g), (f_z, g_z), (f_m, g_m) = (field.both(t, each) for each in (y, z, 2 * y - z))
        f_late, g_late = field.both(t, torch.addcmul(y, h, f_z - f_m, value=0.25))
        time = (ts[-1] - ts[0]).to(y.dtype).unsqueeze(1)
        bent = time * (0.5 * (f_z + f_m) - f).abs() + time.sqrt() * spread(0.5 * (g_z + g_m) - g)
        late = 0.5 * h * (f_late - f).abs() + time.sqrt() * spread(g_late - g)
        # Bends add up as if they had one sign: ten times too much where noise moves a field from bend to bend. But an
        # estimate at one place says little of a field that is seen to bend, at states that are as far apart.
        wrong = late + torch.where((part <= 1).unsqueeze(1), WRONG * bent, bent / WRONG)
        return torch.where(part <= NEAR, LIMIT * part, LIMIT / WRONG * part_of(wrong, size))

    def undo(self, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Mend) -> Undo:
        """See `PairSolver.undo`."""
        return Reflected(field, ts, wanted, mend)


class Node(NamedTuple):
    """Drift and diffusion at a second state, with their graphs, and the gradient that they have from the step behind.

    Attributes:
        leaf: that state, `(B, n)`.
        f: the drift there.
        g: the diffusion there.
        to_f: gradient of the drift.
        to_g: gradient of the diffusion.
    """

    leaf: Tensor
    f: Tensor
    g: Tensor
    to_f: Tensor
    to_g: Tensor


class Reflected(Undo):
    """Takes steps of `ReversibleHeun` back. Fields at a state serve the steps before and behind it; see `Undo`."""

    field: NoisyField
    node: Node | None = None

    def step(self, step: Step, end: Pair, cotangent: Pair) -> tuple[Pair, Pair]:
        """See `Undo.step`."""
        (y, z), (to_y, to_z), span = end, cotangent, self.span(step)
        h, w = step.span.h.to(y.dtype).unsqueeze(1), self.field.increment(step.span, z).W
        there = self._node(span.stop, z, torch.zeros_like(z), h, w) if self.node is None else self.node
        # y' = y + (way + way') / 2, and z' = 2 y - z + way
        to_g = _outer(to_y, w, there.g, there.to_g)
        to_z = to_z + self._pull(there, torch.addcmul(there.to_f, h, to_y, value=0.5), to_g)
        to_way = torch.add(to_z, to_y, alpha=0.5)
        before = torch.lerp(driven(torch.addcmul(z, h, there.f.detach()), there.g.detach(), w), y, 2.0)
        before = self.mend(before if step.all_move else torch.where(h > 0, before, z))
        here = self.node = self._node(span.start, before, to_way, h, w)
        f, g = here.f.detach() + there.f.detach(), here.g.detach() + there.g.detach()
        start, moved = _between(y, h, f, g, w, -0.5), (torch.add(to_y, to_z, alpha=2), -to_z)
        if self.ts.requires_grad:
            self._pull_times(step, there, here, 0.5 * to_y, to_way)
        if step.all_move:
            return (start, before), moved
        still = [torch.where(h > 0, *each) for each in zip((start, *moved), (y, to_y, to_z), strict=True)]
        return (still[0], before), still[1:]

    def finish(self, cotangent: Pair) -> Pair:
        """See `Undo.finish`."""
        if self.node is None:
            return cotangent
        to_y, to_z = cotangent
        return to_y, to_z + self._pull(self.node, self.node.to_f, self.node.to_g)

    def _node(self, t: Tensor, z: Tensor, to_way: Tensor, h: Tensor, w: Tensor) -> Node:
        """The fields at a second state; they have the gradient of the way `h f + g w` from there."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            f, g = self.field.both(t, leaf)
        return Node(leaf, f, g, h * to_way, _outer(to_way, w, g))

    def _pull(self, node: Node, to_f: Tensor, to_g: Tensor) -> Tensor | float:
        """The gradient of a second state by those of the fields there."""
        return self.pull((node.f, node.g), node.leaf, (to_f, to_g))

    def _pull_times(self, step: Step, there: Node, here: Node, to_there: Tensor, to_here: Tensor) -> None:
        """Adds what times have by the length of a step, and by the noise, whose normals are held."""
        with torch.enable_grad():
            span = self.span(step)
            h, w = span.h.to(to_here.dtype).unsqueeze(1), self.field.increment(span, to_here).W
            ways = [driven(h * each.f.detach(), each.g.detach(), w) for each in (there, here)]
        self.pull(ways, None, (to_there, to_here))


def _between(y: Tensor, h: Tensor, f: Tensor, g: Tensor, w: Tensor, part: float) -> Tensor:
    """`y + part (h f + g w)`."""
    return driven(torch.addcmul(y, h, f, value=part), g, w, part)


def _outer(a: Tensor, w: Tensor, g: Tensor, more: Tensor | None = None) -> Tensor:
    """The gradient of a diffusion `g` by that of `g w`, `(B, n)`; half of it beside `more`, where that is given."""
    a, w = (a, w) if g.dim() == 2 else (a.unsqueeze(2), w.unsqueeze(1))
    return a * w if more is None else torch.addcmul(more, a, w, value=0.5)
