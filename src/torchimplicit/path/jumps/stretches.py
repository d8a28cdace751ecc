"""The times of a solve, cut into stretches where it jumps."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.inputs import Jumps


class Stretches:
    """The stretches between the jumps of every sample, one after another; some may be of no length.

    An output at a jump belongs to the stretch that ends there. All times are as solvers count them.

    Args:
        ts: output times, `(T, B)`.
        jumps: where the path jumps.

    Attributes:
        edges: where the stretches begin, and where the last one ends, `(K + 1, B)`, with their graph.
        doses: what is added to the state behind all stretches but the last, `(K - 1, B, n)`; None for nothing.
        wants_times: whether output times or jumps may want a gradient.
        solved: by stretch, whether it is solved: any sample has a way to go on it, or it is the last one.
        output_at_end: by stretch, whether any output is at its end.
        jumps_at_start: whether any sample jumps at the first time.
    """

    def __init__(self, ts: Tensor, jumps: Jumps):
        times, order = torch.sort(jumps.times, dim=0, stable=True)
        self.ts = ts = ts.to(torch.promote_types(ts.dtype, times.dtype))
        first, last = ts[0], ts[-1]
        ahead = times < last
        edges = torch.where(times < first, first, torch.where(ahead, times.to(ts.dtype), last))
        self.edges = torch.cat((first.unsqueeze(0), edges, last.unsqueeze(0)))
        self.doses, dosed = None, (times >= first) & ahead
        if jumps.doses is not None:
            doses = jumps.doses.gather(0, order.unsqueeze(2).expand_as(jumps.doses))
            self.doses = torch.where(dosed.unsqueeze(2), doses, 0.0)
        differentiable = jumps.times.requires_grad or transforms.level(jumps.times) >= 0
        self.wants_times = torch.is_grad_enabled() and (differentiable or ts.requires_grad or transforms.active())
        self._place()
        self._read(dosed, differentiable and torch.is_grad_enabled())

    def _place(self) -> None:
        """Finds the stretch of every output but the first, `(T - 1, B)`, and the first output of every stretch."""
        edges, later = self.edges.detach(), self.ts.detach()[1:].T.contiguous()
        stretch = torch.searchsorted(edges[1:-1].T.contiguous(), later)
        numbers = torch.arange(len(edges), device=edges.device).expand(edges.shape[1], -1)
        self.first = torch.searchsorted(stretch, numbers.contiguous()).T  # (K + 1, B), counted without the start
        self.stretch = stretch.T
        self.jumps = edges[1:] < self.ts.detach()[-1]  # which stretches end at one, and not at the end

    def _read(self, dosed: Tensor, differentiable: bool) -> None:
        """What the host must know, in one read.

        Raises:
            ValueError: doses are not finite, or two jumps at the same time want a gradient each.
        """
        edges, ts, (count, batch) = self.edges.detach(), self.ts.detach(), self.first.shape
        counts = self.first.diff(dim=0)
        at_end = torch.zeros(count - 1, batch, dtype=torch.bool, device=ts.device)
        at = ts[1:] == edges[1:].gather(0, self.stretch)
        at_end = at_end.scatter_reduce(0, self.stretch, at, "amax") & self.jumps
        same = (edges[1:-2] == edges[2:-1]) & dosed[1:] & dosed[:-1]
        finite = torch.ones_like(dosed) if self.doses is None else self.doses.detach().isfinite().all(2)
        facts = ((edges[1:] > edges[:-1]).any(1), at_end.any(1), counts.amax(1))
        odd = torch.stack((same.any(), ~finite.all(), ((edges[1] == edges[0]) & dosed[0]).any()))
        *facts, odd = (transforms.plain(each).tolist() for each in (*facts, odd))
        self.solved, self.output_at_end, self.counts = facts
        self.solved[-1] = True  # someone has to say how it went
        equal, infinite, self.jumps_at_start = odd
        if infinite:
            raise ValueError("doses: got NaN or infinity at a jump, expected finite amounts; try 0 for none")
        if equal and differentiable:
            raise ValueError(
                "jumps: got the same time twice for a sample, with a gradient: what each of the two is worth cannot be "
                "told from f. Try one jump there, with the sum of the doses, or jumps.detach()"
            )

    def times(self, k: int) -> Tensor:
        """Start, outputs and end of a stretch, `(2 + M, B)`, the end repeated where a sample has fewer outputs."""
        end, count = self.edges[k + 1], self.counts[k]
        if not count:
            return self.edges[k : k + 2]
        place = self.first[k] + torch.arange(count, device=end.device).unsqueeze(1)
        t = self.ts[1:].gather(0, place.clamp_max(len(self.ts) - 2))
        before = (place < self.first[k + 1]) & (t < end)
        return torch.cat((self.edges[k : k + 1], torch.where(before, t, end), end.unsqueeze(0)))

    def beyond(self, k: int) -> Tensor:
        """How far each output of a stretch is from the jump that it is at, `(M, B)`: zeros with their graph."""
        end = self.edges[k + 1]
        place = self.first[k] + torch.arange(self.counts[k], device=end.device).unsqueeze(1)
        t = self.ts[1:].gather(0, place.clamp_max(len(self.ts) - 2))
        return torch.where((place < self.first[k + 1]) & (t == end) & self.jumps[k], t - end, 0.0)

    def outputs(self, start: Tensor, rows: list[Tensor]) -> Tensor:
        """The states at all output times, `(T, B, n)`, from the one at the start and those of every stretch."""
        lengths = torch.tensor([0, *(len(each) for each in rows[:-1])], device=start.device).cumsum(0)
        place = torch.arange(len(self.ts) - 1, device=start.device).unsqueeze(1) - self.first.gather(0, self.stretch)
        place = (place + lengths[self.stretch]).unsqueeze(2).expand(-1, -1, start.shape[1])
        return torch.cat((start.unsqueeze(0), torch.cat(rows).gather(0, place)))
