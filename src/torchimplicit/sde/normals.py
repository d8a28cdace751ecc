"""Standard normals by counting: each is a pure function of a sample's seed, a place in its path and a channel.

A place is hashed to 64 bits by the finaliser of splitmix64, and these make two normals (Box and Muller). Nothing is
remembered and nothing drawn in turn, so that a normal is the same whoever asks for it, when, and with which mates. The
integers are the same on every device; normals are the same to the bit on one device, and to rounding across devices
and in compiled code, whose logarithms and sines are others.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (the finaliser: Stafford's mix 13).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.transforms import remembered

GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
_ALL = (1 << 64) - 1

WORDS = 1024  # words at a time: to make them one by one would take as long

# What a normal is for. Of one sample, number and channel, those for different purposes are independent.
PATH, AREA, ATTEMPT, NODE, LEVY, INSIDE, DRAW = range(7)
LEVEL = 2**16  # and the levels of refinement around it


def signed(word: int) -> int:
    """An integer modulo 2**64 as torch's int64 has it."""
    word &= _ALL
    return word - (1 << 64) if word >> 63 else word


def hashed(word: int) -> int:
    """The generator's output for a state, a Python integer; signed. The finaliser alone would leave zero as it is."""
    word = (word + GOLDEN) & _ALL
    for shift, factor in _ROUNDS:
        word = ((word ^ (word >> shift)) * factor) & _ALL
    return signed(word)


def hash_(words: Tensor, spare: Tensor) -> Tensor:
    """The finaliser of int64 words in place; `spare`, of the same shape, is overwritten."""
    for shift, factor in _ROUNDS:
        torch.bitwise_right_shift(words, shift, out=spare)
        words.bitwise_xor_(spare.bitwise_and_((1 << (64 - shift)) - 1))  # a logical shift: torch's keeps the sign
        if factor != 1:
            words.mul_(signed(factor))
    return words


def hash_of(words: Tensor) -> Tensor:
    """What `hashed` makes of int64 words."""
    return hash_(words + signed(GOLDEN), torch.empty_like(words))


def places(purpose: int, numbers: Tensor) -> Tensor:
    """The words of numbered steps, attempts or nodes, int64 of any shape."""
    return hash_of(numbers * signed(GOLDEN) + hashed(purpose))


@remembered
def words_of(purpose: int, block: int, device: torch.device) -> Tensor:
    """The words of `WORDS` consecutive numbers from `WORDS * block` on, `(WORDS, 1)`."""
    return places(purpose, torch.arange(WORDS, device=device).unsqueeze(1) + WORDS * block)


@remembered
def words_between(purpose: int, first: int, stop: int, device: torch.device) -> Tensor:
    """The words of consecutive numbers, `(stop - first,)`."""
    return places(purpose, torch.arange(first, stop, device=device))


@remembered
def words_of_channels(count: int, device: torch.device) -> Tensor:
    """The words of channels, `(count,)`."""
    return hash_of(torch.arange(count, device=device))


class Room(NamedTuple):
    """Tensors of one shape for the making of normals; kept, because to make them costs as much as to fill them."""

    words: Tensor
    spare: Tensor
    radius: Tensor

    @classmethod
    def of(cls, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Room:
        """Room for normals of some shape and dtype."""
        words, spare = (torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2))
        return cls(words, spare, torch.empty(shape, dtype=dtype, device=device))

    def fits(self, shape: torch.Size, dtype: torch.dtype) -> bool:
        """Whether there is room for normals of some shape and dtype."""
        return self.radius.dtype is dtype and self.words.numel() >= shape.numel()

    def part(self, shape: torch.Size) -> Room:
        """Room for as many or fewer."""
        if self.words.shape == shape:
            return self
        return Room(*(each.flatten()[: shape.numel()].view(shape) for each in self))


def pair(
    a: Tensor, b: Tensor, dtype: torch.dtype, room: Room | None = None, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Two independent standard normals for every sum of two words.

    Args:
        a: int64 words.
        b: int64 words that broadcast against them.
        dtype: of the normals.
        room: what is overwritten.
        out: where to put the normals; new tensors when None.
    """
    if room is None:
        room = Room.of(torch.broadcast_shapes(a.shape, b.shape), dtype, a.device)
    hash_(torch.add(a, b, out=room.words), room.spare)
    return box_muller(room, out)


def box_muller(room: Room, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Two normals of every 64-bit word in a room, which is overwritten: the high half is the radius, the low the angle.

    The uniform number under the logarithm is `|high + 1/2| / 2**31`, the half being added to a signed integer: never
    zero, in single precision either, where `high + 2**31 + 1/2` may round to it. The largest normal is 6.66.
    """
    words, spare, radius = room
    wave, angle = (torch.empty_like(radius), torch.empty_like(radius)) if out is None else out
    torch.bitwise_and(words, 0xFFFFFFFF, out=spare)
    angle.copy_(spare).mul_(math.tau * 2.0**-32)
    radius.copy_(words.bitwise_right_shift_(32)).add_(0.5).abs_().mul_(2.0**-31)
    radius.log_().mul_(-2.0).sqrt_()
    torch.cos(angle, out=wave)
    return wave.mul_(radius), angle.sin_().mul_(radius)


def normals_of_steps(seeds: Tensor, words: Tensor, channels: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normals of consecutive steps, for a compiled kernel: it takes nothing but tensors.

    Args:
        seeds: of the samples, `(B,)`.
        words: words of pairs of steps, `(P,)`, from `Noise.words`.
        channels: words of the channels, `(m,)`.
        dtype: of the normals.

    Returns:
        `(2 P, B, m)`.
    """
    even, odd = pair(seeds[:, None], (words[:, None] + channels)[:, None], dtype)
    return torch.stack([even, odd], 1).flatten(0, 1)
