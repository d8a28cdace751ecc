"""Random numbers that belong to a series: the same in any batch, at any place in it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.sde import Brownian
from torchimplicit.sde.normals import GOLDEN, hash_of, signed
from torchimplicit.sde.seeds import drawn_seed, seeds_of_samples

Seed = int | Tensor | None


def seeds_of_draws(owner: str, seed: Seed, count: int, samples: int, device: torch.device) -> Tensor:
    """A seed for every draw of every series, `(samples * B,)`, the first draws of all series first.

    Args:
        owner: who asks, for messages.
        seed: an int; or int64 `(B,)`, one a series, which then draws the same in any batch; None draws one.
        count: how many series there are, `B`.
        samples: how many draws of each.
        device: where they shall be.
    """
    seeds = seeds_of_samples(owner, drawn_seed() if seed is None else seed, count, device)
    numbers = torch.arange(samples, device=device).unsqueeze(1) * signed(GOLDEN)
    return hash_of(seeds + numbers).flatten()


def along_paths(seeds: Tensor) -> Tensor:
    """Seeds for the noise along paths whose starts are drawn by these, and independent of them."""
    return hash_of(~seeds)


def normals(seeds: Tensor, like: Tensor) -> Tensor:
    """Standard normals like a tensor `(N, n)`, by the rows' seeds `(N,)`."""
    return Brownian(seed=seeds).bind(like).increment(0, 1.0).W.to(like.dtype)
