"""Are samples independent? By experiment: some are changed, and the others looked at.

The samples are numbered, and every experiment changes those whose number has (or has not) a certain bit. Two different
numbers differ in some bit, so that all bits, both ways, find every coupling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

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
    number = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).to(device)
    width = max(batch - 1, 0).bit_length()
    for bit in range(width if bits is None else min(bits, width)):
        for side in (0, 1):
            yield (number >> bit) % 2 == side


def noise(like: Tensor) -> Tensor:
    """Normal numbers of a tensor's shape, dtype and device, always the same; the global random state stays as it is."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((*like.shape, 2), generator=generator, dtype=torch.float64)
    drawn = torch.view_as_complex(drawn) if like.is_complex() else drawn[..., 0]
    return drawn.to(like)


def jolted(tensor: Tensor) -> Tensor:
    """A tensor moved by about its own size, every entry by something else."""
    size = tensor.abs().amax().nan_to_num(1, 1) if tensor.numel() else tensor.new_ones(())
    return tensor + torch.where(size > 0, size, 1) * noise(tensor)


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


def coupled(function: Callable[[Tensor], Tensor], z: Tensor, eps: float, bits: int | None = None) -> Tensor | None:
    """Which samples' values change with other samples' states.

    Args:
        function: `(B, n) -> (B, n)`.
        z: a state, `(B, n)`.
        eps: the rounding of the function.
        bits: see `halves`.

    Returns:
        `(B,)` bool; None where none is seen to, or the function gives other values whenever it is called.
    """
    before = function(z)
    moved = z + 0.1 * (jolted(z) - z)
    play = PLAY * eps * (norm(before) + norm(z))
    found = torch.zeros_like(play, dtype=torch.bool)
    for changed in halves(len(z), z.device, bits):
        after = function(torch.where(changed.unsqueeze(1), moved, z))
        found = found | (~changed & before.isfinite().all(1) & ~(norm(after - before) <= play))
    if not bool(found.any()) or not bool((norm(function(z) - before) <= play)[found].all()):
        return None
    return found
