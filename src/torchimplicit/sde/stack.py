"""The path of an adaptive integration: what a rejected step has drawn of it is kept, in parts, and never drawn again.

A step is rejected because of its increment. To draw another one for a shorter step would select paths by what the
error estimate thinks of them, and the law would be another (in a test the variance of W(1) falls to 0.4). So the
rejected increment is bridged into the part that is tried next and the rest, which waits on a stack. No end of a step
that was once tried is skipped, which general noise needs for convergence.

Source: Rackauckas, Nie, "Adaptive methods for stochastic differential equations via natural embeddings and rejection
sampling with memory", 2017; Foster, "On the convergence of adaptive approximations for stochastic differential
equations", 2023.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from torchimplicit.sde import normals
from torchimplicit.sde.bridge import Increment, bridge, chosen, scaled
from torchimplicit.sde.brownian import Noise
from torchimplicit.sde.tree import PathInTree

WHOLE = 0.999  # the share of a waiting part from which on all of it is tried: no slivers are left


class Tried(NamedTuple):
    """Steps to try.

    Attributes:
        stop: where they end, `(B,)`: never after what was asked for, but for a rest not worth a step.
        path: over each step; tensors that the caller may keep.
        full: samples whose stack has no place for what would be left over, `(B,)`; they try all that waits, again.
    """

    stop: Tensor
    path: Increment
    full: Tensor


class Stack:
    """The paths of a batch, each at its own times, drawn as the steps need them.

    A sample's draws are numbered by its own attempts: its path depends on no other sample. `propose` and `settle` take
    turns. No step goes past an end that was asked for before, so that steps which are asked for up to an output land on
    it.

    Args:
        noise: of the solve.
        start: where samples begin, `(B,)`, in the dtype of times.
        depth: parts that can wait for a sample; a rejection adds one.
    """

    def __init__(self, noise: Noise | PathInTree, start: Tensor, depth: int = 32):
        self.noise, self.depth = noise, depth
        batch, width = len(noise.seeds), len(noise.channels)
        # Beside the places of the stack there is one for what is not to be kept.
        self._ends = start.new_zeros((depth + 1) * batch)
        made = torch.zeros(2 if noise.area else 1, (depth + 1) * batch, width, dtype=noise.dtype, device=noise.device)
        self._waiting = Increment(made[0], made[1] if noise.area else None)
        self._samples = torch.arange(batch, device=noise.device)
        self._height = torch.zeros_like(self._samples)  # parts that wait
        self._attempt = torch.zeros_like(self._samples)

    def propose(self, t: Tensor, stop: Tensor, running: Tensor) -> Tried:
        """The path over the next steps: fresh, or all of what waits on top, or its first part.

        Args:
            t: where samples are, `(B,)`.
            stop: where their steps shall end, `(B,)`, after `t`.
            running: samples that go on, `(B,)`; of the others nothing changes.
        """
        top = (self._height - 1).clamp_min(0)
        fresh = self._height == 0
        ends = torch.where(fresh, stop, self._ends[self._at(top)])
        splits = ~fresh & (stop - t < WHOLE * (ends - t))
        full = splits & running & (self._height >= self.depth)
        splits &= ~full
        stop = torch.where(splits, stop, ends)
        first, rest = self._draw(t, stop, ends, fresh, splits, top)
        self._put(running & splits, top, ends, rest)
        pushed = running & (fresh | splits)
        self._height += pushed
        self._put(pushed, self._height - 1, stop, first)
        self._attempt += running
        return Tried(stop, first, full)

    def settle(self, accepted: Tensor) -> None:
        """Takes what was tried off the stack where it was accepted, `(B,)`; elsewhere it waits on top."""
        self._height -= accepted.to(self._height.dtype)

    def take(self, samples: Tensor) -> Self:
        """What waits for some samples, `(M,)` indices, whose paths go on as they would among all."""
        some, count = copy.copy(self), len(self._samples)
        places = (torch.arange(self.depth + 1, device=samples.device).unsqueeze(1) * count + samples).flatten()
        some.noise, some._ends = self.noise.take(samples), self._ends[places]
        some._waiting = self._waiting.each(lambda parts: parts[places])
        some._samples = torch.arange(len(samples), device=samples.device)
        some._height, some._attempt = self._height[samples], self._attempt[samples]
        return some

    def _draw(
        self, t: Tensor, stop: Tensor, ends: Tensor, fresh: Tensor, splits: Tensor, top: Tensor
    ) -> tuple[Increment, Increment]:
        """The path over what is tried, and over what is left of what it is taken from."""
        noise = self.noise
        words = noise.seeds + normals.places(normals.ATTEMPT, self._attempt)
        x, z = normals.pair(words[:, None], noise.channels, noise.dtype)
        s, r = ((b - a).to(noise.dtype).unsqueeze(1) for a, b in ((t, stop), (stop, ends)))
        on_top = self._at(top)
        whole = self._waiting.each(lambda parts: parts[on_top])
        drawn = scaled(x, z if noise.area else None, s.clamp_min(0))
        length = torch.where(splits.unsqueeze(1), r, s)  # halves, where nothing is split
        first, rest = bridge(whole, s, length, x, z)
        return chosen(fresh, drawn, chosen(splits, first, whole)), rest

    def _at(self, height: Tensor) -> Tensor:
        """Rows of parts at these places of the samples' stacks."""
        return height * len(self._samples) + self._samples

    def _put(self, samples: Tensor, height: Tensor, ends: Tensor, path: Increment) -> None:
        rows = self._at(torch.where(samples, height, self.depth))
        self._ends[rows] = ends
        self._waiting.W[rows] = path.W
        if self._waiting.H is not None and path.H is not None:
            self._waiting.H[rows] = path.H


class StackOfTree(Stack):
    """A `Stack` whose paths are known at all times: what waits are the ends of steps that were tried.

    Args:
        noise: of the solve.
        start: where samples begin, `(B,)`.
        depth: see `Stack`.
    """

    noise: PathInTree

    def _draw(
        self, t: Tensor, stop: Tensor, ends: Tensor, fresh: Tensor, splits: Tensor, top: Tensor
    ) -> tuple[Increment, Increment]:
        path = self.noise.over(t, stop, whole=False)
        return path, path  # what is left is asked for again
