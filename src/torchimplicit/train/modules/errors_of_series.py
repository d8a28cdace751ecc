"""Errors of predicted series, counted in the two ways that are in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from torchimplicit.nn import Series


class ErrorAsLatentODE(Metric):
    """The mean square error as the published code of latent ODEs counts it.

    A mean over the observations of a variable in a series, then over all variables and series; a variable without
    observations counts as an error of 0. So it is less
    than the error over observations, by about as much as is missing.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907, the published code.
    """

    total: Tensor
    count: Tensor

    def __init__(self):
        """Starts empty."""
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Series) -> None:
        """Adds series; the prediction is `(B, T, C)`."""
        squares, mask = _squares(prediction, target)
        self.total += (squares.sum(1) / mask.sum(1).clamp(min=1)).sum()
        self.count += squares[:, 0].numel()

    def compute(self) -> Tensor:
        """The error."""
        return (self.total / self.count).float()


class ErrorOverObservations(ErrorAsLatentODE):
    """The mean square error over all observations."""

    def update(self, prediction: Tensor, target: Series) -> None:
        """Adds series; the prediction is `(B, T, C)`."""
        squares, mask = _squares(prediction, target)
        self.total += squares.sum()
        self.count += mask.sum()


def _squares(prediction: Tensor, target: Series) -> tuple[Tensor, Tensor]:
    squares = (prediction.detach().double() - target.values).square()
    return squares.where(target.mask, 0.0), target.mask


def errors() -> dict[str, Any]:
    """Both ways to count, by name."""
    return {"mse_as_latent_ode": ErrorAsLatentODE(), "mse_over_observations": ErrorOverObservations()}
