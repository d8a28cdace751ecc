"""Acquisitions of slices: what one sequence of lines or points has measured, whole or in slabs, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.imaging import Sense, ifftc
from torchimplicit.train.data.base import DataError
from torchimplicit.train.data.measurement import Measurement


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What one sequence of lines or points has measured of a slice.

    Attributes:
        name: of the file, slice and mask.
        y: k-space `(C, H, W)`; where whole lines were sampled it is k-space along `axis` alone, an image along the
            other one.
        maps: sensitivities, `(C, H, W)`.
        mask: what was sampled, bool `(H, W)`, with 1 in place of the axis along which all is alike.
        target: the image of all of k-space, `(H, W)`, or None where nobody measured that.
        scale: by which k-space, noise and target were divided.
    """

    name: str
    y: Tensor
    maps: Tensor
    mask: Tensor
    target: Tensor | None
    scale: float

    @property
    def axis(self) -> int | None:
        """Along which lines are left out, -2 or -1; None for points."""
        return next((axis for axis, other in ((-2, -1), (-1, -2)) if self.mask.shape[other] == 1), None)

    @property
    def dims(self) -> tuple[int, ...]:
        """The axes that are transformed."""
        return (-2, -1) if self.axis is None else (self.axis,)

    def slab(self, first: int, width: int) -> Acquisition:
        """Neighbouring pixels of the axis that was sampled fully: a problem of its own, without an approximation."""
        assert self.axis is not None
        along = -3 - self.axis
        cut = {name: getattr(self, name).narrow(along, first, width) for name in ("y", "maps")}
        target = None if self.target is None else self.target.narrow(along, first, width)
        return replace(self, **cut, target=target)


class Acquisitions(Dataset):
    """Acquisitions whole; batches are a `Measurement`, with maps and masks of the samples' own.

    Args:
        acquisitions: of sizes that may differ; those of a batch may not.
    """

    def __init__(self, acquisitions: Sequence[Acquisition]):
        """Keeps them."""
        self.acquisitions = list(acquisitions)

    def __len__(self) -> int:
        return len(self.acquisitions)

    def __getitem__(self, index: int) -> Measurement:
        """One sample, without the dimension of a batch in tensors."""
        y, op, target, _ = self.__getitems__([index])
        return Measurement(y[0], op, None if target is None else target[0])

    def __getitems__(self, indices: Sequence[int]) -> Measurement:
        """A whole batch at once.

        Raises:
            DataError: its slices are of different sizes.
        """
        return together([self.acquisitions[i] for i in indices])


class Slabs(Acquisitions):
    """As many samples an epoch as are asked for: random slabs of random acquisitions, or these whole.

    Args:
        acquisitions: see `Acquisitions`.
        width: of the slabs; None for whole slices, as slices are where points were sampled.
        count: samples an epoch.
    """

    def __init__(self, acquisitions: Sequence[Acquisition], width: int | None, count: int):
        """Keeps them."""
        super().__init__(acquisitions)
        self.width, self.count = width, count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> Measurement:
        """See `Acquisitions`; which acquisition and where is drawn from torch's generator."""
        return together([self._slab(part) for part in torch.rand(len(indices), 2).tolist()])

    def _slab(self, part: list[float]) -> Acquisition:
        chosen = self.acquisitions[int(part[0] * len(self.acquisitions))]
        if self.width is None or chosen.axis is None:
            return chosen
        room = chosen.y.shape[-3 - chosen.axis] - self.width
        return chosen if room <= 0 else chosen.slab(int(part[1] * (room + 1)), self.width)


def acquired(name: str, y: Tensor, maps: Tensor, mask: Tensor, target: Tensor | None = None) -> Acquisition:
    """An acquisition out of k-space `(C, H, W)` and its mask, scaled, and transformed along what was sampled fully."""
    for axis in (-2, -1):  # what is the same all along an axis is kept once
        if mask.shape[axis] > 1 and bool((mask == mask.narrow(axis, 0, 1)).all()):
            mask = mask.narrow(axis, 0, 1)
            break
    found = Acquisition(name, y, maps, mask, target, 1.0)
    if found.axis is not None:
        found = replace(found, y=ifftc(y, (-3 - found.axis,)))
    scale = float(Sense(maps, mask, found.dims).A_adjoint(found.y[None]).abs().max())
    if not scale > 0:
        raise DataError(f"{name}: its zero-filled image is zero. Try other maps, or leave the slice out.")
    target = None if target is None else target / scale
    return replace(found, y=found.y / scale, target=target, scale=scale)


def together(acquisitions: Sequence[Acquisition]) -> Measurement:
    """A batch of acquisitions.

    Raises:
        DataError: of different sizes, some with a target and some without, or lines along different axes.
    """
    one = acquisitions[0]
    for each in acquisitions:
        if each.y.shape != one.y.shape or each.dims != one.dims or (each.target is None) != (one.target is None):
            raise DataError(
                f"KSpace: a batch of {one.name} {tuple(one.y.shape)} and {each.name} {tuple(each.y.shape)}, expected "
                "one size, axis and kind. Try batch_size: 1."
            )
    same = all(each.maps is one.maps for each in acquisitions)
    maps = one.maps if same or len(acquisitions) == 1 else torch.stack([each.maps for each in acquisitions])
    masks = [each.mask for each in acquisitions]
    mask = masks[0] if len(masks) == 1 else torch.stack(masks)
    targets = [each.target for each in acquisitions if each.target is not None]
    return Measurement(
        torch.stack([each.y for each in acquisitions]),
        Sense(maps, mask, one.dims),
        torch.stack(targets) if targets else None,
    )
