"""One call of a public function, whatever it solves: what it notes on its way, and how its solves went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.status import OnFailure, Report, react


@dataclass
class Record:
    """What one call notes; outlives the call, so it holds no graph.

    Attributes:
        report: of the forward solve.
        mutated: which explicit tensors the function wrote to.
    """

    report: Report | None = None
    mutated: tuple[int, ...] = ()

    def take_backward(self, report: Report) -> None:
        """Notes how a backward solve went."""
        if self.report is not None:
            self.report.backward = report


@dataclass(frozen=True, kw_only=True)
class Call:
    """What an autograd function is handed: how to react to failures, and where to note what its outputs cannot say.

    Attributes:
        on_failure: what to do about samples that fail, also in the backward pass.
        record: filled by the forward solve, shared by the copies that transforms make.
    """

    on_failure: OnFailure
    record: Record = field(default_factory=Record)
    backward_name: ClassVar[str] = "backward solve"

    @contextmanager
    def noting_writes(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Notes which tensors are written to inside: running statistics, which backward must see as they are now."""
        before = [transforms.version(tensor) for tensor in tensors]
        yield
        now = [transforms.version(tensor) for tensor in tensors]
        self.record.mutated = tuple(i for i, (new, old) in enumerate(zip(now, before, strict=True)) if new != old)

    def unshared(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, with copies of those that the function writes to."""
        return [tensor.clone() if i in self.record.mutated else tensor for i, tensor in enumerate(tensors)]

    def finish_backward(self, report: Report) -> None:
        """Notes the report of a backward solve and reacts to its failures."""
        report.name = self.backward_name
        self.record.take_backward(report)
        react(report, self.on_failure)
