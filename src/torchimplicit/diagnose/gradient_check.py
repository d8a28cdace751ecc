"""Is the gradient of a layer right? Against unrolling and against finite differences, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Unrolled
from torchimplicit.core import Report, Solution, Status
from torchimplicit.core.independence import mixes
from torchimplicit.core.tree import Layout
from torchimplicit.diagnose.advice import advice
from torchimplicit.diagnose.probe import (
    differentiated,
    linearised,
    modules_of,
    relative_error,
    require_layer,
    untouched,
)
from torchimplicit.equations import fixed_point
from torchimplicit.linear import LU
from torchimplicit.nn import DEQ
from torchimplicit.solve import Anderson, Newton, Picard, Solver

LOST = 1e-8  # RMS residual above which an unconverged reference solve is no reference

STEP = 1e-5  # of the finite differences: their own error is then about 1e-9
NOISE = 1e-2  # distance from the solution, relative to its size, at which unrolling starts
DENSE = 512  # unknowns per sample up to which the reference may use a factored Jacobian


@dataclass(frozen=True)
class GradientCheck:
    """How far a layer's gradient is off. All errors are relative.

    Attributes:
        unrolled: error of the layer's gradient against that of unrolling, over all tensors together.
        finite_difference: error of the layer's directional derivatives against central differences, by RMS.
        reference: disagreement of unrolling and central differences: what the two are to be trusted to.
        tensors: the error against unrolling by tensor, worst first, each relative to that tensor's own gradient.
        tolerance: what `ok` asks for.
        directions: number of random directions.
        adjoint: the layer's adjoint.
        solver: the layer's solver.
        report: how the layer's own solve went, in double precision, with its backward solve.
        reference_report: how the unrolled solve went.
        coupled: which samples depend on others' states, `(B,)` bool; none may.
    """

    unrolled: float
    finite_difference: float
    reference: float
    tensors: dict[str, float]
    tolerance: float
    directions: int
    adjoint: Adjoint
    solver: Solver
    report: Report
    reference_report: Report = field(repr=False)
    coupled: Tensor = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether samples are independent and the gradient agrees with both forms of a reference to the tolerance."""
        agrees = self.unrolled <= self.tolerance and self.finite_difference <= self.tolerance
        return self.has_reference and agrees and not bool(self.coupled.any())

    @property
    def has_reference(self) -> bool:
        """Whether unrolling came to a fixed point near the layer's answer."""
        reference = self.reference_report
        return not bool(((reference.status != Status.CONVERGED) & (reference.residual > LOST)).any())

    def __str__(self) -> str:
        """The errors, the tensor that is worst, how the solves went, and what to try when the gradient is off."""
        verdict = "right" if self.ok else "OFF"
        name, worst = next(iter(self.tensors.items()))
        lines = [
            f"Gradient check: {verdict} (relative errors, float64; asked for {self.tolerance:.0e})",
            f"  layer against unrolling             {self.unrolled:.1e}   worst tensor {name}: {worst:.1e}",
            f"  layer against finite differences    {self.finite_difference:.1e}   {self.directions} directions",
            f"  unrolling against the differences   {self.reference:.1e}   what the references are good for",
            f"  {self.adjoint}, {self.solver}",
            f"  {self.report}",
        ]
        return "\n".join(lines + [f"  Try: {text}" for text in advice(self)])


def check_gradient(
    layer: DEQ, x: Any, *args: Any, directions: int = 4, tolerance: float = 1e-2, seed: int = 0
) -> GradientCheck:
    r"""Compares a layer's gradient with what it should be.

    For $\ell(a) = \langle w, z^*(a) \rangle$ with random $w$, where $a$ stands for all parameters and floating inputs:

    1. $\nabla \ell$ as the layer computes it, with its own solver, adjoint and tolerances;
    2. $\nabla \ell$ by unrolling a solver from close to the solution until it is converged to rounding;
    3. $(\ell(a + h d) - \ell(a - h d)) / 2h$ along random directions $d$, both solved to rounding.

    The second sees each tensor's error; the third shares no derivative with the layer, so that it also sees a cell that
    cuts its own graph. Everything runs in float64 on a copy: the layer, its report and its buffers stay as they are.
    Costs many solves, and the memory of hundreds of unrolled steps: give it a few samples, not a training batch.

    Args:
        layer: the layer.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.
        directions: random directions for finite differences, >= 1.
        tolerance: relative error up to which the gradient counts as right. The default finds what is wrong, not what is
            loose: at the default tolerances of the solves a right gradient has an error of about 1e-4.
        seed: of $w$, the directions and random numbers in the cell.

    Returns:
        A `GradientCheck`; print it to read what to try.

    Raises:
        TypeError: `layer` is no `DEQ`, or its cell returns float32 for float64 inputs and parameters.
        ValueError: an impossible option, an empty batch, no tensor to differentiate by, or a cell that returns another
            shape than the state's.

    Examples:
        >>> import torch
        >>> from torchimplicit import Phantom, diagnose, nn
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x)
        >>> diagnose.check_gradient(layer, torch.ones(2, 3)).ok
        True
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x, adjoint=Phantom())
        >>> diagnose.check_gradient(layer, torch.ones(2, 3)).ok
        False
    """
    layer = require_layer(layer, "check_gradient")
    if not isinstance(directions, int) or directions < 1:
        raise ValueError(f"check_gradient(directions={directions!r}): expected an integer >= 1")
    if not tolerance > 0:
        raise ValueError(f"check_gradient(tolerance={tolerance!r}): expected a number > 0")
    with untouched(layer, (x, *args), seed), torch.enable_grad():
        layer, x, args = _widened(layer, x, args)
        bench = _Bench(layer, x, args, seed)
        own, value, report = bench.own_gradient()
        with linearised(layer, value, x, args) as (jacobian, z):
            coupled = mixes(jacobian.rmatvec, z)
        bench.refine(value)
        unrolled, reference_report = bench.unrolled_gradient()
        slopes, differences = bench.differences(directions)
    along_own, along_unrolled = ([_dot(gradient, d) for d in slopes] for gradient in (own, unrolled))
    by_tensor = {name: relative_error([own[name]], [unrolled[name]]) for name in own}
    return GradientCheck(
        unrolled=relative_error(list(own.values()), list(unrolled.values())),
        finite_difference=relative_error([torch.stack(along_own)], [differences]),
        reference=relative_error([torch.stack(along_unrolled)], [differences]),
        tensors=dict(sorted(by_tensor.items(), key=lambda item: -item[1])),
        tolerance=tolerance,
        directions=directions,
        adjoint=layer.adjoint,
        solver=layer.solver,
        report=report,
        reference_report=reference_report,
        coupled=coupled,
    )


class _Bench:
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
            self.z0 = pytree.tree_map(_wide, layer._start(x, args))
        self.layout = Layout(self.z0)
        self.weights = self.noise((self.layout.batch, self.layout.width), self.layout.device)
        self.solver: Solver = Picard()
        self.solution = self.z0

    def noise(self, shape: Any, device: torch.device) -> Tensor:
        """Standard normal numbers, the same on every device."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(device)

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


def _widened(layer: DEQ, x: Any, args: tuple) -> tuple[DEQ, Any, tuple]:
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


def _dot(gradient: dict[str, Tensor], direction: dict[str, Tensor]) -> Tensor:
    """Directional derivative, `()`."""
    products = [(gradient[name].conj() * direction[name]).sum().real for name in gradient]
    return torch.stack([product.to(products[0].device) for product in products]).sum()
