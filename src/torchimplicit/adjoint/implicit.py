r"""Differentiation through the implicit function theorem: exact, at every order, in memory that no solver step adds to.

Where $r(z^*(a), a) = 0$ and $B = \partial r / \partial z$ is regular, $\dot z^* = -B^{-1} (\partial r / \partial a)
\dot a$. Two autograd functions with explicit tensors close under this: `ImplicitSolve`, the point, whose derivatives
are linear solves; and `LinearSolve`, $B^{-1} b$ or $B^{-\top} b$, whose derivatives are linear solves again. Reverse
and forward mode, `torch.func` transforms, `vmap` and every higher order follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vjp

from torchimplicit.adjoint.call import Adjoint, Call
from torchimplicit.adjoint.products import fold, pull, push
from torchimplicit.core import transforms
from torchimplicit.core.options import require
from torchimplicit.core.status import Status
from torchimplicit.linear import CG, GMRES, Jacobian, LinearSolver


@dataclass(frozen=True)
class Implicit(Adjoint):
    r"""The implicit function theorem: the default, exact up to the two solves' tolerances.

    Backward solves $B^\top u = g$ for the incoming gradient $g$ (one evaluation of the function and one vector-Jacobian
    product per linear step) and returns $-(\partial r/\partial a)^\top u$. Nothing of the forward solve is kept but the
    solution. A gradient is only as good as the solution: with an unconverged forward solve it belongs to another point.

    Args:
        linear_solver: solves with the Jacobian of the residual; its report is `solution.backward`. `LU()` for small
            states; a tighter `GMRES(rtol=...)` for second derivatives or gradient checks; `Neumann(terms=...)` for a
            cheaper, biased gradient.
        precondition: let the linear solver start from the inverse that a quasi-Newton forward solver (`Broyden`) has
            learnt: fewer products where a few directions contract slowly, more elsewhere, for `2 * memory` states kept
            until the backward pass. Not with `CG`.
    """

    linear_solver: LinearSolver = GMRES()
    precondition: bool = False

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "precondition", isinstance(self.precondition, bool), "True or False")
        if not isinstance(self.linear_solver, LinearSolver):
            raise TypeError(
                f"Implicit(linear_solver=...): got a {type(self.linear_solver).__name__}, expected a LinearSolver "
                "such as GMRES() or LU()"
            )
        if self.precondition and isinstance(self.linear_solver, CG):
            raise ValueError(
                "Implicit(CG(), precondition=True): the inverse that a solver has learnt is not symmetric, as CG needs "
                "it; try GMRES()"
            )

    @property
    def wants_inverse(self) -> bool:
        """See `Adjoint.wants_inverse`."""
        return self.precondition

    def solve(self, call: Call, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.solve`."""
        return ImplicitSolve.apply(call, self.linear_solver, z0.detach(), *tensors)  # type: ignore[return-value]


