"""One call of `odeint`: what to walk, how, and how it went. Adjoints turn it into a differentiable path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.status import OnFailure, Report, react
from torchimplicit.ode.dynamics import Dynamics, MappedDynamics
from torchimplicit.ode.loop import Traveller, Walk
from torchimplicit.ode.methods import PathSolver
from torchimplicit.ode.record import Outputs, Path, Phase
from torchimplicit.ode.report import PathReport


@dataclass
class PathRecord:
    """How the walks of one call went.

    Attributes:
        report: of the forward walk.
        path: the walk as it can be made again; taken by whoever keeps it.
        mutated: which explicit tensors the field wrote to.
    """

    report: PathReport | None = None
    path: Path | None = None
    mutated: tuple[int, ...] = ()

    def take_path(self) -> Path:
        """The path; can be taken once, so that its states are not kept alive here."""
        path, self.path = self.path, None
        assert path is not None
        return path


@dataclass(frozen=True)
class PathCall:
    """Dynamics, and the solver to walk along them.

    Attributes:
        dynamics: the vector field; mapped inside `torch.vmap`.
        solver: the method and its tolerances.
        on_failure: what to do about samples that fail, also in the backward pass.
        audit: refuse captured tensors.
        record: filled by `forward`, shared by the copies that transforms make.
        checkpoints: how many states to keep on the way; 0 keeps none, and no path.
    """

    dynamics: Dynamics | MappedDynamics
    solver: PathSolver
    on_failure: OnFailure
    audit: bool
    record: PathRecord
    checkpoints: int

    def forward(self, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Walks from `y0` `(B, n)` along the times `ts` `(T, B)`; returns the states there, `(T, B, n)`."""
        versions = [transforms.version(tensor) for tensor in tensors]
        with torch.no_grad():
            values = self._walk(y0.detach(), ts.detach(), tensors)
        self.record.mutated = tuple(
            i
            for i, (tensor, version) in enumerate(zip(tensors, versions, strict=True))
            if transforms.version(tensor) != version
        )
        return values

    def _walk(self, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        values = y0.new_empty((len(ts), *y0.shape))
        values[0] = y0
        path = Path() if self.checkpoints else None
        whole, rows, left, nfev = Traveller.start(ts, y0), None, self.solver.max_steps, 0
        who, parents = whole, []
        while True:
            phase = None if path is None else Phase(rows, self.checkpoints)
            with self.dynamics.bind(
                self.dynamics.take(tensors, rows), audit=self.audit and rows is None, keep_buffers=True, rows=rows
            ) as field:
                walk = Walk(self.solver, field, who, values, phase, left, self.dynamics.can_narrow, rows)
                if rows is None:
                    walk.begin()
                left -= walk.run()
            nfev += field.nfev
            if path is not None and phase is not None and phase.steps:
                path.phases.append(phase)
            if not walk.any_running:
                break
            some = torch.nonzero(who.running).flatten()
            parents.append((who, some))
            who, rows = who.take(some), some if rows is None else rows[some]
        for parent, some in reversed(parents):
            parent.put(some, who)
            who = parent
        held = _hold(whole, values)
        if path is not None:
            path.held, self.record.path = held, path
        self.record.report = PathReport(
            whole.status, whole.tried, whole.ratio, nfev, "odeint",
            accepted=whole.tried - whole.rejected, rejected=whole.rejected, reached=self.dynamics.user_time(whole.t),
        )  # fmt: skip
        return values

    def unshared(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, with copies of those that the field writes to."""
        return [tensor.clone() if i in self.record.mutated else tensor for i, tensor in enumerate(tensors)]

    def mapped(self, count: int, dims: Sequence[int | None]) -> PathCall:
        """The same call with a mapped dimension of size `count` folded into the batch."""
        return replace(self, dynamics=MappedDynamics(self.dynamics, count, tuple(dims)))

    def finish_backward(self, report: Report) -> None:
        """Records the report of a backward walk and reacts to its failures."""
        report.name = "backward walk"
        if self.record.report is not None:
            self.record.report.backward = report
        react(report, self.on_failure)


def _hold(who: Traveller, values: Tensor) -> Outputs | None:
    """Fills the outputs that were not reached with the last states; says which they are."""
    late = torch.arange(len(values), device=values.device).unsqueeze(1) >= who.next
    if not bool(late.any()):
        return None
    places, samples = torch.nonzero(late, as_tuple=True)
    values[places, samples] = who.y[samples]
    return Outputs(samples, places)
