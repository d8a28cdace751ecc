"""Splitting of k-space: reconstruct from some of what was measured, be judged by the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.physics.check import check_mask, is_real_or_complex, kind
from torchimplicit.imaging.physics.sense import Fourier, Sense
from torchimplicit.nn.score.noise import Normals
from torchimplicit.sde.seeds import Seed

Reconstruct = Callable[[Tensor, Any], Tensor]


def split_mask(
    mask: Tensor,
    count: int = 1,
    *,
    held_out: float = 0.4,
    center_fraction: float = 0.04,
    seed: Seed = None,
) -> tuple[Tensor, Tensor]:
    """Two disjoint parts of a mask whose union it is, at random: what is seen, and what is held out.

    Along an axis where the mask has one entry lines are split, otherwise points. Of every sample the same number is
    held out, at least one, and at least one is seen.

    Args:
        mask: what was sampled, bool `(H, W)`, `(1, W)`, `(H, 1)`, or with a batch `(B, H, W)`.
        count: the number of samples, each of which gets a split of its own.
        held_out: the part of what was sampled outside of the centre, in (0, 1).
        center_fraction: the part of every axis along which the mask varies, in the middle, that is always seen, in
            [0, 1).
        seed: an int, from which every sample has a split of its own, or one per sample, `(count,)` int64; None draws
            one from torch's generator.

    Returns:
        What is seen and what is held out, bool `(count, H, W)`, or with ones in place of H or W, as the mask.

    Raises:
        TypeError: the mask is not bool.
        ValueError: impossible parts; or outside of its centre a sample has nothing, or without a centre one entry only.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> mask = torch.ones(1, 8, dtype=torch.bool)
        >>> seen, held = ti.imaging.split_mask(
        ...     mask, held_out=0.5, center_fraction=0.25, seed=0
        ... )
        >>> int(seen.sum()), int(held.sum()), seen[0, 0, 3:5].tolist()
        (5, 3, [True, True])
    """
    check_mask("split_mask", mask)
    _check_part("held_out", held_out, is_number(held_out) and 0 < held_out < 1, "(0, 1)")
    _check_part("center_fraction", center_fraction, is_number(center_fraction) and 0 <= center_fraction < 1, "[0, 1)")
    if mask.dim() not in (2, 3) or (mask.dim() == 3 and len(mask) not in (1, count)):
        got = tuple(mask.shape)
        raise ValueError(f"split_mask(mask=...): got {got} for {count} samples, expected (H, W) or ({count}, H, W)")
    mask = mask.expand(count, *mask.shape[-2:])
    free = mask & ~_middle(mask.shape[-2:], center_fraction, mask.device)
    total, kept = free.flatten(1).sum(1), (mask & ~free).flatten(1).any(1)
    _check_enough(total, torch.where(kept, 1, 2), center_fraction)
    held = (held_out * total).round().clamp_min(1)
    held = torch.minimum(held, torch.where(kept, total, total - 1))
    like = torch.empty((), dtype=torch.float64, device=mask.device)
    order = Normals(seed, count, mask.shape[1:], like).draw(0).masked_fill(~free, torch.inf).flatten(1)
    rank = order.argsort(1).argsort(1)
    out = (rank < held.unsqueeze(1)).view_as(mask)
    return mask & ~out, out


def split_loss(
    reconstruct: Reconstruct,
    y: Tensor,
    op: Fourier | Sense,
    *,
    held_out: float = 0.4,
    center_fraction: float = 0.04,
    seed: Seed = None,
) -> Tensor:
    r"""What a reconstruction from a part of k-space misses of the rest, $|A_2 R(y_1, A_1) - y_2|^2 / |y_2|^2$.

    Self-supervision by data undersampling (SSDU): training on a scan itself. As the noise of both parts is independent,
    the loss is, in expectation over noise, that of noiseless measurements and a constant. Not where less than about a
    fifth is to be held out of very few lines: the loss then is that of one or two.

    Source: B. Yaman et al., Magn. Reson. Med. 84 (2020) 3172.

    Args:
        reconstruct: `reconstruct(y, op) -> x`; it gets the operator of what is seen, with a mask of each sample's own.
        y: k-space, `(B, H, W)` or `(B, C, H, W)`; zero where nothing was sampled.
        op: of the whole, `Fourier` or `Sense`.
        held_out: see `split_mask`.
        center_fraction: see `split_mask`.
        seed: see `split_mask`; a new one at every step of a training.

    Returns:
        A loss per sample, `(B,)`.

    Raises:
        TypeError: another operator.
        ValueError: see `split_mask`.
    """
    if not isinstance(op, Fourier | Sense):
        raise TypeError(
            f"split_loss(op=...): got a {type(op).__name__}, expected a Fourier or Sense, whose mask can be split; try "
            "equivariant_loss or sure_loss"
        )
    if not is_real_or_complex(y):
        raise TypeError(f"split_loss(y=...): got {kind(y)}, expected a complex one")
    coil = op.coil if isinstance(op, Sense) else op
    seen, held = split_mask(coil.mask, len(y), held_out=held_out, center_fraction=center_fraction, seed=seed)
    first, second = _restricted(op, seen), _restricted(op, held)
    missed = second.A(reconstruct(_only(y, seen), first)) - _only(y, held)
    return _squared(missed) / _squared(_only(y, held))


def _check_part(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"split_mask({name}={value!r}): expected a number in {expected}")


def _check_enough(total: Tensor, least: Tensor, center_fraction: float) -> None:
    """Refuses samples that have too few entries outside of the centre to be split."""
    short = (total < least).nonzero().flatten().tolist()
    if short:
        i = short[0]
        raise ValueError(
            f"split_mask(mask=..., center_fraction={center_fraction}): sample {i} has {int(total[i])} entries outside "
            f"of the centre, expected at least {int(least[i])} to split; try a smaller center_fraction"
        )


def _middle(shape: torch.Size, part: float, device: torch.device) -> Tensor:
    """Where the middle part of every axis is, along which there is more than one entry, `(H, W)`."""
    inside = torch.full(shape, part > 0, device=device)
    for axis, size in enumerate(shape):
        if size > 1:
            length = round(part * size)
            first = size // 2 - length // 2
            place = torch.arange(size, device=device)
            inside = inside & ((place >= first) & (place < first + length)).reshape((-1, 1) if axis == 0 else (1, -1))
    return inside


def _restricted(op: Fourier | Sense, mask: Tensor) -> Fourier | Sense:
    return Sense(op.maps, mask, op.coil.dims) if isinstance(op, Sense) else Fourier(mask, op.dims)


def _only(y: Tensor, mask: Tensor) -> Tensor:
    return y * (mask if y.dim() == 3 else mask.unsqueeze(1))


def _squared(y: Tensor) -> Tensor:
    return y.abs().square().flatten(1).sum(1)
