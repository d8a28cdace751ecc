"""What is said of points that a projection or a proximal map could not find."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.explicit import evaluating
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Remedy, Report, Status, react

PROJECTIONS = {
    Status.NON_FINITE: Remedy(
        "NaN or infinity in the point or in what the set depends on (or a number too large for the dtype): look for "
        "them in the inputs. An entry of -inf is a mask where its bound is finite, unless all entries are. Such a "
        "sample is NaN and adds nothing to the gradients."
    ),
    Status.STAGNATED: Remedy(
        "The point misses its condition by more than rounding. No input is known that does it: please report this one."
    ),
}


class PointReport(Report):
    """How points were found; `residual` is by how much they miss their condition."""

    failure = "could not be projected"
    table = PROJECTIONS

    def describe(self, sample: int) -> str:
        """How far one sample is off."""
        return f"off by {float(self.residual[sample]):.2e}"


@public
def tell(name: str, nonfinite: Tensor, gap: Tensor | None, play: Tensor | float, on_failure: OnFailure) -> bool:
    """Raises or warns of samples that are not finite, or miss their condition; whether it is known that none is.

    Not within the function of a solve, which looks at every iterate itself.

    Args:
        name: of the projection.
        nonfinite: which samples are not finite, `(...)`.
        gap: by how much each misses its condition, `(...)` or `(..., 1)`; None where nothing can go wrong.
        play: how much of that is rounding, likewise.
        on_failure: "raise", "warn" or "ignore".

    Returns:
        Whether all samples are well. Where that is not looked at it is not known.

    Raises:
        ConvergenceError: there are such samples, with `on_failure="raise"`.
    """
    if on_failure == "ignore" or evaluating():
        return False
    play = play.reshape(nonfinite.shape) if isinstance(play, Tensor) else play
    gap = None if gap is None else gap.reshape(nonfinite.shape)
    if not _some(off := nonfinite if gap is None else nonfinite | ~(gap <= play)):
        return True
    if gap is not None:  # of numbers below the normal ones, rounding is no part of their size
        off = nonfinite | ~(gap <= play + torch.finfo(gap.dtype).tiny)
        if not _some(off):
            return True
    # One tensor, so that what torch.vmap hides stands in one place: of samples that are well it is not positive.
    gap = off.double() if gap is None else gap.double()
    signed = transforms.plain(torch.where(nonfinite, torch.nan, torch.where(off, gap, -gap))).flatten()
    status = Status.STAGNATED.where(signed > 0, Status.CONVERGED)
    status = Status.NON_FINITE.unless(signed.isfinite(), status)
    react(PointReport(status, torch.zeros_like(status), signed.abs(), 0, name), on_failure)
    return False


def _some(which: Tensor) -> bool:
    return bool(transforms.plain(which).any())
