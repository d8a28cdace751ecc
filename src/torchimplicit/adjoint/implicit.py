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

from torchimplicit.adjoint.call import Adjoint, PointCall
from torchimplicit.adjoint.gate import said, watched
from torchimplicit.adjoint.products import fold, jvp, vjp
from torchimplicit.adjoint.quarantine import finite_gradients
from torchimplicit.adjoint.system import System, operator
from torchimplicit.core import transforms
from torchimplicit.core.options import require
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

    def solve(self, call: PointCall, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.solve`."""
        return ImplicitSolve.apply(call, self.linear_solver, z0.detach(), *tensors)


class ImplicitSolve(transforms.ForwardOnce):
    """The point `z(tensors)` at which the call's residual vanishes."""

    @staticmethod
    def forward(call: PointCall, linear_solver: LinearSolver, z0: Tensor, *tensors: Tensor) -> Tensor:
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
        z, *tensors = transforms.saved(ctx)
        needs = ctx.needs_input_grad[3:]
        differentiable = torch.is_grad_enabled() or transforms.level(grad) >= 0
        order = _any_order if differentiable else _first_order

        def gradients(call: PointCall, grad: Tensor, z: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
            return order(call, ctx.linear_solver, grad, z, tensors, needs)

        found = gradients(ctx.call, grad, z, tensors)
        if not transforms.active():
            found = finite_gradients(ctx.call, z, tensors, grad, gradients, found)
        return None, None, None, *found

    @staticmethod
    def jvp(ctx: Any, _call: None, _linear_solver: None, _z0: Any, *tangents: Tensor | None) -> Tensor:
        """`-B^{-1} (dr/da) da`."""
        z, *tensors = transforms.saved(ctx)
        b = jvp(lambda *all_: _residual(ctx.call, z, all_), tensors, tangents)
        return LinearSolve.apply(ctx.call, ctx.linear_solver, False, -b, z, *tensors)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, call: PointCall, linear_solver: LinearSolver, z0: Tensor, *tensors: Tensor
    ) -> tuple:
        """The mapped dimension joins the batch."""
        _, _, z0_dim, *dims = in_dims
        z0 = fold(z0, z0_dim, info.batch_size)
        z = ImplicitSolve.apply(call.mapped(info.batch_size, dims), linear_solver, z0, *tensors)
        return z.unflatten(0, (info.batch_size, -1)), 0


class LinearSolve(Function):
    """`B^{-1} b`, or `B^{-T} b`, with `B` the Jacobian of the residual at `(z, tensors)`."""

    @staticmethod
    def forward(
        call: PointCall, linear_solver: LinearSolver, transpose: bool, b: Tensor, z: Tensor, *tensors: Tensor
    ) -> Tensor:
        """Linearises once and solves, matrix-free."""
        with call.problem.bind(call.unshared(tensors)) as residual:
            jacobian = Jacobian(residual, z)
            system = System.solve(call, linear_solver, jacobian, b, transpose)
            product = jacobian.rmatvec if transpose else jacobian.matvec
            solution = system.solution
            system.finish(product(solution), lambda: product)
        return solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the solution and what the operator depends on."""
        ctx.call, ctx.linear_solver, ctx.transpose, _, z, *tensors = inputs
        ctx.save_for_backward(output, z, *tensors)
        ctx.save_for_forward(output, z, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A solve with the transpose, and the derivative of `B u` by what `B` depends on."""
        u, *inputs = transforms.saved(ctx)
        w = LinearSolve.apply(ctx.call, ctx.linear_solver, not ctx.transpose, grad, *inputs)
        needs = ctx.needs_input_grad[4:]
        return None, None, None, w, *vjp(_product(ctx.call, ctx.transpose, u), inputs, needs, -w)

    @staticmethod
    def jvp(
        ctx: Any, _call: None, _linear_solver: None, _transpose: None, b: Tensor | None, *tangents: Tensor | None
    ) -> Tensor:
        """`B^{-1} (db - dB u)`."""
        u, *inputs = transforms.saved(ctx)
        right = -jvp(_product(ctx.call, ctx.transpose, u), inputs, tangents)
        right = right if b is None else right + b
        return LinearSolve.apply(ctx.call, ctx.linear_solver, ctx.transpose, right, *inputs)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        call: PointCall,
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
        return u.unflatten(0, (info.batch_size, -1)), 0


def _any_order(
    call: PointCall, linear_solver: LinearSolver, grad: Tensor, z: Tensor, tensors: list[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the tensors, themselves differentiable; what is not finite of their derivatives is said."""
    tensors = tensors if transforms.active() else watched(tensors, said)
    u: Tensor = LinearSolve.apply(call, linear_solver, True, grad, z, *tensors)
    return vjp(lambda *all_: _residual(call, z, all_), tensors, needs, -u)


def _first_order(
    call: PointCall, linear_solver: LinearSolver, grad: Tensor, z: Tensor, tensors: list[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The lean path of a plain backward pass: one evaluation, whose graph serves every product and the final one.

    The final product is taken by the state, too, which tells the true residual of the linear solve.
    """
    leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(call.unshared(tensors), needs, strict=True)]
    with call.problem.bind(leaves) as residual:
        jacobian = Jacobian(residual, z)
        system = System.solve(call, linear_solver, jacobian, grad, transpose=True)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    product, *found = [None] * (1 + len(wanted))
    if jacobian.value.requires_grad:
        inputs = [jacobian.z, *wanted]
        product, *found = torch.autograd.grad(jacobian.value, inputs, -system.solution, allow_unused=True)
    system.finish(product, lambda: operator(call, z, tensors, transpose=True), sign=-1)
    grads = iter(found)
    return [next(grads) if need else None for need in needs]


def _residual(call: PointCall, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    with call.problem.bind(call.unshared(tensors)) as residual:
        return residual(z)


def _product(call: PointCall, transpose: bool, u: Tensor) -> Callable[..., Tensor]:
    """`(z, *tensors) -> B u` or `B^T u`; `B u` by the double-vjp trick, for forward mode does not nest."""

    def product(z: Tensor, *tensors: Tensor) -> Tensor:
        _, back, *_ = torch.func.vjp(lambda z: _residual(call, z, tensors), z)
        if transpose:
            return back(u)[0]
        return torch.func.vjp(lambda v: back(v)[0], torch.zeros_like(u))[1](u)[0]

    return product
