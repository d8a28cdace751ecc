"""Brownian motion asked for by the number of a step: the same answer forward, backward, alone and among others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number, require
from torchimplicit.sde import normals
from torchimplicit.sde.bridge import Increment, scaled
from torchimplicit.sde.draws import Draws
from torchimplicit.sde.seeds import Seeded
from torchimplicit.sde.steps import Steps


@dataclass(frozen=True, kw_only=True, eq=False)
class Brownian(Seeded):
    """A source of Brownian paths, one for every sample, that depend on nothing but the sample's seed.

    A sample's path is the same to the bit in any batch, at any place in it, in any order of asking, and in the
    backward pass, which asks again and remembers nothing. It needs the step's number, so steps of a fixed size;
    adaptive ones draw from a `Stack`, and a path is asked at any time in a `Tree`.

    Args:
        seed: see `Seeded`.
        base: a length of steps. The path is then the same at steps of `base`, `base / 2`, `base / 4`, ... and
            `2 base`, `4 base`, ..., for about two draws a step; without it another length of steps is another path,
            made of the same normals. Paths with Levy areas are the same at `base`, `2 base`, `4 base`, ...: what the
            areas of halves are, given that of the whole, nobody knows how to draw.

    Raises:
        TypeError: a seed that is no integer.
        ValueError: a seed of another shape; a base that is not positive.

    Examples:
        >>> import torch
        >>> noise = Brownian(seed=3, base=0.5).bind(torch.empty(2, 1, dtype=torch.float64))
        >>> whole, halves = (
        ...     noise.increment(0, 0.5),
        ...     [noise.increment(number, 0.25) for number in (0, 1)],
        ... )
        >>> torch.allclose(halves[0].W + halves[1].W, whole.W)
        True
    """

    base: float | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        fits = self.base is None or (is_number(self.base) and 0 < self.base < math.inf)
        require(self, "base", fits, "None or a length of steps > 0")

    def bind(self, like: Any, area: bool = False, levy: bool = False) -> Noise:
        """The noise of one solve.

        Args:
            like: tensors `(B, ...)`, nested at will, of the shapes, dtypes and device that increments shall have.
            area: whether increments have a space-time area. The path is the same with and without.
            levy: whether they have Levy areas, see `levy_area`, too.

        Raises:
            ValueError: another number of seeds than of samples.
        """
        return Noise(self, like, area or levy, levy)


class Kept(NamedTuple):
    """Consecutive steps that were made at a time.

    Attributes:
        first: number of the first.
        level: of refinement; None for standard normals.
        steps: each `(B, m)`.
    """

    first: int
    level: int | None
    steps: list[Increment]


class Keys(NamedTuple):
    """The integers that paths over consecutive steps are made of; one of each for `W`, for `H` and for Levy areas.

    Attributes:
        seeds: of the samples, `(B,)`.
        channels: words of the channels, `(m,)`, or of pairs of them.
        words: words of pairs of steps, `(P,)`.
    """

    seeds: Tensor
    channels: tuple[Tensor, ...]
    words: tuple[Tensor, ...]


class Noise(Draws):
    """The noise of one solve; `Brownian.bind` makes it.

    Args:
        source: what asks for it.
        like: see `Draws`.
        area: whether increments have a space-time area.
        levy: whether they have Levy areas, too.
    """

    source: Brownian

    def __init__(self, source: Brownian, like: Any, area: bool = False, levy: bool = False):
        super().__init__(source, like)
        self.area, self.levy = area, levy
        self._renew()

    def _renew(self) -> None:
        self._steps = Steps(self.seeds, self.channels, self.dtype, self.levy)
        self._kept: Kept | None = None
        self._room: list[Tensor | None] = [None, None]  # for normals of path and area

    def take(self, samples: Tensor) -> Self:
        """See `Draws`."""
        some = super().take(samples)
        some._renew()
        return some

    def increment(self, number: int, h: float | Tensor) -> Increment:
        """The path over a step; with a `base` it is kept for the next who asks, so not to be written to.

        Normals are held, not the path: with a length that has a gradient, `W = sqrt(h) z` has one.

        Args:
            number: of the step, from the start of the path; where the source has a `base`, in steps of `h`.
            h: length of the step, > 0: a number, or a tensor `()` or `(B,)`.

        Raises:
            ValueError: a length that is not positive, or is no base times a power of two.
        """
        kept, level = self._kept, self._level(h)
        if kept is None or kept.level != level or not 0 <= number - kept.first < len(kept.steps):
            kept = self._kept = self._make(number, level)
        step = kept.steps[number - kept.first]
        return step if level is not None else scaled(step.W, step.H, _length(h), step.A)

    @property
    def at_once(self) -> int:
        """How many steps are best made at a time, an even number."""
        return self._steps.count

    def increments(self, first: int, h: Tensor, room: Increment | None = None) -> Increment:
        """The paths over consecutive steps, `(K, B, m)` in the places of `(B, m)`; each as `increment` gives it.

        Args:
            first: number of the first step.
            h: their lengths, `(K,)`, of the normals' dtype.
            room: what is written over where it fits: paths over steps from an even number on.
        """
        if self.levy:
            return Increment(
                *map(torch.stack, zip(*(self.increment(first + k, each) for k, each in enumerate(h)), strict=True))
            )
        root, whole, old = h.sqrt().view(-1, 1, 1), len(h) + len(h) % 2, None
        if room is not None and len(room.W) >= whole:
            old = room if len(room.W) == whole else room.each(lambda steps: steps[:whole])
        W = self._steps.normals(normals.PATH, first, len(h), None if old is None else old.W).mul_(root)
        if not self.area:
            return Increment(W, None)
        H = self._steps.normals(normals.AREA, first, len(h), None if old is None else old.H)
        return Increment(W, H.mul_(root / math.sqrt(12)))

    def words(self, first: int, count: int, area: bool = False) -> Tensor:
        """The words of `count` steps from an even number on, `(count / 2,)`, for `normals.normals_of_steps`.

        Compiled kernels make there what `increment` makes here, but for the factors `sqrt(h)` and, for areas,
        `sqrt(h / 12)`.
        """
        if first % 2 or count % 2 or self.source.base is not None:
            raise ValueError(
                f"words: got {count} steps from number {first} on and base={self.source.base!r}, expected even "
                "numbers, a word being for two steps, and no base; try increment"
            )
        return self._steps.words(normals.AREA if area else normals.PATH, first // 2, count // 2)

    def keys(self, count: int) -> Keys:
        """What a kernel makes the paths over the first steps of, an even number."""
        channels, words = [self.channels], [self.words(0, count)]
        if self.area:
            channels, words = [*channels, self.channels], [*words, self.words(0, count, area=True)]
        if self._steps.areas is not None:
            channels.append(self._steps.areas.channels)
            words.append(self._steps.areas.words(normals.LEVY, 0, count // 2))
        return Keys(self.seeds, tuple(channels), tuple(words))

    def _level(self, h: float | Tensor) -> int | None:
        """How often the base is halved to make a step; None without a base."""
        base = self.source.base
        if base is None:
            return None
        if not isinstance(h, Tensor) and 0 < h < math.inf:
            level = round(math.log2(base / h))
            if abs(base / 2**level - h) <= 1e-6 * h:
                if level > 0 and self.levy:
                    raise ValueError(
                        f"increment: got a step of length {h!r} with Levy areas, expected base={base!r} or two, four, "
                        "... times as much: what they are over parts of a step is not known; try the smallest step as "
                        "the base"
                    )
                return level
        raise ValueError(
            f"increment: got a step of length {h!r}, expected base={base!r} times a power of two, as a number; try a "
            "dt that is one and divides the time between outputs, or base=None"
        )

    def _make(self, number: int, level: int | None) -> Kept:
        """A step with some around it: paths of a level, or normals where there are none.

        They are kept, and no transform's that surrounds who asks first: it may be over when the next one asks.
        """
        if transforms.active():
            self._room = [None, None]  # nor may what is plain be written over there
        count = self._steps.count >> max(0, -(level or 0)) or 1  # a coarser step is made of many
        first, base = number - number % count, self.source.base
        if base is not None and level is not None:
            W, H, A = self._steps.path(level, first, count, base)
        else:
            W = self._room[0] = self._steps.normals(normals.PATH, first, count, self._room[0])
            H = self._room[1] = self._steps.normals(normals.AREA, first, count, self._room[1]) if self.area else None
            A = self._steps.areas.normals(normals.LEVY, first, count) if self._steps.areas is not None else None
        made = (None if part is None else transforms.plain(part) for part in (W, H if self.area else None, A))
        parts = (count * (None,) if part is None else part.unbind() for part in made)
        return Kept(first, level, list(map(Increment, *parts)))


def _length(h: float | Tensor) -> float | Tensor:
    """A length of steps, a column where every sample has its own."""
    if isinstance(h, Tensor):
        return h.unsqueeze(1) if h.dim() else h
    if not 0 < h < math.inf:
        raise ValueError(f"increment: got a step of length {h!r}, expected a number > 0")
    return h
