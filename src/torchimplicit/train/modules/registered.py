"""By what the reconstruction of moving objects is trained: a second acquisition, brought into place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from torchimplicit.core.options import is_number, require
from torchimplicit.imaging import draw_alignment, draw_deformation, joint_loss
from torchimplicit.imaging.joint import MOTION
from torchimplicit.imaging.register import warp
from torchimplicit.imaging.register.kind import Kind
from torchimplicit.train.data.measurement import Measurement, first
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.reconstruction_losses import Judged, Reconstruct, ReconstructionLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Registered(ReconstructionLoss):
    """What the other acquisition of a moving object says, brought into place; see `imaging.joint_loss`.

    Batches have two acquisitions of every object, one after the other, as those of `train.data.MovingSlices`.

    Args:
        motion: "found" by registration of the reconstructions; "known", the data's own; "none", as if nothing had
            moved. The last two are its rivals.
        registration: how to find it.
        weight: of each reconstruction's distance to its own measurement, >= 0.
        differentiate: whether the gradient goes through the registration, too.
    """

    motion: Literal["found", "known", "none"] = "found"
    registration: Kind = MOTION
    weight: float = 0.2
    differentiate: bool = False

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "motion", self.motion in ("found", "known", "none"), "'found', 'known' or 'none'")
        require(self, "registration", isinstance(self.registration, Kind), "a kind, such as register.Demons()")
        require(self, "weight", is_number(self.weight) and self.weight >= 0, "a number >= 0")

    def __call__(self, reconstruct: Reconstruct, batch: Measurement, *, seed: int, border: int = 0) -> Judged:
        """See `ReconstructionLoss`.

        Raises:
            UsageError: samples are no pairs, or the motion is not known.
        """
        if len(batch.y) % 2:
            raise UsageError(
                f"Registered: got {len(batch.y)} samples, expected two acquisitions of every object, one after the "
                "other. Try MovingSlices, or a loss that needs one: Splitting."
            )
        if self.motion == "known" and batch.motion is None:
            raise UsageError("Registered(motion='known'): got data without the motion. Try motion: found.")
        motion = {"found": self.registration, "known": batch.motion, "none": None}[self.motion]
        options = {"weight": self.weight, "differentiate": self.differentiate}
        found = joint_loss(reconstruct, batch.y, batch.op, motion, **options)
        return Judged(found.loss, found.image, found.used, found.report)

    def pictures(self, reconstruct: Reconstruct, batch: Measurement) -> dict[str, Figure]:
        """A pair: both reconstructions, one on the other before and after, and the motion between them."""
        pair = first(batch, 2)
        with torch.no_grad():
            found = joint_loss(reconstruct, pair.y, pair.op, self.registration)
        assert found.displacement is not None
        fixed, moving = (each.abs().cpu() for each in found.image)
        u = found.displacement[:1].to(fixed)
        placed = warp(moving[None, None], u, interpolation="cubic")[0, 0]
        figures = {
            "pair": draw_alignment(fixed, {"second": moving, "second, in place": placed}),
            "motion found": draw_deformation(u[0]),
        }
        return figures if pair.motion is None else figures | {"true motion": draw_deformation(pair.motion[0])}
