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
        keep: of how many steps at the end they are kept once they were made in turn, for who goes back; he takes them.
    """

    def __init__(self, noise: Noise, h: Tensor, keep: int):
        self.noise, self.h, self._from = noise, h, len(h) - keep
        self._lengths = h.squeeze(1).to(noise.dtype)
        count = -(-len(h) // -(-len(h) // noise.at_once))  # as many each time
        self._count, self._first = -(-count // TOGETHER) * TOGETHER, 0
        self._some: list[Increment] = []
        self._kept: dict[int, list[Increment]] = {}
        self._room: Increment | None = None

    def __getitem__(self, number: int) -> Increment:
        """The path over a step; where no graph is recorded it is written over by those of later ones."""
        place = number - self._first
        if not 0 <= place < len(self._some):
            place = number % self._count
            self._turn(number - place)
        if torch.is_grad_enabled():
            self._room = None
        return self._some[place]

    def __iter__(self) -> Iterator[Increment]:
        """The paths over all steps."""
        for first in range(0, len(self.h), self._count):
            self._turn(first)
            if torch.is_grad_enabled():
                self._room = None
            yield from self._some
            if first >= self._from:
                self._kept[first], self._room = self._some, None

    def _turn(self, first: int) -> None:
        """Goes to the steps from a number on."""
        self._first, known = first, self._kept.pop(first, None)
        if known is None:
            self._room = self.noise.increments(first, self._lengths[first:][: self._count], self._room)
            known = self._room.split()
        else:
            self._room = None
        self._some = known
