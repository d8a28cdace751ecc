"""Going on without the samples that have arrived: where it is known which arguments are whose, or proven to be alike.

A function of the time and the state alone, and of the parameters of a module, is asked at some samples once more before
they go on by themselves. Where it says there, bit by bit, what it said of them among the others, they have the numbers
that they would have had; where it does not (products of matrices rounded by how many rows there are, something captured
for each sample, something drawn) the batch stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.graphs import Graphs
from torchimplicit.path.state import IntegratorState

SMALL = 2**14  # numbers in a state up to which going on with fewer samples saves no time
LITTLE = 2**20  # the same of numbers in a state and in parameters, each as often as there are samples
FEWEST = 32  # samples that say whether a function of fewer is the same


class Narrowing:
    """Decides when a solve goes on with fewer samples.

    Args:
        call: the `PathCall`, which makes this.
        tensors: the explicit tensors.
        plain: whether the host makes the steps.
    """

    def __init__(self, call: Any, tensors: Sequence[Tensor], plain: bool):
        self.call, self.knows = call, call.dynamics.can_narrow
        self.work = sum(tensor.numel() for tensor in tensors)
        self.proves = False
        if plain and call.solver.alone and call.trigger is None and isinstance(call.dynamics, Dynamics):
            self.proves = call.dynamics.batch_dims == 1 and not call.dynamics.explicit.leaves

    def wanted(self, y: Tensor) -> bool:
        """Whether that saves time, states being `(B, n)`."""
        batch = len(y)
        return (self.knows and y.numel() >= SMALL) or (
            self.proves and batch >= 4 * FEWEST and batch * (y.shape[1] + self.work) >= LITTLE
        )

    def take(
        self, state: IntegratorState, rows: Tensor | None, tensors: Sequence[Tensor], graphs: Graphs | None
    ) -> tuple[Tensor, IntegratorState, int] | None:
        """The samples that go on, `(M,)`, where they stand, and how many evaluations that took; None for all.

        Args:
            state: where all stand.
            rows: which of the whole batch they are; None for it.
            tensors: the explicit tensors of these.
            graphs: what is kept of them.
        """
        some = torch.nonzero(state.running).flatten()
        if self.knows and state.y.numel() >= SMALL:
            return some, state.take(some), 0
        if len(some) < FEWEST:  # and others, that stand still
            others = torch.nonzero(~state.running).flatten()[: FEWEST - len(some)]
            some = torch.cat((some, others)).sort().values
        fewer, known = state.take(some), state.slope
        begun = None if graphs is None else graphs.known
        slope = None if known is None else self._ask(fewer, some if rows is None else rows[some], tensors, graphs)
        if slope is None or known is None or not torch.equal(slope.detach(), known[some].detach()):
            self.proves = False
            if graphs is not None:
                graphs.known = begun
            return None
        fewer.slope = slope
        return some, fewer, 1

    def _ask(
        self, fewer: IntegratorState, rows: Tensor, tensors: Sequence[Tensor], graphs: Graphs | None
    ) -> Tensor | None:
        """The slopes of some samples by themselves; None where the function cannot be asked for them."""
        call, device = self.call, fewer.y.device
        options = {"audit": call.audit} | ({} if graphs is None else {"leaves": True})
        try:
            with transforms.random_state_kept(device), call.bind(fewer.ts, tensors, rows, **options) as field:
                return field(fewer.t, fewer.y) if graphs is None else graphs.ask(field, fewer.t, fewer.y)
        except Exception:  # whatever a function says that was made for the whole batch
            return None
