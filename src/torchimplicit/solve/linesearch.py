"""Globalisation: shorten a step until it reduces the residual, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual
from torchimplicit.core.tree import norm

SUFFICIENT = 1e-4  # a step of length t must reduce the residual norm by the factor 1 - SUFFICIENT * t


def backtrack(
    problem: Residual, z: Tensor, residual: Tensor, direction: Tensor, halvings: int
) -> tuple[Tensor, Tensor]:
    """Goes from `z` along `direction`, halving a sample's step until its residual norm falls enough.

    A sample whose every trial fails takes its shortest step; one whose direction is not finite is not searched.

    Args:
        problem: the residual.
        z: start, `(B, n)`.
        residual: residual there.
        direction: the full step, `(B, n)`.
        halvings: how often to halve at most; 0 takes the full step.

    Returns:
        The new iterate and its residual, `(B, n)` each.
    """
    length = torch.ones_like(z[:, :1])
    size = norm(residual.detach())
    searchable = norm(direction.detach()).isfinite()
    trial = z + direction
    trial_residual = problem(trial)
    for _ in range(halvings):
        enough = norm(trial_residual.detach()) <= (1 - SUFFICIENT * length.squeeze(1)) * size
        short = searchable & ~enough
        if not bool(short.any()):
            break
        length = torch.where(short.unsqueeze(1), length / 2, length)
        trial = torch.where(short.unsqueeze(1), z + length * direction, trial)
        trial_residual = torch.where(short.unsqueeze(1), problem(trial), trial_residual)
    return trial, trial_residual
