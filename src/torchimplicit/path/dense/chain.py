"""A walk in stretches, looked at afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.dense.evaluate import Trail


@dataclass(frozen=True)
class Chain:
    """Trails, one behind the other, with jumps between; times as solvers count them.

    Attributes:
        trails: of the stretches.
        stops: where each ends, `(K, B)`; a time there belongs to it.
        ts: the times that the whole walk was for, `(T, B)`.
    """

    trails: tuple[Trail, ...]
    stops: Tensor
    ts: Tensor

    @property
    def y0(self) -> Tensor:
        """States at the first time, `(B, n)`."""
        return self.trails[0].y0

    def detach(self) -> Chain:
        """The same without a gradient."""
        return replace(self, trails=tuple(trail.detach() for trail in self.trails), ts=self.ts.detach())

    def at(self, at: Tensor, order: int = 0) -> Tensor:
        """See `Trail.at`."""
        number = torch.searchsorted(self.stops.T.contiguous(), at.detach().T.contiguous()).T
        number = number.clamp_max(len(self.trails) - 1)
        found = self.y0.new_zeros((*at.shape, (1 + order) * self.y0.shape[1]))
        for i, trail in enumerate(self.trails):
            here = number == i
            if bool(transforms.plain(here).any()):
                states = trail.at(torch.where(here, at, trail.ts[0].detach()), order)
                found = torch.where(here.unsqueeze(2), states, found)
        return found
