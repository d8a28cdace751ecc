r"""What follows of $A$ and $A^H$, whoever has them: the Gram operator, systems with it, the largest singular value."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.adjoint import Implicit
from torchimplicit.core import ConvergenceError, ConvergenceWarning, OnFailure, Solution, transforms
from torchimplicit.core.problem import FixedPoint
from torchimplicit.core.public import public
from torchimplicit.core.tree import Layout, norm
from torchimplicit.equations import solve_problem
from torchimplicit.linear import CG, eigenvalue_range, probe
from torchimplicit.linear.solver import LinearResult, Product
from torchimplicit.point import Options
from torchimplicit.solve import Newton, Result


def is_operator(value: Any) -> bool:
    """Whether something has `A` and `A_adjoint`."""
    return callable(getattr(value, "A", None)) and callable(getattr(value, "A_adjoint", None))


def added(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return reduce(add, tensors)


def gram(operator: Any, x: Tensor) -> Tensor:
    """$A^H A x$, by the operator's own way where it has one."""
    own = getattr(operator, "gram", None)
    return operator.A_adjoint(operator.A(x)) if own is None else own(x)


def plain_like(owner: Any, operator: Any, like: Tensor) -> Tensor:
    """Images to ask an operator for a constant with, of which the shape counts: none that a transform has wrapped.

    Args:
        owner: who asks.
        operator: what is asked.
        like: images, `(B, ...)`.

    Raises:
        NotImplementedError: the operator is mapped by `torch.vmap`: its constants would be, too.
    """
    if not transforms.active():
        return like
    parts = [*operator.parameters(), *operator.buffers()] if isinstance(operator, nn.Module) else []
    if any(map(transforms.hides_batch, parts)):
        raise NotImplementedError(
            f"{owner}: got a {type(operator).__name__} that torch.vmap maps, expected one for all; try maps, kernels "
            "or masks of the samples' own, the batch in dimension 0"
        )
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


@public
@transforms.outside_inference_mode
def normal_equations(
    operator: Any,
    b: Tensor,
    shift: float | Tensor,
    weight: float | Tensor,
    solver: CG,
    on_failure: OnFailure,
) -> Solution:
    r"""$x$ with $(\sigma I + \tau A^H A) x = b$, differentiable in all of it; with $\sigma = 0$ the smallest one.

    It is the fixed point of $x \mapsto x - c (\sigma x + \tau A^H A x - b)$, with $c$ such that this is in the units
    of $x$: $|b| / |(\sigma I + \tau A^H A) b|$, sample by sample. Newton's method, its equations solved by conjugate
    gradients, needs one step; a second one mends what rounding has left. The report's steps are those of conjugate
    gradients.

    Args:
        operator: $A$, with `A` and `A_adjoint`.
        b: images, `(B, ...)`.
        shift: $\sigma \ge 0$.
        weight: $\tau > 0$, a number or what broadcasts to the images.
        solver: see `Operator.A_dagger`.
        on_failure: see `Operator.A_dagger`.
    """
    with torch.no_grad():
        image = shift * b + weight * gram(operator, b)
        size, moved = norm_of(b), norm_of(image)
        scale = torch.where(moved > 0, size / moved, 1.0).reshape(-1, *(1,) * (b.dim() - 1))
    counting = _Counting(rtol=solver.rtol, max_steps=solver.max_steps)
    step = Newton(linear_solver=counting, forcing=False, rtol=2 * solver.rtol, atol=0.0, max_steps=4)
    start = torch.zeros_like(b)
    problem = FixedPoint(_update, start, (operator, b, weight, shift, scale))
    return solve_problem(problem, start, Options(step, Implicit(solver), None, on_failure, review=counting.review))


def proximal(operator: Any, z: Tensor, y: Tensor, step: Any, *options: Any, on_failure: OnFailure = "ignore") -> Tensor:
    """`operator.prox` as a part of another solve, which asks `proximal_status` how it went.

    Args:
        operator: with `prox`, of whatever library.
        z: see `Operator.prox`.
        y: see there.
        step: see there.
        *options: the solver, of an `Operator`.
        on_failure: see there; of no use to operators whose `prox` does not take it.
    """
    words = {"on_failure": on_failure} if _says(type(operator)) else {}
    found: Tensor = operator.prox(z, y, step, *options, **words)
    return found


@torch.no_grad()
def proximal_status(operator: Any, *args: Any) -> Tensor | None:
    """How the solve of `proximal` ends, `(B,)`; None where every sample's converges, or there is none."""
    try:
        proximal(operator, *args, on_failure="raise")
    except ConvergenceError as error:
        return error.report.status
    return None


@cache
def _says(kind: type) -> bool:
    """Whether a kind of operators takes `on_failure`."""
    prox = getattr(kind, "prox", None)
    return prox is not None and "on_failure" in inspect.signature(prox).parameters


@dataclass(frozen=True, kw_only=True)
class _Counting(CG):
    """Conjugate gradients that note their steps, `(B,)` of every run."""

    taken: list[Tensor] = field(default_factory=list)

    def run(self, product: Product, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """See `CG`."""
        result = super().run(product, b, rtol)
        self.taken.append(result.report.steps)
        return result

    def review(self, residual: Any, result: Result) -> None:
        """Puts them in the place of Newton's steps, of each of which there was one run."""
        report = result.report
        runs = torch.stack([torch.zeros_like(report.steps), *self.taken]).cumsum(0)
        report.steps = runs.gather(0, report.steps.clamp_max(len(runs) - 1).unsqueeze(0)).squeeze(0)
        self.taken.clear()  # a call that quarantines samples solves again


def _update(x: Tensor, operator: Any, b: Tensor, weight: float | Tensor, shift: float, scale: Tensor) -> Tensor:
    return x - scale * (shift * x + weight * gram(operator, x) - b)


def norm_of(x: Tensor) -> Tensor:
    """The Euclidean norm of every sample, `(B,)`."""
    return norm(Layout(x).flatten(x))


@torch.no_grad()
def largest_singular_value(operator: Any, like: Tensor, rtol: float, max_steps: int) -> Tensor:
    """See `Operator.norm`: Lanczos steps, twice as many again until the bound of the error is small enough.

    Args:
        operator: $A$.
        like: images, `(B, ...)`.
        rtol: see `Operator.norm`.
        max_steps: see `Operator.norm`.
    """
    if not like.is_complex() and gram(operator, like).is_complex():  # of real images a part would be cut off
        like = like.to(like.dtype.to_complex())
    layout = Layout(like)
    start = probe(layout.flatten(like))
    limit, steps = min(max_steps, layout.width), 8

    def product(rows: Tensor) -> Tensor:
        return layout.flatten(gram(operator, layout.unflatten(rows)))

    while True:
        steps = min(2 * steps, limit)
        found = eigenvalue_range(product, start, steps)
        loose = found.play > rtol * found.highest
        if steps == limit or not bool(loose.any()):
            break
    if steps < layout.width and bool(loose.any()):
        off = float((found.play / found.highest.clamp_min(torch.finfo(found.play.dtype).tiny)).amax()) / 2
        warnings.warn(
            f"{type(operator).__name__}.norm: known to {off:.1e} of itself after {steps} steps, asked for "
            f"{rtol / 2:.1e}; try a larger max_steps or rtol",
            ConvergenceWarning,
            stacklevel=3,
        )
    return found.highest.clamp_min(0).sqrt()
