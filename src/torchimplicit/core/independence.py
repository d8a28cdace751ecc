"""Are samples independent? By experiment: some are changed, and the others looked at.

The samples are numbered, and every experiment changes those whose number has (or has not) a certain bit. Two different
numbers differ in some bit, so that all bits, both ways, find every coupling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from torchimplicit.core.transforms import remembered_if_small, watched
from torchimplicit.core.tree import norm

PLAY = 1e3  # roundings of a value's size that are no change
FEW = 2  # bits that a look takes which is to cost next to nothing


def halves(batch: int, device: torch.device, bits: int | None = None) -> Iterator[Tensor]:
    """Which samples to change, `(B,)` bool each: `2 log2 B` experiments, which see every pair of samples.

    Args:
        batch: how many samples there are.
        device: where they are.
        bits: how many bits to look at, both ways; all by default. Of many samples, fewer miss what few samples do.
    """
    # Shuffled, always the same way: samples that belong together are often regularly apart.
    number = torch.randperm(batch, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    width = max(batch - 1, 0).bit_length()
    for bit in range(width if bits is None else min(bits, width)):
        for side in (0, 1):
            yield (number >> bit) % 2 == side


def alternate(like: Tensor) -> Tensor:
    """Every second sample, `(B,)` bool: the one experiment that sees what a statistic over the batch does."""
    return torch.arange(len(like), device=like.device) % 2 == 0


def noise(like: Tensor) -> Tensor:
    """Normal numbers of a tensor's shape, dtype and device, always the same; the global random state stays as it is."""
    return _noise(like.shape, like.dtype, like.device).clone()  # for functions that may write to it


@remembered_if_small
def _noise(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype, device="cpu").to(device)


@remembered_if_small
def _noise_of_every_second(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same, zero in the rows between."""
    every = _noise(shape, dtype, device).clone()
    every[1::2] = 0
    return every


def jolted(tensor: Tensor, part: float = 1.0, by: Tensor | None = None) -> Tensor:
    """A tensor moved by about its rows' own sizes, or a part of them, every entry by something else.

    What the others are moves no row, but rows of zeros, whose unit is the others'; of one where all are zero.

    Args:
        tensor: what to move.
        part: of the sizes.
        by: the way in these units; normal numbers when None.
    """
    size = tensor.detach().abs()
    size = size.amax(tuple(range(1, size.dim())), keepdim=True) if size.dim() > 1 and size.numel() else size
    by = _noise(tensor.shape, tensor.dtype, tensor.device) if by is None else by
    if not _all_have_one(size):
        size = size.nan_to_num(0.0, 0.0)
        whole = size.amax() if size.numel() else size.sum()
        size = size.masked_fill(size == 0, whole.masked_fill(whole == 0, 1))
    return torch.addcmul(tensor, by, size, value=part)


def _all_have_one(size: Tensor) -> bool:
    """Whether all sizes are finite and none is zero, as far as the host sees it without waiting for a device."""
    if size.device.type != "cpu" or watched() or not size.numel():
        return False
    low, high = size.aminmax()
    return float(low) > 0 and float(high) < torch.inf


def leakage(product: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """How much of a linear map's product with `v` `(B, n)` comes to each sample from others.

    Args:
        product: the linear map, `(B, n) -> (B, n)`.
        v: what to apply it to, finite.

    Returns:
        The largest norm seen, `(B,)`; exactly zero for samples that are independent of all others.
    """
    leaked = torch.zeros_like(v[:, 0])
    for changed in halves(len(v), v.device):
        arrived = norm(product(torch.where(changed.unsqueeze(1), v, 0)))
        leaked = torch.maximum(leaked, torch.where(changed, 0, arrived).nan_to_num(0, 0))
    return leaked


def mixes(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Which samples a linear map `(B, n) -> (B, n)` gives something of the others, `(B,)` bool."""
    v = noise(like)
    return leakage(product, v) > PLAY * torch.finfo(v.dtype).eps * norm(v).amax()


def coupled(
    function: Callable[[Tensor], Tensor], z: Tensor, eps: float, experiments: Iterable[Tensor]
) -> Tensor | None:
    """Which samples' values change with other samples' states.

    Args:
        function: `(B, n) -> (B, n)`.
        z: a state, `(B, n)`.
        eps: the rounding of the function.
        experiments: which samples to change in each, `(B,)` bool.

    Returns:
        `(B,)` bool; None where none is seen to, or the function gives other values whenever it is called.
    """
    before, moved = function(z), jolted(z, 0.1)
    size = norm(before)
    play = PLAY * eps * (size + norm(z))
    found = None
    for changed in experiments:
        after = function(torch.where(changed.unsqueeze(1), moved, z))
        differs = (size < torch.inf) & ~changed & ~(norm(after - before) <= play)
        found = differs if found is None else found | differs
    if found is None or not bool(found.any()) or bool((norm(function(z) - before) > play).any()):
        return None
    return found


def unmoved_by_others(function: Callable[[Tensor], Tensor], z: Tensor, values: Tensor) -> bool:
    """Whether every second sample keeps its value, bit by bit, where the others are moved: one evaluation.

    It is `alternate`'s experiment for functions whose values at a state are at hand. False does not say that samples
    are coupled (that may be rounding, noise, or values that are not finite), but that `coupled` must look.

    Args:
        function: `(B, n) -> (B, n)`.
        z: a state, `(B, n)`.
        values: the function's there, `(B, n)`.
    """
    moved = jolted(z, 0.1, _noise_of_every_second(z.shape, z.dtype, z.device))
    return torch.equal(function(moved)[1::2], values[1::2])


def not_samples(batch: int, one: str, joint: str) -> str:
    """What to say of a state `(B,)` whose entries are no samples.

    Args:
        batch: its length.
        one: how to pass one sample.
        joint: the option that makes it one coupled problem.
    """
    return (
        f"the state has shape ({batch},), {batch} samples of one number each, but the function makes them depend on "
        f"each other; expected independent samples in dimension 0. For one sample of {batch} features try {one}, for "
        f"one coupled problem {joint}"
    )
