"""A method of stochastic paths made reversible, and what all pairs of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.path.adjoint.drift import LIMIT
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.pair import Increments, Paired, PairSolver
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.dynamics import NoisyField


class NoisyPair(PairSolver):
    """What pairs of states of a stochastic path share.

    Attributes:
        far: which part of the way that a sample goes the two states may be apart.
    """

    far: ClassVar[float]

    def apart(self, field: Field, ts: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See `PairSolver.apart`: over a part of the largest output and of the way that noise alone would go.

        The states differ by what noise does in a step, which is small beside that; where drift contracts, they part by
        the size of the paths, and beyond.
        """
        assert isinstance(field, NoisyField)
        return LIMIT / self.far * part_of(y - z, size_of(field, ts, y)).amax(0)


def size_of(field: NoisyField, ts: Tensor, y: Tensor) -> Tensor:
    """The largest output of every unknown and the way that noise alone would go, `(B, n)`; see `PairSolver.apart`."""
    g = field.diffusion(ts[0], y[0])
    way = (ts[-1] - ts[0]).to(y.dtype).sqrt().unsqueeze(1) * spread(g)
    return (y.abs().amax(0) + way).clamp_min(torch.finfo(y.dtype).tiny)


def spread(g: Tensor) -> Tensor:
    """How much of a Brownian motion each unknown has, `(B, n)`."""
    return g.abs() if g.dim() == 2 else torch.linalg.vector_norm(g, dim=2)


def part_of(off: Tensor, size: Tensor) -> Tensor:
    """What part of sizes `(B, n)` distances `(..., B, n)` are, the RMS over the unknowns, `(..., B)`."""
    return (off / size).square().mean(-1).sqrt()


@dataclass(frozen=True, kw_only=True)
class PairedSDE(NoisyPair, Paired):
    """A method for Stratonovich equations made reversible, mixed into its class; see `Paired`."""

    far: ClassVar[float] = 0.2  # both states are wrong by half of what they are apart

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, pair: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""

        def back(y: Tensor) -> Tensor:
            return self._added(sde, *backward_along(span, h, path), y)

        return self.coupled(h, pair, self._added(sde, span, h, path, pair.chunk(2, dim=1)[1]), back), None

    def increments(self, like: Tensor) -> Increments:
        """See `Paired.increments`."""

        def increment(field: Field, span: Span, y: Tensor, backward: bool) -> Tensor:
            assert isinstance(field, NoisyField)
            way = span, span.h.to(y.dtype).unsqueeze(1), field.increment(span, y)
            return self._added(field, *(backward_along(*way) if backward else way), y)

        return increment

    def _added(self, sde: NoisyField, span: Span, h: Tensor, path: Increment, y: Tensor) -> Tensor:
        """What a step of the method adds to states."""
        method: Any = super()
        return method.advance(sde, span, h, y, path)[0] - y


def backward_along(span: Span, h: Tensor, path: Increment) -> tuple[Span, Tensor, Increment]:
    """A step backward in time along the same noise, whose mean above its chord is the same both ways."""
    return span.back(), -h, Increment(-path.W, path.H)
