"""One call of a front door: what to solve, how, and how it went. Adjoints turn it into a differentiable value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.problem import Mapped, Problem, Residual
from torchimplicit.core.status import OnFailure, Report, react


@dataclass
class Record:
    """How the solves of one call went; outlives the call, so it holds no state and no graph."""

    report: Report | None = None
    mutated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Call:
    """A problem and the solver to run on it.

    Attributes:
        problem: the condition; `Mapped` inside `torch.vmap`.
        run: `(residual, z) -> result` with the fields `z` and `report`: a solver in its loop.
        on_failure: what to do about samples that do not converge, also in the backward pass.
        audit: refuse captured tensors.
        record: filled by `forward`, shared by the copies that transforms make.
    """

    problem: Problem | Mapped
    run: Callable[[Residual, Tensor], Any]
    on_failure: OnFailure
    audit: bool
    record: Record

    def forward(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Runs the solver from `z` and records how it went. Returns the solution, `(B, n)`, never `z` itself."""
        versions = [transforms.version(tensor) for tensor in tensors]
        with self.problem.bind(list(tensors), audit=self.audit, keep_buffers=True) as residual:
            result = self.run(residual, z)
        self.record.report = result.report
        # Buffers that the function writes to (running statistics): backward must see them as they are now.
        self.record.mutated = tuple(
            i
            for i, (tensor, version) in enumerate(zip(tensors, versions, strict=True))
            if transforms.version(tensor) != version
        )
        return z.clone() if result.z is z else result.z

    def unshared(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, with copies of those that the function writes to."""
        return [tensor.clone() if i in self.record.mutated else tensor for i, tensor in enumerate(tensors)]

    def finish_backward(self, report: Report) -> None:
        """Records the report of a backward solve and reacts to its failures."""
        report.name = "backward solve"
        if self.record.report is not None:
            self.record.report.backward = report
        react(report, self.on_failure)

    def mapped(self, count: int, dims: Sequence[int | None]) -> Call:
        """The same call with a mapped dimension of size `count` folded into the batch."""
        return replace(self, problem=Mapped(self.problem, count, tuple(dims)))


class Adjoint:
    """Base of the adjoints: how the solution of a call gets its gradient. The value never depends on the choice."""

    def solve(self, call: Call, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """Solves and attaches the gradient.

        Args:
            call: the call.
            z0: start, `(B, n)`.
            tensors: the explicit tensors, with their graphs.

        Returns:
            The solution `(B, n)`, differentiable by `tensors`.
        """
        raise NotImplementedError
