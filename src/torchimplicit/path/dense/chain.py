"""A solve in stretches, evaluated afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.dense.evaluate import RecordedPath


@dataclass(frozen=True)
class ChainedPath:
    """Recorded paths, one behind the other, with jumps between; times as solvers count them.

    Attributes:
        parts: of the stretches.
        stops: where each ends, `(K, B)`; a time there belongs to it.
        ts: the times that the whole solve was for, `(T, B)`.
    """

    parts: tuple[RecordedPath, ...]
    stops: Tensor
    ts: Tensor

    @property
    def y0(self) -> Tensor:
        """States at the first time, `(B, n)`."""
        return self.parts[0].y0

    def detach(self) -> ChainedPath:
        """The same without a gradient."""
        return replace(self, parts=tuple(recorded.detach() for recorded in self.parts), ts=self.ts.detach())

    def at(self, at: Tensor, order: int = 0) -> Tensor:
        """See `RecordedPath.at`."""
        number = torch.searchsorted(self.stops.T.contiguous(), at.detach().T.contiguous()).T
        number = number.clamp_max(len(self.parts) - 1)
        found = self.y0.new_zeros((*at.shape, (1 + order) * self.y0.shape[1]))
        for i, recorded in enumerate(self.parts):
            here = number == i
            if bool(transforms.plain(here).any()):
                states = recorded.at(torch.where(here, at, recorded.ts[0].detach()), order)
                found = torch.where(here.unsqueeze(2), states, found)
        return found
