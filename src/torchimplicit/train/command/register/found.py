"""What `torchimplicit register` has found: the registration of two files, its solves, its overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.outcome import Status
from torchimplicit.core.status import Report
from torchimplicit.imaging import Image
from torchimplicit.imaging.register import Linear, Registration, dice
from torchimplicit.train.command.register.order import Order
from torchimplicit.train.command.register.volumes import Scene


@dataclass(frozen=True, eq=False)
class Stage:
    """One solve, and how it went.

    Attributes:
        name: of the kind.
        report: of the solve.
        seconds: of the processor.
    """

    name: str
    report: Report
    seconds: float

    @property
    def status(self) -> Status:
        """How it ended."""
        return Status(int(self.report.status[0]))

    def describe(self) -> tuple[str, ...]:
        """Status, steps, residual, evaluations and time, in words."""
        report = self.report
        words = self.status.name.lower(), str(int(report.steps[0])), f"{float(report.residual[0]):.1e}"
        return (*words, str(report.nfev), f"{self.seconds:.1f} s")


@dataclass(frozen=True, eq=False)
class Found:
    """A registration of files.

    Attributes:
        order: what was asked for.
        fixed: the image that stays.
        moving: the image that is warped.
        result: the registration.
        stages: its solves.
        labels: of the moving image; None where none were given.
        fixed_labels: of the fixed image, likewise.
        back: the inverse and how far there and back leads from the start, RMS and at most, in millimetres; or None.
    """

    order: Order
    fixed: Scene
    moving: Scene
    result: Registration
    stages: list[Stage]
    labels: Scene | None = None
    fixed_labels: Scene | None = None
    back: tuple[Registration, float, float] | None = None

    @property
    def before(self) -> Registration:
        """The identity of the world: images as they came."""
        result = self.result
        eye = torch.eye(result.fixed.space + 1, dtype=torch.float64)[None]
        return Registration(Linear(eye), result.fixed, result.moving, result.report)

    def overlaps(self) -> tuple[list[int], Tensor, Tensor]:
        """Labels, and their Dice before and after; labels are warped to the nearest voxel."""
        assert self.labels is not None
        assert self.fixed_labels is not None
        truth = _tensor(self.fixed_labels)
        moved = [_tensor(warped_labels(each, self.labels)) for each in (self.before, self.result)]
        values = sorted({int(each) for each in torch.cat((truth.unique(), _tensor(self.labels).unique()))} - {0})
        before, after = (dice(each, truth, values)[0] for each in moved)
        return values, before, after


def _tensor(scene: Scene) -> Tensor:
    return scene.data[None, None] if isinstance(scene, Image) else scene


def displacement(result: Registration) -> Scene:
    """A field as `write_displacement` takes it: of millimetres, or of a picture's pixels."""
    u = result.displacement()[0].float()
    return Image(u.movedim(0, -1).contiguous(), result.fixed.affine) if len(u) == 3 else u


def warped(result: Registration, image: Any) -> Scene:
    """The moving image on the fixed grid."""
    return result.warp(image)


def warped_labels(result: Registration, labels: Any) -> Scene:
    """The moving image's labels on the fixed grid, of the nearest voxel."""
    return result.warp_labels(labels)
