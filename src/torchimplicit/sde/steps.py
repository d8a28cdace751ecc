"""Normals of numbered steps, some steps at a time, made in buffers that are kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.sde import normals
from torchimplicit.sde.bridge import Increment, alternating, bridge, joined, scaled
from torchimplicit.sde.normals import Room

BLOCK = {"cpu": 2**17}  # normals at a time: enough to make the calls of torch cheap, few enough to stay in a cache
LARGE = 2**22  # elsewhere
LONGEST = 128  # steps at a time, so that short paths draw little for nothing


class _Thread(threading.local):
    """What a thread keeps, one room of at most `BLOCK["cpu"]` words."""

    room: Room | None = None


_thread = _Thread()


class Steps:
    """What paths do in numbered steps.

    Args:
        seeds: of the samples, `(B,)`.
        channels: words of the channels, `(m,)`.
        dtype: of the normals.
        levy: whether paths have Levy areas.

    Attributes:
        count: steps that are best made at a time, an even number.
        areas: draws for pairs of channels; None without Levy areas.
    """

    def __init__(self, seeds: Tensor, channels: Tensor, dtype: torch.dtype, levy: bool = False):
        self.seeds, self.channels, self.dtype = seeds, channels, dtype
        self.shape = (len(seeds), len(channels))
        self.block = BLOCK.get(seeds.device.type, LARGE)
        self.count = min(LONGEST, max(2, self.block // max(1, seeds.numel() * channels.numel()) // 2 * 2))
        self.areas: Steps | None = None
        if levy:
            pairs = len(channels) * (len(channels) - 1) // 2
            self.areas = Steps(seeds, normals.words_of_channels(pairs, seeds.device), dtype)

    @cached_property
    def _cells(self) -> Tensor:
        """The words of samples and channels, `(B m,)`."""
        return (self.seeds.unsqueeze(1) + self.channels).flatten()

    def words(self, purpose: int, first: int, count: int) -> Tensor:
        """The words of consecutive numbers, `(count,)`."""
        return normals.words_between(purpose, first, first + count, self.seeds.device)

    def pairs(self, purpose: int, first: int, out: Sequence[Tensor]) -> None:
        """Two normals for every number, sample and channel, into two `(count, B m)`."""
        words, cells = self._column(purpose, first, len(out[0])), self._cells
        most = max(1, self.block // max(1, len(words)))
        pieces = (
            [(cells, *out)]
            if len(cells) <= most
            else zip(*(each.split(most, -1) for each in (cells, *out)), strict=True)
        )
        for some, even, odd in pieces:
            normals.pair(some, words, self.dtype, self._room_for(even.shape), (even, odd))

    def _room_for(self, shape: torch.Size) -> Room:
        """Room for normals; a thread keeps it, from solve to solve."""
        device = self.seeds.device
        if device.type != "cpu" or transforms.watched():
            return Room.of(shape, self.dtype, device)
        if _thread.room is None or not _thread.room.fits(shape, self.dtype):
            _thread.room = Room.of(shape, self.dtype, device)
        return _thread.room.part(shape)

    def _column(self, purpose: int, first: int, count: int) -> Tensor:
        """The words of consecutive numbers, `(count, 1)`."""
        block, low = divmod(first, normals.WORDS)
        if low + count > normals.WORDS:
            return self.words(purpose, first, count).unsqueeze(1)
        return normals.words_of(purpose, block, self.seeds.device)[low : low + count]

    def normals(self, purpose: int, first: int, count: int, room: Tensor | None = None) -> Tensor:
        """Standard normals of consecutive steps, `(count, B, m)`: one word gives those of two steps.

        Args:
            purpose: of the normals.
            first: number of the first step.
            count: of steps.
            room: what was made for as many steps from an even number on, to be overwritten.
        """
        begin, end = first // 2, (first + count + 1) // 2
        if room is None:
            room = torch.empty(2 * (end - begin), *self.shape, dtype=self.dtype, device=self.seeds.device)
        self.pairs(purpose, begin, room.view(end - begin, 2, -1).unbind(1))
        return room if len(room) == count else room[first - 2 * begin :][:count]

    def path(self, level: int, first: int, count: int, base: float) -> Increment:
        """Consecutive steps of length `base / 2^level`, `(count, B, m)`, of one path for all levels.

        Those of level 0 are drawn; a finer level halves the steps of the one above it, which takes a word a step of
        that; a coarser one joins the steps of the one below it. Levy areas are known of levels up to 0.
        """
        if level == 0:
            W, H = (self.normals(purpose, first, count) for purpose in (normals.PATH, normals.AREA))
            x = None if self.areas is None else self.areas.normals(normals.LEVY, first, count)
            return scaled(W, H, base, x)
        if level < 0:
            both = self.path(level + 1, 2 * first, 2 * count, base)
            return joined(both.each(lambda steps: steps[0::2]), both.each(lambda steps: steps[1::2]), 0.5, 0.5)
        begin, end = first // 2, (first + count + 1) // 2
        whole = self.path(level - 1, begin, end - begin, base)
        x, z = torch.empty_like(whole.W), torch.empty_like(whole.W)
        self.pairs(normals.LEVEL + level, begin, (x.flatten(1), z.flatten(1)))
        half = torch.tensor(base / 2**level, dtype=self.dtype, device=self.seeds.device)
        parts = alternating(*bridge(whole, half, half, x, z))
        return parts.each(lambda steps: steps[first - 2 * begin :][:count])
