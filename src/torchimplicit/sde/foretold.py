"""The noise of steps that are known beforehand, made some steps at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.brownian import Noise

TOGETHER = 8  # steps whose noise is wanted together, for a graph of them all


class Foretold:
    """Paths over numbered steps of known lengths; those around the last one that was asked for are at hand.

    Args:
        noise: of the solve.
        h: lengths of the steps, `(S, 1)`.
    """

    def __init__(self, noise: Noise, h: Tensor):
        self.noise, self.h = noise, h
        self._lengths = h.squeeze(1).to(noise.dtype)
        count = -(-len(h) // -(-len(h) // noise.at_once))  # as many each time
        self._count, self._first = -(-count // TOGETHER) * TOGETHER, 0
        self._some: list[Increment] = []
        self._room: Increment | None = None

    def __getitem__(self, number: int) -> Increment:
        """The path over a step; where no graph is recorded it is written over by those of later ones."""
        place = number - self._first
        if not 0 <= place < len(self._some):
            place = number % self._count
            self._make(number - place)
        if torch.is_grad_enabled():
            self._room = None
        return self._some[place]

    def __iter__(self) -> Iterator[Increment]:
        """The paths over all steps."""
        for first in range(0, len(self.h), self._count):
            self._make(first)
            if torch.is_grad_enabled():
                self._room = None
            yield from self._some

    def _make(self, first: int) -> None:
        self._room = self.noise.increments(first, self._lengths[first:][: self._count], self._room)
        self._some, self._first = self._room.split(), first