class ImplicitSolve(Function):
    """The point `z(tensors)` at which the call's residual vanishes."""

    @staticmethod
    def forward(call: Call, linear_solver: LinearSolver, z0: Tensor, *tensors: Tensor) -> Tensor:
        """Runs the solver; nothing of it is recorded."""
        return call.forward(z0, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the solution and the explicit tensors, nothing else."""
        call, ctx.linear_solver, _, *tensors = inputs
        ctx.call = call.solved()
        tensors = ctx.call.unshared(tensors)
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """`-(dr/da)^T B^{-T} grad` for every tensor `a` that needs it."""
        if transforms.is_mapped_by_autograd(grad):
            raise NotImplementedError(
                "is_grads_batched=True (and jacobian(vectorize=True)) cannot reach into an implicit layer; "
                "try torch.func.jacrev, or torch.vmap over torch.autograd.grad"
            )
        z, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or transforms.level(grad) >= 0:
            u = LinearSolve.apply(ctx.call, ctx.linear_solver, True, grad, z, *tensors)
            return None, None, None, *pull(lambda *all_: _residual(ctx.call, z, all_), tensors, needs, -u)  # type: ignore[operator]
        return None, None, None, *_first_order(ctx.call, ctx.linear_solver, grad, z, tensors, needs)

    @staticmethod
    def jvp(ctx: Any, _call: None, _linear_solver: None, _z0: Any, *tangents: Tensor | None) -> Tensor:
        """`-B^{-1} (dr/da) da`."""
        z, *tensors = ctx.saved_tensors
        b = push(lambda *all_: _residual(ctx.call, z, all_), tensors, tangents)
        return LinearSolve.apply(ctx.call, ctx.linear_solver, False, -b, z, *tensors)  # type: ignore[return-value]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: Call, linear_solver: LinearSolver, z0: Tensor, *tensors: Tensor) -> tuple:
        """The mapped dimension joins the batch."""
        _, _, z0_dim, *dims = in_dims
        z0 = fold(z0, z0_dim, info.batch_size)
        z = ImplicitSolve.apply(call.mapped(info.batch_size, dims), linear_solver, z0, *tensors)
        return z.unflatten(0, (info.batch_size, -1)), 0  # type: ignore[union-attr]


class LinearSolve(Function):
    """`B^{-1} b`, or `B^{-T} b`, with `B` the Jacobian of the residual at `(z, tensors)`."""

    @staticmethod
    def forward(
        call: Call, linear_solver: LinearSolver, transpose: bool, b: Tensor, z: Tensor, *tensors: Tensor
    ) -> Tensor:
        """Linearises once and solves, matrix-free."""
        with call.problem.bind(call.unshared(tensors)) as residual:
            return _linear_solve(call, linear_solver, Jacobian(residual, z), b, transpose)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the solution and what the operator depends on."""
        ctx.call, ctx.linear_solver, ctx.transpose, _, z, *tensors = inputs
        ctx.save_for_backward(output, z, *tensors)
        ctx.save_for_forward(output, z, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A solve with the transpose, and the derivative of `B u` by what `B` depends on."""
        u, *inputs = ctx.saved_tensors
        w = LinearSolve.apply(ctx.call, ctx.linear_solver, not ctx.transpose, grad, *inputs)
        needs = ctx.needs_input_grad[4:]
        return None, None, None, w, *pull(_product(ctx.call, ctx.transpose, u), inputs, needs, -w)  # type: ignore[operator,return-value]

    @staticmethod
    def jvp(
        ctx: Any, _call: None, _linear_solver: None, _transpose: None, b: Tensor | None, *tangents: Tensor | None
    ) -> Tensor:
        """`B^{-1} (db - dB u)`."""
        u, *inputs = ctx.saved_tensors
        right = -push(_product(ctx.call, ctx.transpose, u), inputs, tangents)
        right = right if b is None else right + b
        return LinearSolve.apply(ctx.call, ctx.linear_solver, ctx.transpose, right, *inputs)  # type: ignore[return-value]

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        call: Call,
        linear_solver: LinearSolver,
        transpose: bool,
        b: Tensor,
        z: Tensor,
        *tensors: Tensor,
    ) -> tuple:
        """The mapped dimension joins the batch."""
        _, _, _, b_dim, z_dim, *dims = in_dims
        b, z = fold(b, b_dim, info.batch_size), fold(z, z_dim, info.batch_size)
        u = LinearSolve.apply(call.mapped(info.batch_size, dims), linear_solver, transpose, b, z, *tensors)
        return u.unflatten(0, (info.batch_size, -1)), 0  # type: ignore[union-attr]


def _first_order(
    call: Call, linear_solver: LinearSolver, grad: Tensor, z: Tensor, tensors: list[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The lean path of a plain backward pass: one evaluation, whose graph serves every product and the final one."""
    leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(call.unshared(tensors), needs, strict=True)]
    with call.problem.bind(leaves) as residual:
        jacobian = Jacobian(residual, z)
        # Again, for what the function uses only away from where the solver started.
        call.problem.check_captures(jacobian.value, [*leaves, jacobian.z])
        u = _linear_solve(call, linear_solver, jacobian, grad, transpose=True)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = iter(torch.autograd.grad(jacobian.value, wanted, -u, allow_unused=True) if wanted else ())
    return [next(grads) if need else None for need in needs]


def _linear_solve(call: Call, linear_solver: LinearSolver, jacobian: Jacobian, b: Tensor, transpose: bool) -> Tensor:
    # Gradients may be so small or so large that their squares are zero or infinite in float32.
    scale = b.abs().amax(1).clamp_min(torch.finfo(b.dtype).tiny)
    b = b / scale.unsqueeze(1)
    prepared = linear_solver.prepare(jacobian, call.inverse(len(b)))
    x, report = prepared.solve_transpose(b) if transpose else prepared.solve(b)
    x, report.residual = x * scale.unsqueeze(1), report.residual * scale
    call.finish_backward(report)
    broken = report.status == Status.NON_FINITE
    return torch.where(broken.unsqueeze(1), 0, x) if bool(broken.any()) else x


def _residual(call: Call, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    with call.problem.bind(call.unshared(tensors)) as residual:
        return residual(z)


def _product(call: Call, transpose: bool, u: Tensor) -> Callable[..., Tensor]:
    """`(z, *tensors) -> B u` or `B^T u`; `B u` by the double-vjp trick, for forward mode does not nest."""

    def product(z: Tensor, *tensors: Tensor) -> Tensor:
        _, back, *_ = vjp(lambda z: _residual(call, z, tensors), z)
        if transpose:
            return back(u)[0]
        return vjp(lambda v: back(v)[0], torch.zeros_like(u))[1](u)[0]

    return product
