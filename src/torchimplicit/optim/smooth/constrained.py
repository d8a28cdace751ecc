"""Equality constraints: a minimum under them is a stationary point of the Lagrangian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.stationary import Stationary
from torchimplicit.core.status import Solution
from torchimplicit.core.tree import Layout


@dataclass(frozen=True)
class ConstrainedSolution(Solution):
    r"""A minimum under constraints.

    Attributes:
        multipliers: $\lambda$, like the constraints' value: $-\lambda$ is how fast the minimum's energy grows with the
            value that the constraint is asked to have. Differentiable.
    """

    multipliers: Any = field(default=None, kw_only=True)

    @classmethod
    def of(cls, solution: Solution) -> ConstrainedSolution:
        """From the solution of the Lagrangian's state, the pair of value and multipliers."""
        value, multipliers = solution.value
        trajectory = tuple(value for value, _ in solution.trajectory)
        return cls(value, solution.report, trajectory, solution.state, solution.ran, multipliers=multipliers)


def lagrangian(energy: Callable, constraints: Callable, state: tuple, *args: Any) -> Tensor:
    r"""$E(z, a) + \lambda^\top c(z, a)$ of the state $(z, \lambda)$; its gradient is the KKT residual."""
    z, multipliers = state
    value = energy(z, *args)
    pairs = zip(pytree.tree_leaves(multipliers), pytree.tree_leaves(constraints(z, *args)), strict=True)
    return value + sum((multiplier * term).reshape(*value.shape, -1).sum(-1) for multiplier, term in pairs)


def first_multipliers(
    energy: Callable, constraints: Callable, z0: Any, args: tuple, batch_dims: int
) -> tuple[Any, int]:
    """Multipliers of zero, like the constraints' value at the start; and how many there are of a sample.

    Raises:
        TypeError: the constraints are not callable, or no real floating tensors.
        ValueError: they have another batch, are none, or more than the unknowns; or the energy is wrong.
    """
    if not callable(constraints):
        raise TypeError(
            f"constraints: got a {type(constraints).__name__}, expected a callable c(z, *args) whose value shall vanish"
        )
    problem = Stationary(energy, z0, args, batch_dims, begins=False)
    with torch.no_grad():
        problem.check(energy(z0, *args))
        value = constraints(z0, *args)
    for leaf in pytree.tree_leaves(value):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise TypeError(f"the constraints returned {got}, expected a real floating tensor; try real and imag apart")
        if batch_dims and (leaf.dim() == 0 or len(leaf) != problem.layout.batch):
            raise ValueError(
                f"the constraints returned shape {tuple(leaf.shape)}, expected ({problem.layout.batch}, ...), the "
                "batch in dimension 0; batch_dims=0 for one coupled problem"
            )
    multipliers = pytree.tree_map(lambda leaf: torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device), value)
    count = Layout(multipliers, batch_dims).width
    if count > problem.layout.width:
        raise ValueError(
            f"the constraints are {count} for {problem.layout.width} unknowns per sample: no minimum is left to find; "
            "expected fewer constraints than unknowns; try least_squares"
        )
    return multipliers, count
