"""`torchimplicit reconstruct`: images of k-space, and whether they are what was asked for."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchimplicit import picture
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, write_nifti, write_png
from torchimplicit.train.command.methods import Choice, Method
from torchimplicit.train.command.page import PAGE, as_picture, as_table
from torchimplicit.train.data.acquisitions import acquired, together
from torchimplicit.train.data.kspace_files import Scan, read_scan
from torchimplicit.train.errors import UnconvergedError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # slices in the report
WRITTEN = (".npy", ".nii", ".nii.gz", ".png")
ADVICE = "Try more --max-steps, or another --method."


@dataclass(frozen=True, eq=False)
class Slice:
    """One image, and how it was found.

    Attributes:
        image: `(H, W)` complex, in units of the file.
        first: the zero-filled image.
        mask: what was sampled, `(H, W)`.
        seconds: of the processor.
        status: how the solve ended; None where there was none.
        steps: that it took.
        residual: of the last one, RMS, relative to the largest magnitude of the zero-filled image.
        distance: estimated from the image to the fixed point, likewise; None where the method estimates none.
    """

    image: Tensor
    first: Tensor
    mask: Tensor
    seconds: float
    status: Status | None = None
    steps: int = 0
    residual: float = 0.0
    distance: float | None = None

    def describe(self) -> tuple[str, ...]:
        """Status, steps, residual, distance and time, in words."""
        time = f"{self.seconds:.1f} s"
        if self.status is None:
            return ("nothing to solve", "", "", "", time)
        far = "not estimated" if self.distance is None else f"{self.distance:.1e}"
        return (self.status.name.lower(), str(self.steps), f"{self.residual:.1e}", far, time)


def reconstruct(
    kspace: Path, maps: Path | None, choice: Choice, slices: slice, out: Sequence[Path], report: Path | None
) -> list[Slice]:
    """Reads, reconstructs slice by slice, and writes what was asked for.

    Raises:
        DataError: k-space or maps cannot be read, or do not belong together.
        UsageError: an output of an unknown kind, or an impossible option.
        UnconvergedError: after everything was written, where some slices did not converge.
    """
    for path in out:
        if not path.name.lower().endswith(WRITTEN):
            raise UsageError(f"--out {path}: expected a name that ends in {', '.join(WRITTEN)}.")
    scan, method = read_scan(kspace, maps, slices), choice.method()
    found = []
    for index in range(len(scan.kspace)):
        found.append(_slice(scan, index, method))
        print(f"slice {index}: {', '.join(word for word in found[-1].describe() if word)}", flush=True)
    for path in out:
        write(path, found)
        print(f"image: {path}")
    if report is not None:
        report.write_text(_page(scan, choice, found))
        print(f"report: {report}")
    failed = [i for i, each in enumerate(found) if each.status not in (None, Status.CONVERGED)]
    if failed:
        words = ", ".join(f"{i} ({found[i].describe()[0]}, residual {found[i].residual:.1e})" for i in failed[:5])
        raise UnconvergedError(
            f"reconstruct: {len(failed)} of {len(found)} slices did not converge: {words}"
            f"{', ...' if len(failed) > 5 else ''}. What was written is as far as they came. {ADVICE}"
        )
    return found


def write(path: Path, found: Sequence[Slice]) -> None:
    """Writes images: complex `(slices, H, W)` as .npy, magnitudes as NIfTI or PNG, several PNG with their numbers."""
    images = torch.stack([each.image for each in found])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, images.numpy())
    elif path.suffix == ".png":
        top = float(images.abs().max())
        for i, image in enumerate(images):
            each = path if len(images) == 1 else path.with_stem(f"{path.stem}-{i}")
            write_png(each, image.abs() / (top or 1.0))
    else:
        # K-space says nothing of voxels or directions: a millimetre each, and axes as they lie in the file.
        write_nifti(path, Image(images.abs().permute(1, 2, 0).contiguous(), torch.eye(4)))


@torch.no_grad()
def _slice(scan: Scan, index: int, method: Method) -> Slice:
    start = time.process_time()
    got = acquired(f"{scan.name}, slice {index}", scan.kspace[index], scan.maps_of(index), scan.mask[index])
    y, op, *_ = together([got])
    image, report = method(y, op)
    seconds = time.process_time() - start
    if not bool(image.isfinite().all()) and report is None:
        raise UnconvergedError(f"reconstruct: slice {index} is not finite, expected numbers. {ADVICE}")
    first = op.A_adjoint(y)[0] * got.scale
    mask = got.mask.expand(first.shape)
    if report is None:
        return Slice(image[0] * got.scale, first, mask, seconds)
    distance = None if report.distance is None else float(report.distance[0])
    status = Status(int(report.status[0]))
    return Slice(
        image[0] * got.scale, first, mask, seconds, status, int(report.steps[0]), float(report.residual[0]), distance
    )


def _page(scan: Scan, choice: Choice, found: Sequence[Slice]) -> str:
    head = ("slice", "solve", "steps", "residual", "distance", "processor")
    table = as_table(head, [(str(i), *each.describe()) for i, each in enumerate(found)])
    share = float(scan.mask.float().mean())
    _, coils, height, width = scan.kspace.shape
    told = (
        f"{html.escape(scan.name)}: {len(found)} slices, {coils} coils, {height} x {width}, {share:.1%} of k-space "
        f"sampled; maps {'as given' if scan.maps is not None else 'estimated from the middle of k-space (ESPIRiT)'}; "
        f"method {html.escape(choice.name)}."
    )
    note = (
        "Residual: of the last step. Distance: from the image to the solution, estimated. Both are root mean squares, "
        "relative to the largest magnitude of the zero-filled image. A small distance says that the method's answer "
        "was found, not that the answer is the truth."
    )
    body = f"<p>{told}</p>{table}<p>{note}</p>{as_picture(_figure(found))}"
    return PAGE.format(title="torchimplicit reconstruct", body=body)


def _figure(found: Sequence[Slice]) -> Figure:
    """A row a slice: mask, zero-filled, reconstruction, and what lies between; of some slices, evenly spaced."""
    chosen = sorted({round(i * (len(found) - 1) / max(SHOWN - 1, 1)) for i in range(SHOWN)})
    height, width = found[0].image.shape
    figure = picture.new_figure(9.0, 2.2 * len(chosen) * height / width + 0.4)
    grid = figure.subplots(len(chosen), 4, squeeze=False)
    for axes, number in zip(grid, chosen, strict=True):
        each = found[number]
        top = float(each.image.abs().nan_to_num(0, 0, 0).max()) or 1.0
        panels = [
            ("mask", each.mask.float(), 1.0),
            ("zero-filled", each.first.abs(), top),
            (f"slice {number}", each.image.abs(), top),
            ("difference, x5", (each.image - each.first).abs(), top / 5),
        ]
        for ax, (title, image, high) in zip(axes, panels, strict=True):
            ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=high, interpolation="nearest")
            ax.set_title(title, fontsize=8)
            ax.set_axis_off()
    return figure
