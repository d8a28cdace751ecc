"""Globalisation: choose a step's length such that it reduces the residual, or the energy, sample by sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual, Slope
from torchimplicit.core.tree import norm

SUFFICIENT = 1e-4  # a step of length t must reduce the residual norm by the factor 1 - SUFFICIENT * t
STEEP = 0.9  # a step goes on while the energy's slope along it is more than this part of the steepest one so far,
GROWTH = 4.0  # so many times as far, as long as nothing bounds it
INNER = 0.1  # a trial within bounds keeps this part of their distance away from either
ROUNDINGS = 10.0  # by how many roundings an energy may seem to rise where its slope says that it falls


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


class Place(NamedTuple):
    """A point of an energy: the iterate, the gradient there, `(B, n)` each, and the energy, `(B,)`."""

    z: Tensor
    residual: Tensor
    energy: Tensor

    def where(self, which: Tensor, other: Place) -> Place:
        """This place for some samples `(B,)`, another for the rest."""
        column = which.unsqueeze(1)
        return Place(
            torch.where(column, self.z, other.z),
            torch.where(column, self.residual, other.residual),
            torch.where(which, self.energy, other.energy),
        )


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Inner product of every sample's vectors, `(B,)`."""
    return (u * v).sum(1)  # products of matrices take up to five times as long


def descend(
    problem: Slope, start: Place, direction: Tensor, searching: Tensor, trials: int, noise: Tensor
) -> tuple[Place, Tensor, Tensor]:
    """Goes along a direction of descent until conditions like the weak Wolfe ones hold, sample by sample.

    The energy must fall by a part of what its slope promises, and the slope have become less steep; less than anywhere
    on the way, so that a step which begins near a maximum ends behind the first bend and not behind any. Near a minimum
    the energy's fall drowns in rounding long before the gradient has vanished: there the slope alone decides, as in W.
    Hager and H. Zhang, SIAM J. Optim. 16 (2005) 170, equation 4.1. Bracketing as in A. Lewis and M. Overton, Math.
    Program. 141 (2013) 135, algorithm 2.6, with secant steps in place of bisection.

    Args:
        problem: the gradient, which knows the energy.
        start: where to begin.
        direction: the full step, `(B, n)`.
        searching: the samples to move, `(B,)` bool; the others stay.
        trials: most lengths to try, one evaluation each.
        noise: by how much more than rounding an energy may seem to rise, `(B,)`.

    Returns:
        Where every sample arrived: the lowest place found if no trial held, the start if none was lower; whether
        the conditions hold there, `(B,)`; and the noise, as searches that fail show it.
    """
    steepness = dot(start.residual, direction)
    searching = searching & (steepness < 0) & (steepness > -math.inf)
    found, going, length, steepest = start, searching, torch.ones_like(steepness), steepness
    low, high, slope_low, slope_high = 0.0, math.inf, steepness, math.inf  # tensors once there is a second trial
    level = start.energy + torch.add(noise, start.energy.abs(), alpha=ROUNDINGS * problem.eps)
    flat = (2 * SUFFICIENT - 1) * steepness
    for _ in range(trials):
        z = torch.addcmul(start.z, length.unsqueeze(1), direction)
        gradient = problem(z)
        trial, slope = Place(z, gradient, problem.energy), dot(gradient, direction)
        falls = trial.energy <= torch.addcmul(start.energy, length, steepness, value=SUFFICIENT)
        falls = (falls | ((trial.energy <= level) & (slope <= flat))) & (slope.abs() < math.inf) & going
        found, rises = trial.where(falls, found), going ^ falls
        going = rises | (falls & (slope < STEEP * steepest))
        if not bool(going.any()):
            break
        steepest = torch.where(falls, torch.minimum(slope, steepest), steepest)
        low, slope_low = torch.where(falls, length, low), torch.where(falls, slope, slope_low)
        high, slope_high = torch.where(rises, length, high), torch.where(rises, slope, slope_high)
        tried, length = length, _between(low, high, slope_low, slope_high)
    else:  # out of trials: between bounds so near to each other the energy would be a straight line, but for noise
        wrong = ROUNDINGS * (trial.energy - start.energy - tried * (steepness + slope) / 2).abs()
        wrong = torch.where(going & (high < math.inf) & wrong.isfinite(), wrong, 0)
        noise = torch.maximum(noise, wrong)
    return found, searching ^ going, noise


def _between(low: Tensor, high: Tensor, slope_low: Tensor, slope_high: Tensor) -> Tensor:
    """The next length: where the slope would vanish if it were linear, kept within the bounds; beyond without any."""
    span = high - low
    part = slope_low / (slope_low - slope_high)
    part = torch.where(part.isfinite() & (slope_high > 0), part, 0.5).clamp(INNER, 0.5)
    return torch.where(high == math.inf, GROWTH * low, low + part * span)
