"""The base of the layers that solve: what became of the last solve, and of those before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from torchimplicit.core.failures import Failures, name_of
from torchimplicit.core.migration import Explained
from torchimplicit.core.public import public, refuse_scripting
from torchimplicit.core.status import ConvergenceError


class ImplicitLayer(Explained, nn.Module):
    """Base of the layers that solve; a subclass sets `on_failure` and solves by `solve`.

    Attributes:
        on_failure: what to do about samples that fail, forward and backward.
        report: how the last solve went, that of one that failed, too; None before the first.
        failures: counts the solves that failed, for the warnings.
        advice: what to try when they do, beyond the remedies of each status.
    """

    on_failure: Any
    report: Any
    advice: ClassVar[str] = ""
    __prepare_scriptable__ = refuse_scripting

    def __init__(self):
        """Has solved nothing yet."""
        super().__init__()
        self.report, self.failures = None, Failures(advice=type(self).advice)

    @public
    def solve(self, function: Callable, *args: Any, **options: Any) -> Any:
        """The solution of a public function, whose failures are this layer's; keeps the report."""
        try:
            solution = function(*args, on_failure=self.counted(), **options)
        except ConvergenceError as error:
            self.report = error.report
            raise
        self.report = solution.report
        return solution

    def counted(self) -> Any:
        """`on_failure`, counting what fails as this layer's."""
        if not self.failures.owner:
            inner = (getattr(self, name, None) for name in ("cell", "field", "drift"))
            self.failures.owner = name_of(self, next((part for part in inner if part is not None), None))
        return self.failures.under(self.on_failure)
