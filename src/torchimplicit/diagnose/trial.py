"""Solving a layer's equation again and again, forward and backward, for its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint
from torchimplicit.core import Report, Solution
from torchimplicit.core.problem import FixedPoint
from torchimplicit.core.tree import Layout
from torchimplicit.diagnose.probe import differentiated, linearised, requiring_grad, untouched
from torchimplicit.equations import fixed_point
from torchimplicit.linear import Jacobian
from torchimplicit.nn import DEQ
from torchimplicit.solve import Solver

POWER = 10  # power iterations for the norm of the residual's derivative by all tensors together


class Answer(NamedTuple):
    """What one forward solve and its backward pass gave.

    Attributes:
        value: the state.
        z: the same, `(B, n)`.
        u: the gradient by an offset of the cell's output, `(B, n)`.
        gradient: by every tensor of the trial.
        report: of the forward solve, with the backward one.
    """

    value: Any
    z: Tensor
    u: Tensor
    gradient: list[Tensor]
    report: Report


class Trial:
    """A layer and an input, the tensors to differentiate by, and a cotangent `g` `(B, n)`.

    Args:
        layer: the layer.
        x: its input.
        args: further arguments of the cell.
        cotangent: like the layer's output; None draws normal numbers.
        seed: of the cotangent, the noise and random numbers in the cell.
    """

    def __init__(self, layer: DEQ, x: Any, args: tuple, cotangent: Any, seed: int):
        """Finds the start, solves nothing."""
        self.layer, self.seed = layer, seed
        self.x, self.args = pytree.tree_map(requiring_grad, (x, args))
        self.tensors = list(differentiated(layer, self.x, self.args).values())
        with self.repeatable(), torch.no_grad():
            self.z0 = pytree.tree_map(torch.detach, layer.initial_state(self.x, *self.args))
        self.layout = Layout(self.z0)
        self.generator = torch.Generator().manual_seed(seed)
        if cotangent is None:
            self.g = self.noise()
        else:
            self.layout.check(cotangent, subject="certify(cotangent=...) has")
            self.g = self.layout.flatten(pytree.tree_map(torch.detach, cotangent))

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """The same random numbers and the same buffers for every solve: one function of the tensors."""
        with untouched(self.layer, (self.x, *self.args), self.seed):
            yield

    def noise(self) -> Tensor:
        """Standard normal numbers `(B, n)`, the same on every device."""
        layout = self.layout
        noise = torch.randn(layout.batch, layout.width, generator=self.generator, dtype=torch.float64, device="cpu")
        return noise.to(layout.device, layout.dtype)

    def solve(self, start: Any, solver: Solver, adjoint: Adjoint) -> Answer:
        """A forward solve and its backward pass.

        An offset of zero, added to what the cell returns, enters the residual with the derivative `-I`: its gradient is
        the solution of the backward solve, whatever adjoint there is.
        """
        shift = pytree.tree_map(lambda leaf: torch.zeros_like(leaf, requires_grad=True), self.z0)
        shifts, spec = pytree.tree_flatten(shift)
        cell = partial(_shifted, self.layout, self.layer.cell, **_owners(self.layer.cell))
        with self.repeatable(), torch.enable_grad():
            solution = fixed_point(
                cell, start, shift, self.x, *self.args, solver=solver, adjoint=adjoint, on_failure="ignore"
            )
            gradient = torch.autograd.grad(
                pytree.tree_leaves(solution.value),
                [*shifts, *self.tensors],
                pytree.tree_leaves(self.layout.unflatten(self.g)),
                materialize_grads=True,
            )
        value = pytree.tree_map(torch.detach, solution.value)
        u = self.layout.flatten(pytree.tree_unflatten(gradient[: len(shifts)], spec))
        return Answer(value, self.layout.flatten(value), u, list(gradient[len(shifts) :]) or [u], solution.report)

    def prove(self, answer: Answer) -> Answer:
        """The answer, with what the layer proves of it, a duality gap and a distance, in its report."""
        proof = getattr(self.layer, "proof", None)
        with self.repeatable():
            proved = None if proof is None else proof(answer.value, self.x, *self.args)
        if proved is not None:
            answer.report.gap, answer.report.bound = proved
        return answer

    @torch.no_grad()
    def solve_from(self, z: Tensor) -> Solution:
        """The layer's own forward solve from another start `(B, n)`."""
        with self.repeatable():
            start, solver = self.layout.unflatten(z), self.layer.solver
            return fixed_point(self.layer.cell, start, self.x, *self.args, solver=solver, on_failure="ignore")

    def jacobian(self, value: Any) -> Jacobian:
        """Of the residual at a state; its value is the residual there."""
        with self.repeatable(), linearised(self.layer, value, self.x, self.args) as (jacobian, _):
            return jacobian

    def sensitivity(self, value: Any, u: Tensor) -> tuple[list[Tensor], float]:
        r"""How the residual at a state depends on the tensors $a$, for the whole batch.

        Returns:
            $-(\partial_a r)^\top u$, for `u` `(B, n)`; and $\|\partial_a r\|$, by power iteration, so from below.
        """
        with self.repeatable(), torch.enable_grad():
            problem = FixedPoint(self.layer.cell, value, (self.x, *self.args), begins=False)
            with problem.bind(problem.explicit.take_tensors()) as residual:
                r = residual(self.layout.flatten(value))
            if not r.requires_grad:
                return [torch.zeros_like(tensor) for tensor in self.tensors], 0.0
            dummy = torch.zeros_like(r, requires_grad=True)
            linear = torch.autograd.grad(r, self.tensors, dummy, create_graph=True, materialize_grads=True)
            moving = [i for i, product in enumerate(linear) if product.requires_grad]
            v = self.noise()
            square = v.new_zeros(())
            for _ in range(POWER if moving else 0):
                v = v / torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
                pulled = torch.autograd.grad(r, self.tensors, v, retain_graph=True, materialize_grads=True)
                outputs, along = [linear[i] for i in moving], [pulled[i] for i in moving]
                (v,) = torch.autograd.grad(outputs, dummy, along, retain_graph=True)
                square = torch.linalg.vector_norm(v)
            pulled = torch.autograd.grad(r, self.tensors, -u, materialize_grads=True)
        return list(pulled), float(square) ** 0.5


def _shifted(layout: Layout, cell: Any, z: Any, shift: Any, *args: Any, **_owners: Any) -> Any:
    """The cell's value and an offset; a value that is not like the state is refused before it is added to one."""
    value = cell(z, *args)
    layout.check(value, cast=True)
    return pytree.tree_map(torch.add, value, shift)


def _owners(cell: Any) -> dict[str, Any]:
    """The modules behind a bound method or a partial, so that their tensors stay explicit; any keywords do."""
    found: list[Any] = []
    while isinstance(cell, partial):
        found += [*cell.args, *cell.keywords.values(), cell.func]
        cell = cell.func
    found.append(getattr(cell, "__self__", None))
    return {f"owner{i}": owner for i, owner in enumerate(found) if isinstance(owner, torch.nn.Module)}
