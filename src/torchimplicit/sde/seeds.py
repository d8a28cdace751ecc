"""Seeds of paths: one for a solve, or one a sample; what is not given is drawn, and can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.transforms import remembered
from torchimplicit.sde.normals import GOLDEN, hash_of, hashed, signed

Seed = int | Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Seeded:
    """Base of the sources of noise.

    Args:
        seed: of all samples, an int; or one a sample, `(B,)` int64, where equal seeds are equal paths. None draws one
            from torch's generator at every solve, another one in every process of `torch.distributed`. A seed that is
            given is taken as it is: processes that give the same repeat each other's noise, so give `seed + rank`.
    """

    seed: Seed = None

    def __post_init__(self) -> None:
        """Refuses what is no seed."""
        name, seed = type(self).__name__, self.seed
        expected = "expected None, an int, or a tensor (B,) of int64, one seed a sample"
        if isinstance(seed, Tensor):
            if seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool:
                raise TypeError(f"{name}(seed): got a tensor of {seed.dtype}, {expected}; try seed.long()")
            if seed.dim() != 1:
                raise ValueError(
                    f"{name}(seed): got a tensor of shape {tuple(seed.shape)}, {expected}; try int(seed) of one"
                )
        elif seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(
                f"{name}(seed): got {seed!r}, a {type(seed).__name__}, {expected}; try int(seed) of a number"
            )

    def known(self) -> Self:
        """The same source with a seed that is known."""
        return self if self.seed is not None else replace(self, seed=drawn_seed())


def drawn_seed() -> int:
    """A seed from torch's generator, so that `torch.manual_seed` fixes it; another one in every process of a group.

    Processes of `torch.distributed` are commonly seeded alike, and then draw alike: the rank is hashed into what
    they draw, or they would repeat each other's noise.

    Raises:
        ValueError: a seed for everything that `torch.vmap` maps is asked for.
    """
    drawn = torch.randint(2**63 - 1, (), device="cpu")
    if transforms.is_mapped(drawn):
        raise ValueError(
            "brownian: got None under torch.vmap(randomness='different'), expected seeds that are not mapped; try a "
            "batch in dimension 0, whose samples have noise of their own, or randomness='same', or brownian=seed"
        )
    seed = int(drawn)
    group = torch.distributed
    rank = group.get_rank() if group.is_available() and group.is_initialized() else 0
    return hashed(seed + rank * GOLDEN) & (2**63 - 1) if rank else seed


def seeds_of_samples(name: str, seed: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """A seed for every sample, `(B,)` int64: those given, or what a single one makes of the sample's number.

    Raises:
        ValueError: another number of seeds than of samples.
    """
    if isinstance(seed, Tensor):
        if len(seed) != batch:
            raise ValueError(
                f"{name}(seed): got {len(seed)} seeds for a batch of {batch}, expected one each; try one int for all"
            )
        return seed.to(device, torch.int64)
    return hash_of(_numbered(batch, device) + hashed(seed))


@remembered
def _numbered(batch: int, device: torch.device) -> Tensor:
    """The words of samples, `(B,)`."""
    return torch.arange(batch, device=device) * signed(GOLDEN)
