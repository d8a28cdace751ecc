"""Damped Picard iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require
from torchimplicit.core.problem import Residual
from torchimplicit.solve.loop import Solver


class PicardState(NamedTuple):
    """Iterate and residual, `(B, n)` each."""

    z: Tensor
    residual: Tensor


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Damped Picard iteration, `z <- z - damping * r(z)`; for a fixed point `(1 - damping) z + damping f(z)`.

    Converges linearly, at the rate of the contraction. The tolerance applies to the undamped residual, so damping slows
    the iteration but does not loosen it. Use it for strong contractions, or as the reference that others must agree
    with; elsewhere `Anderson` needs fewer evaluations.

    Args:
        damping: factor of the step, in (0, 1] for most maps.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "damping", is_number(self.damping) and 0 < self.damping <= 2, "a number in (0, 2]")

    def init(self, problem: Residual, z: Tensor) -> PicardState:
        """The state at the start."""
        return PicardState(z, problem(z))

    def step(self, problem: Residual, state: PicardState) -> PicardState:
        """One damped step."""
        z = torch.sub(state.z, state.residual, alpha=self.damping)
        return PicardState(z, problem(z))
