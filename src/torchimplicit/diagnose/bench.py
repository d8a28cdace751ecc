"""What a gradient is compared with: unrolling and finite differences of a copy of the layer in double precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Unrolled
from torchimplicit.core import Report, Solution
from torchimplicit.core.tree import Layout
from torchimplicit.diagnose.probe import differentiated, modules_of, untouched
from torchimplicit.equations import fixed_point
from torchimplicit.linear import LU
from torchimplicit.nn import DEQ
from torchimplicit.solve import Anderson, Newton, Picard, Solver

STEP = 1e-5  # of the finite differences: their own error is then about 1e-9
NOISE = 1e-2  # distance from the solution, relative to its size, at which unrolling starts
DENSE = 512  # unknowns per sample up to which the reference may use a factored Jacobian


class Bench:
    """A copy of the layer in float64, the tensors to differentiate by, and the functional of its output."""

    def __init__(self, layer: DEQ, x: Any, args: tuple, seed: int):
        self.layer, self.x, self.args, self.seed = layer, x, args, seed
        self.tensors = differentiated(layer, x, args)
        if not self.tensors:
            raise ValueError(
                "check_gradient: got no parameter that requires grad and no floating input, expected something to "
                "differentiate by; try requires_grad_() on the cell's parameters"
            )
        self.generator = torch.Generator().manual_seed(seed)
        with self.repeatable(), torch.no_grad():
            self.z0 = pytree.tree_map(_wide, layer.initial_state(x, *args))
        self.layout = Layout(self.z0)
        self.weights = self.noise((self.layout.batch, self.layout.width), self.layout.device)
        self.solver: Solver = Picard()
        self.solution = self.z0

    def noise(self, shape: Any, device: torch.device) -> Tensor:
        """Standard normal numbers, the same on every device."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu").to(device)

    def noise_like(self, tensor: Tensor) -> Tensor:
        """Noise of a tensor's shape and dtype."""
        if tensor.is_complex():
            return torch.view_as_complex(self.noise((*tensor.shape, 2), tensor.device))
        return self.noise(tensor.shape, tensor.device)

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """The same random numbers and the same buffers for every solve: one function of the tensors."""
        with untouched(self.layer, (self.x, *self.args), self.seed):
            yield

    def gradient(self, value: Any) -> dict[str, Tensor]:
        """The gradient of the functional, zero where it does not depend on a tensor."""
        loss = (self.weights * self.layout.flatten(value)).sum()
        tensors = list(self.tensors.values())
        grads = torch.autograd.grad(loss, tensors, materialize_grads=True) if loss.requires_grad else None
        grads = grads or [torch.zeros_like(tensor) for tensor in tensors]
        return dict(zip(self.tensors, grads, strict=True))

    def own_gradient(self) -> tuple[dict[str, Tensor], Any, Report]:
        """As the layer computes it; and its value and report."""
        with self.repeatable():
            value = self.layer(self.x, *self.args, z0=self.z0)
            gradient = self.gradient(value)
        assert self.layer.report is not None
        return gradient, pytree.tree_map(torch.detach, value), self.layer.report

    def refine(self, value: Any) -> None:
        """Finds the references' solver: that which converges to rounding, nearest to the layer's own solution."""
        candidates: list[Solver] = [Picard(max_steps=1000), Anderson(max_steps=500)]
        if self.layout.width <= DENSE:
            candidates.insert(1, Newton(linear_solver=LU(), max_steps=100))
        best = (torch.inf, torch.inf)
        for solver in candidates:
            tight = replace(solver, rtol=1e-13, atol=1e-15)
            with self.repeatable(), torch.no_grad():
                solution = self.solve(tight, self.beside(value))
            z, start = self.layout.flatten(solution.value), self.layout.flatten(value)
            size = 1 + float(z.square().mean().sqrt())
            rank = float(solution.residual.max()) / size, float((z - start).square().mean().sqrt()) / size
            rank = (0.0 if rank[0] < 1e-10 else rank[0], rank[1])
            if rank < best:
                best, self.solver, self.solution = rank, tight, solution.value
            if best[0] == 0 and best[1] < NOISE:
                break

    def solve(self, solver: Solver, z0: Any) -> Solution:
        """Solves the copy's equation from `z0`, recording every step where grad is enabled."""
        return fixed_point(
            self.layer.cell, z0, self.x, *self.args, solver=solver, adjoint=Unrolled(), on_failure="ignore"
        )

    def beside(self, value: Any) -> Any:
        """A state near this one. At a solution itself any solver would stop at once, having differentiated nothing."""
        z = self.layout.flatten(value)
        size = z.square().mean(1, keepdim=True).sqrt() + NOISE
        return self.layout.unflatten(z + NOISE * size * self.noise(z.shape, z.device))

    def unrolled_gradient(self) -> tuple[dict[str, Tensor], Report]:
        """By backpropagation through a solve that starts beside the solution."""
        start = self.beside(self.solution)
        with self.repeatable():
            solution = self.solve(self.solver, start)
            return self.gradient(solution.value), solution.report

    def differences(self, directions: int) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Random directions, and the central difference of the functional along each."""
        slopes, quotients = [], []
        for _ in range(directions):
            direction = {name: self.noise_like(tensor) for name, tensor in self.tensors.items()}
            ends = [self.functional(direction, sign * STEP) for sign in (1, -1)]
            slopes.append(direction)
            quotients.append((ends[0] - ends[1]) / (2 * STEP))
        return slopes, torch.stack(quotients)

    @torch.no_grad()
    def functional(self, direction: dict[str, Tensor], step: float) -> Tensor:
        """The functional with every tensor moved along a direction, `()`."""
        held = {name: tensor.clone() for name, tensor in self.tensors.items()}
        try:
            for name, tensor in self.tensors.items():
                tensor.add_(direction[name], alpha=step)
            with self.repeatable():
                value = self.solve(self.solver, self.solution).value
        finally:
            for name, tensor in self.tensors.items():
                tensor.copy_(held[name])
        return (self.weights * self.layout.flatten(value)).sum()


def widened(layer: DEQ, x: Any, args: tuple) -> tuple[DEQ, Any, tuple]:
    """Copies in double precision, cut from any graph; floating inputs require grad."""
    memo: dict = {}
    layer = copy.deepcopy(layer, memo)

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            leaf = _wide(leaf.detach()).clone()
            return leaf.requires_grad_() if leaf.is_floating_point() or leaf.is_complex() else leaf
        return copy.deepcopy(leaf, memo)

    x, args = pytree.tree_map(copied, (x, args))
    for module in modules_of(layer, (x, *args)).values():
        module._apply(_wide)
    layer.on_failure, layer.warm_start = "ignore", False
    layer.reset()
    return layer, x, args


def _wide(leaf: Any) -> Any:
    """A floating or complex tensor in double precision; anything else as it is."""
    if isinstance(leaf, Tensor) and leaf.is_complex():
        return leaf.to(torch.complex128)
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
