"""One call that solves for a point: what, how, and how it went. Adjoints turn it into a differentiable value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.call import Call, Record
from torchimplicit.core.independence import FEW, coupled, halves, not_samples
from torchimplicit.core.mapped import Mapped
from torchimplicit.core.migration import Explained
from torchimplicit.core.problem import Problem, Residual
from torchimplicit.linear import LowRank


@dataclass
class PointRecord(Record):
    """How the solves of one call went.

    Attributes:
        result: of the forward solve, until the public function takes it.
        inverse: the solver's approximation of the inverse Jacobian, if the adjoint wants it.
        problem: whose inverse that is.
    """

    result: Any = None
    inverse: LowRank | None = None
    problem: Problem | Mapped | None = None

    def take_result(self) -> Any:
        """The forward solve's result; can be taken once, so that its tensors are not kept alive here."""
        result, self.result = self.result, None
        return result


class Lent(transforms.ForwardOnce):
    """A value with the gradient of another; their difference, added, would be NaN where that is infinite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, lender: Tensor) -> Tensor:
        """The value."""
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """All to the lender."""
        return None, grad

    @staticmethod
    def jvp(ctx: Any, _value: None, tangent: Tensor) -> Tensor:
        """The lender's."""
        return tangent.clone()


def _spent(residual: Residual, z: Tensor) -> Any:
    raise RuntimeError("a call is solved once")


@dataclass(frozen=True)
class PointCall(Call):
    """A problem and the solver to run on it.

    Attributes:
        problem: the condition; `Mapped` inside `torch.vmap`.
        run: `(residual, z) -> result` with the fields `z`, `report`, `knowledge`: a solver in its loop.
        audit: refuse captured tensors.
        keep_inverse: note what the solver knows of the inverse Jacobian.
        detach: solve with tensors that require no gradient: a kernel would be compiled once for those that do and once
            for those that do not.
    """

    problem: Problem | Mapped
    run: Callable[[Residual, Tensor], Any]
    audit: bool
    keep_inverse: bool = False
    detach: bool = False
    record: PointRecord = field(default_factory=PointRecord, kw_only=True)

    def forward(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Runs the solver from `z` and records how it went. Returns the solution, `(B, n)`, never `z` itself."""
        given = [tensor.detach() for tensor in tensors] if self.detach else list(tensors)
        bound = self.problem.bind(given, audit=self.audit, keep_buffers=True)
        with self.noting_writes(tensors), bound as residual:
            result = self.run(residual, z)
            self.check_samples(residual, result)
        self.record.report, self.record.result = result.report, result
        if self.keep_inverse and result.knowledge is not None:
            self.record.inverse, self.record.problem = result.knowledge.inverse(), self.problem
        return z.clone() if result.z is z else result.z

    def check_samples(self, residual: Residual, result: Any) -> None:
        """Refuses a state `(B,)` whose entries depend on each other: one sample's features, taken for samples.

        Raises:
            ValueError: a change of some entries changes the residual of others.
        """
        if self.problem.scalars < 2:
            return
        with torch.no_grad():
            found = coupled(residual, result.z.detach(), self.problem.eps, halves(len(result.z), result.z.device, FEW))
        result.report.nfev = residual.nfev
        if found is not None:
            raise ValueError(not_samples(self.problem.scalars, "z0[None] and x[None]", "batch_dims=0"))

    def phantom(self, z: Tensor, tensors: Sequence[Tensor], steps: int = 1, damping: float = 1.0) -> Tensor:
        """A point `(B, n)` with the gradient of a few damped steps from it; its value stays."""
        z = z.detach()
        return Lent.apply(z, self.moved(z, tensors, steps, damping))

    def moved(self, z: Tensor, tensors: Sequence[Tensor], steps: int, damping: float) -> Tensor:
        """Where a few damped steps lead from a point, `(B, n)`."""
        with self.problem.bind(self.unshared(tensors)) as residual:
            for _ in range(steps):
                z = torch.sub(z, residual(z), alpha=damping)
        return z

    def inverse(self, batch: int) -> LowRank | None:
        """The approximation of the inverse for `batch` samples; None without one, or where rows cannot be matched."""
        inverse, problem = self.record.inverse, self.problem
        if inverse is None or batch == len(inverse.u):
            return inverse
        # Maps around the problem of the forward solve repeat its batch; any others put rows between its rows.
        while problem is not self.record.problem and isinstance(problem, Mapped):
            problem = problem.problem
        return inverse.repeated(batch) if problem is self.record.problem else None

    def solved(self) -> PointCall:
        """The same call without the solver, and so without what that knew from an earlier solve."""
        return replace(self, run=_spent)

    def mapped(self, count: int, dims: Sequence[int | None]) -> PointCall:
        """The same call with a mapped dimension of size `count` folded into the batch."""
        return replace(self, problem=Mapped(self.problem, count, tuple(dims)))


class Adjoint(Explained):
    """Base of the adjoints: how the solution of a call gets its gradient. The value never depends on the choice."""

    @property
    def wants_inverse(self) -> bool:
        """Whether it uses what a quasi-Newton solver knows of the inverse Jacobian."""
        return False

    def solve(self, call: PointCall, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """Solves and attaches the gradient.

        Args:
            call: the call.
            z0: start, `(B, n)`.
            tensors: the explicit tensors, with their graphs.

        Returns:
            The solution `(B, n)`, differentiable by `tensors`.
        """
        raise NotImplementedError

    def attach(self, call: PointCall, z: Tensor, tensors: list[Tensor]) -> Tensor:
        """Gives an iterate on the way `(B, n)` a gradient: that of one step from it (a phantom gradient)."""
        return call.phantom(z, tensors)
