"""Two batches of images in one world, and which pairs of them nothing can be done with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.status import Report, Status
from torchimplicit.imaging.image import Image
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.sample import sample
from torchimplicit.imaging.register.warp import identity
from torchimplicit.imaging.register.weights import filled, mask_of

OVERLAP = 0.05  # part of the fixed image below which there is nothing to compare
LOOKS = 4096, 2**17  # voxels that an overlap is counted of, without masks and with them


@dataclass(frozen=True, eq=False)
class Pair:
    """What is registered.

    Attributes:
        fixed: `(B, C, *S)`, floating, finite; zero for samples with faults.
        moving: `(B, C, *T)`, the same.
        fixed_grid: where its voxels are.
        moving_grid: the same.
        faults: why nothing can be done with a sample, in words, by its number; and the status that it gets.
        fixed_mask: what counts, `(B, 1, *S)`, from 0 to 1; None is all. What does not is filled in the image.
        moving_mask: the same.
    """

    fixed: Tensor
    moving: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    faults: dict[int, tuple[Status, str]]
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None

    @classmethod
    def of(
        cls,
        fixed: Image | Tensor,
        moving: Image | Tensor,
        spacing: Sequence[float] | None = None,
        moving_spacing: Sequence[float] | None = None,
        masks: tuple[Image | Tensor | None, Image | Tensor | None] = (None, None),
    ) -> Pair:
        """Of images, or of tensors with voxels of these edges.

        Images are turned to RAS, which interpolates nothing: so nothing depends on how they are stored.

        Raises:
            TypeError: one is an image and the other is none, or a tensor is not floating.
            ValueError: dimensions or batches differ, or there is nothing to register.
        """
        if isinstance(fixed, Image) != isinstance(moving, Image):
            raise TypeError(
                f"align: got a {type(fixed).__name__} and a {type(moving).__name__}, expected two of imaging.Image or "
                "two tensors; a tensor does not say where it lies, try Image(data, affine)"
            )
        if isinstance(fixed, Image) and (spacing is not None or moving_spacing is not None):
            raise ValueError("align(spacing=...): images have their own; try it without")
        moving_spacing = spacing if moving_spacing is None else moving_spacing
        tensors, grids = [], []
        for name, image, edges in (("fixed", fixed, spacing), ("moving", moving, moving_spacing)):
            image = _canonical(name, image) if isinstance(image, Image) else image
            tensors.append(_values(name, image))
            grids.append(Grid.of(image, edges))
        _check_two(*tensors)
        given = (("fixed", masks[0], fixed, tensors[0]), ("moving", masks[1], moving, tensors[1]))
        counts = [mask_of(*each) for each in given]
        faults = _faults(*tensors, *counts)
        tensors = [filled(image, mask) for image, mask in zip(tensors, counts, strict=True)]
        if faults:  # nothing to see, so that they stay where they are
            sound = torch.tensor([number not in faults for number in range(len(tensors[0]))], device=tensors[0].device)
            sound = sound.view(-1, *[1] * (tensors[0].ndim - 1))
            tensors = [torch.where(sound, each, 0.0) for each in tensors]
            counts = [each if each is None else torch.where(sound, each, 1.0) for each in counts]
        return cls(tensors[0], tensors[1], grids[0], grids[1], faults, *counts)

    def overlap(self, matrix: Tensor) -> Tensor:
        """The part of what counts that a transform `(B, D + 1, D + 1)` takes to where the moving image does, `(B,)`."""
        with torch.no_grad():
            size, space = self.fixed_grid.size, self.fixed_grid.space
            masked = self.fixed_mask is not None or self.moving_mask is not None
            step = max(1, int((torch.Size(size).numel() / LOOKS[masked]) ** (1 / space)))
            cut = [slice(None, None, step)] * space
            x = identity(size, self.fixed_grid.affine)[(slice(None), *cut)].flatten(1)
            whole = torch.linalg.inv(self.moving_grid.affine) @ matrix.double().cpu() @ self.fixed_grid.affine
            at = whole[:, :space, :space] @ x + whole[:, :space, space:]
            last = torch.tensor(self.moving_grid.size, dtype=torch.float64, device="cpu")[:, None] - 0.5
            both = ((at >= -0.5) & (at <= last)).all(1).double()
            if self.moving_mask is not None:
                both = both * sample(self.moving_mask.double().cpu(), at)[:, 0]
            if self.fixed_mask is None:
                return both.mean(1)
            mask = self.fixed_mask.double().cpu()[(..., *cut)].flatten(1)
            return (mask * both).sum(1) / mask.sum(1).clamp_min(1e-12)

    def apart(self, matrix: Tensor) -> dict[int, tuple[Status, str]]:
        """The pairs that hardly overlap; see `overlap`."""
        found = self.overlap(matrix).tolist()
        what = "the fixed image" if self.fixed_mask is None and self.moving_mask is None else "what the masks leave"
        words = f"of {what} lies where the moving one is: try initial='centers', or another one"
        return {i: (Status.INFEASIBLE, f"{part:.0%} {words}") for i, part in enumerate(found) if part < OVERLAP}


def mark(report: Report, faults: dict[int, tuple[Status, str]]) -> None:
    """Gives samples with faults their status, and the report their words."""
    if not faults:
        return
    status = report.status.clone()
    for number, (value, _) in faults.items():
        status[number] = int(value)
    report.status = status
    said = [f"Sample {number}: {words}." for number, (_, words) in sorted(faults.items())]
    report.advice = "\n  ".join([*([report.advice] if report.advice else []), *said])


def _canonical(name: str, image: Image) -> Image:
    if image.data.ndim != 3:
        raise ValueError(
            f"align({name}): got an image {tuple(image.data.shape)} of {image.data.shape[3]} times or channels, "
            "expected (X, Y, Z); try Image(image.data[..., 0], image.affine)"
        )
    return image.reoriented("RAS")


def _values(name: str, image: Image | Tensor) -> Tensor:
    """Floating values, `(B, C, *S)`."""
    if isinstance(image, Image):
        data = image.data[None, None]
        image = data if data.is_floating_point() else data.float()  # files have integers
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"align({name}): got {got}, expected an Image, or a floating tensor; try .float(), or .abs()")
    if image.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"align({name}): got {image.dtype}, too few digits to say where things lie; try .float()")
    if image.ndim not in (4, 5) or not image.numel():
        raise ValueError(
            f"align({name}): got {tuple(image.shape)}, expected (B, C, H, W) or (B, C, X, Y, Z); "
            "try image[None, None] for one without batch and channels"
        )
    thin = [axis for axis, n in enumerate(image.shape[2:]) if n == 1]
    if thin:
        raise ValueError(
            f"align({name}): got a single voxel along axis {thin[0]} of {tuple(image.shape[2:])}, where nothing tells "
            f"how it moves; try two dimensions, image.squeeze({2 + thin[0]})"
        )
    return image


def _check_two(fixed: Tensor, moving: Tensor) -> None:
    if fixed.ndim != moving.ndim or fixed.shape[:2] != moving.shape[:2]:
        raise ValueError(
            f"align: got fixed {tuple(fixed.shape)} and moving {tuple(moving.shape)}, expected as many dimensions, "
            "samples and channels; try .expand for one image with many"
        )
    if fixed.dtype != moving.dtype or fixed.device != moving.device:
        raise TypeError(
            f"align: got {fixed.dtype} on {fixed.device} and {moving.dtype} on {moving.device}, expected the same; "
            "try moving.to(fixed)"
        )


def _faults(
    fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None, moving_mask: Tensor | None
) -> dict[int, tuple[Status, str]]:
    """Samples with values that are not finite, constant images, or masks that leave nothing; where they count."""
    faults = {}
    for name, image, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        flat = image.detach().flatten(2)
        counts = torch.ones_like(flat[:, :1]).bool() if mask is None else mask.flatten(2) > 0
        bad = counts & ~flat.isfinite()
        finite = ~bad.any(2).any(1)
        low, high = (torch.where(counts, flat, end) for end in (torch.inf, -torch.inf))
        largest = torch.where(counts, flat, 0.0).abs().amax(2)
        spread = (high.amax(2) - low.amin(2) <= 4 * torch.finfo(flat.dtype).eps * largest).any(1)
        for number in spread.logical_and(finite).nonzero().flatten().tolist():
            faults[number] = Status.INFEASIBLE, f"the {name} image is constant: nothing tells where it belongs"
        for number in (~counts.any(2)).any(1).nonzero().flatten().tolist():
            faults[number] = Status.INFEASIBLE, f"the mask of the {name} image leaves nothing of it"
        for number in (~finite).nonzero().flatten().tolist():
            count = int(bad[number].sum())
            faults[number] = Status.NON_FINITE, f"the {name} image has {count} values that are NaN or infinite"
    return faults
