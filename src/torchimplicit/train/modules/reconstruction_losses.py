"""By what a reconstruction is trained: the truth, or the measurements alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from torchimplicit.core.options import is_number, require
from torchimplicit.core.status import Report
from torchimplicit.imaging import Flip, QuarterTurn, Shift, equivariant_loss, split_loss, sure_loss
from torchimplicit.train.data.measurement import Measurement
from torchimplicit.train.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reconstruct = Callable[[Tensor, Any], Tensor]
GROUPS = {"shift": Shift(), "flip": Flip(), "turn": QuarterTurn()}


class Judged(NamedTuple):
    """What a loss says of a batch.

    Attributes:
        loss: per sample, `(B,)`.
        image: reconstructions of the whole measurements, where they came about.
        used: whose loss counts, bool `(B,)`; None for all.
        registration: report of the solves by which the loss registered images; None where it did not.
    """

    loss: Tensor
    image: Tensor | None = None
    used: Tensor | None = None
    registration: Report | None = None


@dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """Base of the losses: a subclass gives `__call__`, from a network's reconstructions to a loss per sample."""

    def __call__(self, reconstruct: Reconstruct, batch: Measurement, *, seed: int, border: int = 0) -> Judged:
        """The loss per sample, and the images of the whole measurement, where they came about.

        Args:
            reconstruct: `reconstruct(y, op) -> x`.
            batch: what was measured.
            seed: of what the loss draws; another one at every step.
            border: pixels at each side of an image that do not count.
        """
        raise NotImplementedError(f"{type(self).__name__}: expected a method __call__(reconstruct, batch, ...)")

    def pictures(self, reconstruct: Reconstruct, batch: Measurement) -> dict[str, Figure]:
        """Figures of what the loss has seen, by name, for the report. None here."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Supervised(ReconstructionLoss):
    """The mean square of the distance to the true images."""

    def __call__(self, reconstruct: Reconstruct, batch: Measurement, *, seed: int, border: int = 0) -> Judged:
        """See `ReconstructionLoss`.

        Raises:
            UsageError: there are no true images.
        """
        if batch.target is None:
            raise UsageError(
                "Supervised: got measurements without true images. Try a loss that needs none: Splitting of k-space, "
                "Risk where the noise is known, Equivariant."
            )
        image = reconstruct(batch.y, batch.op)
        error = (image - batch.target)[..., border : image.shape[-2] - border, border : image.shape[-1] - border]
        return Judged(error.abs().square().flatten(1).mean(1), image)


@dataclass(frozen=True, kw_only=True)
class Splitting(ReconstructionLoss):
    """What a reconstruction from some of k-space misses of the rest; see `imaging.split_loss`.

    Args:
        held_out: part of what was sampled outside of the centre.
        center_fraction: part of every axis, in the middle, that is always seen.
    """

    held_out: float = 0.4
    center_fraction: float = 0.04

    def __call__(self, reconstruct: Reconstruct, batch: Measurement, *, seed: int, border: int = 0) -> Judged:
        """See `ReconstructionLoss`."""
        parts = {"held_out": self.held_out, "center_fraction": self.center_fraction}
        return Judged(split_loss(reconstruct, batch.y, batch.op, seed=seed, **parts))


@dataclass(frozen=True, kw_only=True)
class Risk(ReconstructionLoss):
    r"""Stein's unbiased estimate of the risk; see `imaging.sure_loss`.

    Args:
        noise: $\sigma > 0$ of the measurements.
    """

    noise: float

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "noise", is_number(self.noise) and self.noise > 0, "a number > 0")

    def __call__(self, reconstruct: Reconstruct, batch: Measurement, *, seed: int, border: int = 0) -> Judged:
        """See `ReconstructionLoss`."""
        return Judged(sure_loss(reconstruct, batch.y, batch.op, noise=self.noise, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Equivariant(ReconstructionLoss):
    r"""Consistency, and equivariance under a group; see `imaging.equivariant_loss`.

    Args:
        group: "shift", "flip" or "turn", by a quarter.
        weight: $\alpha \ge 0$ of the equivariance.
    """

    group: Literal["shift", "flip", "turn"] = "shift"
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "group", self.group in GROUPS, "'shift', 'flip' or 'turn'")
        require(self, "weight", is_number(self.weight) and self.weight >= 0, "a number >= 0")

    def __call__(self, reconstruct: Reconstruct, batch: Measurement, *, seed: int, border: int = 0) -> Judged:
        """See `ReconstructionLoss`."""
        options = {"weight": self.weight, "seed": seed}
        return Judged(equivariant_loss(reconstruct, batch.y, batch.op, GROUPS[self.group], **options))
