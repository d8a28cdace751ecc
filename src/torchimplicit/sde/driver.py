"""The noise of a solve, asked for by the steps of a path."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.tree import Layout
from torchimplicit.path.record import SharedSteps
from torchimplicit.path.span import Span
from torchimplicit.sde import normals
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.brownian import Brownian, Keys, Noise
from torchimplicit.sde.foretold import Foretold
from torchimplicit.sde.seeds import Seed, seeds_of_samples
from torchimplicit.sde.stack import Stack, StackOfTree
from torchimplicit.sde.tree import PathInTree, Tree, descended

INSIDE = 20  # how often a step is halved to find a time within it


class Wants(Protocol):
    """What a method says of the noise that it wants; see `SDESolver`."""

    area: ClassVar[bool]
    levy: ClassVar[bool]

    @property
    def adapts(self) -> bool:
        """See `PathSolver.adapts`."""
        ...


@dataclass
class Chosen:
    """The noise of one solve whose steps are chosen on the way.

    Attributes:
        stack: draws for the samples that go on.
        samples: which of all they are, ascending, `(M,)`.
        drawn: what was drawn for a step, by its number, with the samples of its phase; None for all.
    """

    stack: Stack
    samples: Tensor
    drawn: dict[int, tuple[Tensor | None, Increment]] = field(default_factory=dict)

    def narrow(self, samples: Tensor) -> None:
        """Goes on with fewer samples."""
        self.stack, self.samples = self.stack.take(torch.searchsorted(self.samples, samples)), samples


class Driver:
    """What drives the samples of a solve besides their drift: an increment for every step, by its number.

    A sample makes its steps in turn, whatever its mates do, so that the number of a step is its own.

    Args:
        source: of the noise.
        layout: of the state.
        solver: says which areas increments shall have.
        ts: output times, as the user gave them.

    Raises:
        ValueError: another number of seeds than of samples.
    """

    def __init__(self, source: Brownian | Tree, layout: Layout, solver: Wants, ts: Tensor):
        self.source, self.layout, self.solver, self.ts = source.known(), layout, solver, ts
        if isinstance(self.seed, Tensor):
            seeds_of_samples(type(source).__name__, self.seed, layout.batch, layout.device)
        self.rows: Tensor | None = None
        self._noise: Noise | PathInTree | None = None
        self._chosen: Chosen | None = None
        self._part: Tensor | None = None
        self._foretold: Foretold | None = None

    @property
    def seed(self) -> Seed:
        """What repeats all of it."""
        return self.source.seed

    @property
    def count(self) -> int:
        """How many samples there are."""
        return self.layout.batch if self.rows is None else len(self.rows)

    @property
    def ready(self) -> bool:
        """Whether it is known how many channels there are."""
        return self._noise is not None

    def take(self, rows: Tensor) -> Self:
        """The noise of some samples, `(M,)`, which may repeat."""
        some = copy.copy(self)
        some.rows = rows if self.rows is None else self.rows[rows]
        some._noise = None if self._noise is None else self._noise.take(rows)
        some._chosen = some._part = some._foretold = None
        return some

    def of_phase(self, rows: Tensor) -> Self:
        """The noise of those samples that go on in a phase of this solve, `(M,)`, ascending."""
        some = self.take(rows)
        some._chosen, some._part = self._chosen, rows
        return some

    def prepare(self, channels: int) -> None:
        """Makes the noise for so many Brownian motions a sample."""
        like = torch.empty((), dtype=self.layout.dtype, device=self.layout.device)
        like, area = like.expand(self.layout.batch, channels), self.solver.area
        noise = (
            self.source.bind(like, area) if isinstance(self.source, Tree) else
            self.source.bind(like, area, self.solver.levy)
        )  # fmt: skip
        self._noise = noise if self.rows is None else noise.take(self.rows)

    def stack(self, t: Tensor) -> Stack:
        """What draws for steps that are chosen on the way, from times `(B,)`, or goes on drawing; see `follow`."""
        assert self._noise is not None
        if self._part is None:
            stack = (StackOfTree if isinstance(self._noise, PathInTree) else Stack)(self._noise, t)
            self._chosen = Chosen(stack, torch.arange(len(t), device=t.device))
        else:
            assert self._chosen is not None
            self._chosen.narrow(self._part)
        return self._chosen.stack

    def follow(self, number: int, path: Increment, keep: bool) -> None:
        """Notes the noise of a step that a `stack` has drawn, for those who ask for it by its number.

        Args:
            number: of the step.
            path: over the step.
            keep: whether the steps before it shall be found again.
        """
        assert self._chosen is not None
        if not keep:
            self._chosen.drawn.clear()
        self._chosen.drawn[number] = (self._part, path)

    def foresee(self, steps: SharedSteps, spare: int) -> Iterator[Increment]:
        """The paths over all of these steps, made some at a time; so they are from now on for whoever asks for one.

        Args:
            steps: all of a solve.
            spare: how many states there is room for, which paths over the last steps may take.
        """
        noise = self._noise
        if not isinstance(noise, Noise) or noise.source.base is not None:
            return map(self.increment, steps.spans)
        size = noise.channels.numel() * (1 + noise.area)
        keep = min(len(steps), spare * self.layout.width // size) if size and not noise.levy else 0
        self._foretold = Foretold(noise, steps.h, keep)
        return iter(self._foretold)

    def forget(self) -> None:
        """Steps are other ones than those that were foreseen."""
        self._foretold = None

    def keys(self, count: int) -> Keys:
        """See `Noise.keys`."""
        assert isinstance(self._noise, Noise)
        return self._noise.keys(count)

    def increment(self, span: Span) -> Increment:
        """The path over a step. Normals are held: of lengths with a gradient, `W = sqrt(h) z` has one.

        Raises:
            RuntimeError: steps that `torch.vmap` hides are made again, whose noise is not known by their numbers.
        """
        if transforms.hides_batch(span.start):
            self._require_numbered()
        if self._chosen is not None:
            return self._drawn(self._chosen, span.number)
        plain = not span.h.requires_grad and transforms.level(span.h) < 0
        if plain and self._foretold is not None:
            return self._foretold[span.number]
        noise = self._noise
        assert noise is not None
        if isinstance(noise, PathInTree):
            start, stop = (transforms.plain(each).detach() for each in (span.start, span.stop))
            return noise.over(start, stop)
        h = span.h.to(noise.dtype)
        if plain:
            return noise.increment(span.number, h) if noise.source.base is None else self._of_base(noise, span)
        moves, h = h > 0, torch.where(h > 0, h, 1.0)  # at zero a root has no derivative
        if noise.source.base is None:
            path = noise.increment(span.number, h)
        else:
            path = self._of_base(noise, span).stretched((h / h.detach()).sqrt())
        return path.each(lambda part: torch.where(moves.view(-1, *(part.dim() - 1) * (1,)), part, 0.0))

    def _require_numbered(self) -> None:
        """Refuses noise that is not known by a step's number, where the times of steps are copies' own.

        The noise of chosen steps was drawn by a driver of all copies together, and others ask when they are.

        Raises:
            RuntimeError: it is such noise.
        """
        noise = self._noise
        if isinstance(noise, PathInTree):
            got, other = "a Tree", "Brownian(seed=...)"
        elif noise is not None and noise.source.base is not None:
            got, other = f"Brownian(base={noise.source.base!r})", "base=None"
        elif self.solver.adapts:
            got, other = "a solver that chooses its steps", "steps of a given size, Heun(dt=...)"
        else:
            return
        raise RuntimeError(
            f"sdeint: got torch.vmap over a derivative with {got}, expected noise that a step's number tells; try the "
            f"batch in dimension 0 of the state, {other}, or adjoint=Checkpointed() with the derivative outside of vmap"
        )

    def _drawn(self, chosen: Chosen, number: int) -> Increment:
        """The path over a step that was chosen; all samples together ask for those of a phase, too."""
        rows, path = chosen.drawn[number]
        if rows is None or self._part is not None:
            return path
        return path.each(lambda part: part.new_zeros(self.count, part.shape[1]).index_copy(0, rows, part))

    def inside(self, span: Span, t: Tensor, path: Increment) -> Increment:
        """The path from the start of a step to times `(B,)` within it.

        By a tree of bridges whose draws belong to the sample and to when the step starts: so they do not depend on
        how many steps others have made.

        Args:
            span: of the step.
            t: the times.
            path: over the step.
        """
        noise, start, stop = self._noise, *(transforms.plain(each).detach().double() for each in span[:2])
        assert noise is not None
        t = transforms.plain(t).detach().double()
        if isinstance(noise, PathInTree):
            return noise.over(start, t, whole=False)
        words = noise.seeds + normals.places(normals.INSIDE, start.view(torch.int64))

        def draw(node: Tensor) -> tuple[Tensor, Tensor]:
            some = words + normals.places(normals.NODE, node)
            return normals.pair(some.unsqueeze(1), noise.channels, torch.float64)

        cell = path.each(lambda part: transforms.plain(part).detach().double())
        stop = torch.where(stop > start, stop, start + 1)  # samples that stand still are not asked for
        W, integral = descended(cell, start, stop, t, INSIDE, draw)
        length = (t - start).unsqueeze(1)
        H = torch.where(length > 0, integral / torch.where(length > 0, length, 1.0) - 0.5 * W, 0.0)
        return Increment(W.to(noise.dtype), None if path.H is None else H.to(noise.dtype))

    def _of_base(self, noise: Noise, span: Span) -> Increment:
        """The path over a step of a source that knows it at other steps, too; the host reads how long that is."""
        base = noise.source.base
        assert base is not None
        start, h = transforms.plain(span.start).detach(), transforms.plain(span.h).detach()
        longest = int(h.argmax())  # others stand still
        length, since = float(h[longest]), float(start[longest] - transforms.plain(self.ts).detach().flatten()[0])
        play = 1e-6 * length + 4 * torch.finfo(h.dtype).eps * (abs(float(start[longest])) + length)  # times are rounded
        whole = base / 2 ** round(math.log2(base / length))
        whole = whole if abs(whole - length) <= play else length
        number = round(since / whole)
        strays = abs(number * whole - since) > 1e-3 * whole + play
        if strays or bool(((h > 0) & ((h - length).abs() > play)).any()):
            raise ValueError(
                f"Brownian(base={noise.source.base!r}): got a step of length {length:.6g} from {since:.6g} behind the "
                "first time, expected multiples of the step, the same for all samples; try output times (T,) that are "
                "multiples of dt, or base=None"
            )
        return noise.increment(number, whole)
