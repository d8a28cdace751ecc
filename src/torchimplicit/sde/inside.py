"""The path inside a step: its noise divided, and one step of the method up to there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.interpolant import EndOnly
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.dynamics import NoisyField

Made = Callable[[NoisyField, Span, Tensor, Tensor, Increment], tuple[Tensor, Tensor | None]]  # see `SDESolver.made`


@dataclass
class Inside(EndOnly):
    """A step that can be asked for any of its times, at the price of a step each; see `Interpolant`.

    What is known of the noise at a time does not depend on which times were asked for before, or with it: it is that of
    a tree of bridges below the step.

    Args:
        made: makes steps of the method.
        field: drift, diffusion and noise.
        span: of the step.
        y: states at its start, `(B, n)`.
        path: the noise over it.
        end: states at its end.
    """

    made: Made
    field: NoisyField
    span: Span
    y: Tensor
    path: Increment
    end: Tensor

    def series(self, theta: Tensor, samples: Tensor, order: int) -> Tensor:
        """See `Interpolant.series`; there are no derivatives."""
        assert not order
        if transforms.active():  # asked for all samples, each at one time
            theta = theta.nan_to_num(1.0).clamp(0, 1)
            return torch.where((theta < 1).unsqueeze(1), self._at(theta), self.end)
        found, within = self.end[samples], torch.nonzero(theta < 1).flatten()
        for some in _in_turns(samples[within]):
            rows = within[some]
            part = torch.ones_like(self.span.h).index_copy(0, samples[rows], theta[rows].clamp_min(0))
            found = found.index_copy(0, rows, self._at(part)[samples[rows]])
        return found

    def _at(self, part: Tensor) -> Tensor:
        """States at parts of the step, `(B,)`."""
        stop = self.span.at(part)
        span = Span.of(self.span.start, stop, self.span.number)
        path = self.field.driver.inside(self.span, stop, self.path)
        return self.made(self.field, span, span.h.to(self.y.dtype).unsqueeze(1), self.y, path)[0]


def _in_turns(samples: Tensor) -> Iterator[Tensor]:
    """Places of samples `(M,)` such that no sample is there twice at a time."""
    sorted_, order = samples.sort(stable=True)
    _, counts = torch.unique_consecutive(sorted_, return_counts=True)
    turn = torch.arange(len(samples), device=samples.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    for number in range(int(counts.max()) if len(counts) else 0):
        yield order[turn == number]
