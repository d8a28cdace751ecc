"""A state that is driven by an irregular series along a path through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.latent.control import Control, ControlKind, hermite, on_clock, rectilinear
from torchimplicit.nn.latent.encoder import check_observed, last_of
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.times import Outputs, outputs_of, start_of
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.parts.dropout import warn_of_dropout
from torchimplicit.nn.paths.layer import PathLayer, check_field
from torchimplicit.ode import AdaptiveSolver, Checkpointed, PathAdjoint, PathReport, PathSolver, Tsit5
from torchimplicit.path.options import Options


class NeuralCDE(PathLayer):
    r"""A neural controlled differential equation: $dz = f(z)\,dX$ along a path $X$ through a series.

    What a recurrent network is to a residual one: data come in all along, and not by the start alone. For classes and
    values of series, and to follow what comes in; it draws nothing and forecasts nothing, see `LatentODE`.

    The path has the channels time, the $C$ variables (the last value observed, 0 before the first), and with `counts`
    how often each was observed so far, which is to be given where it matters what was measured. Then:

    - "hermite": cubics from one observation's time to the next. The state *at* such a time depends on what was observed
      until then; on the way to the next one on that, too. For labels of whole series, and values at such times.
    - "rectilinear": along time first, and then to the new values: the state at any time depends on what was observed
      until then, at twice the steps.

    The path's clock counts pieces, and time is a channel, so gaps of any size are alike. Pieces meet with a bend that
    no error estimate sees behind, so that adaptive solvers end a step at each, and begin the next piece with a step as
    long as it: a step for a piece at least, more where the tolerance asks for them. A `LatentODE` takes a few for all.

    Source: P. Kidger, J. Morrill, J. Foster, T. Lyons, arXiv 2005.08926; the paths J. Morrill, P. Kidger, L. Yang, T.
    Lyons, arXiv 2106.11028.

    Args:
        field: `field(z) -> f`, of states `(B, hidden)`, a matrix for each: `(B, hidden, channels)`, of `1 + C`
            channels, `1 + 2 C` with counts. `nn.Unflatten(1, (hidden, channels))` makes it of a plain network; a
            bounded last layer such as `nn.Tanh()` before keeps long series stable.
        initial: a module from the path's first value `(B, channels)` to the first state, `(B, hidden)`.
        readout: a module from states `(..., hidden)` to what is wanted.
        control: "hermite" or "rectilinear".
        counts: see above.
        solver: see `NeuralODE`; on the path's clock `Tsit5(control=Fixed(1.0))` and `RK4(dt=1.0)` are one step for a
            piece, whose error nobody looks at.
        adjoint: see `NeuralODE`.
        on_failure: "warn" (default), "raise" or "ignore" paths that do not reach the last time.

    Attributes:
        report: how the last paths were solved; None before the first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> series = ti.nn.Series.of(
        ...     [(torch.rand(n).sort().values, torch.randn(n, 3)) for n in (5, 1)]
        ... )
        >>> field = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 8 * 4), torch.nn.Tanh(), torch.nn.Unflatten(1, (8, 4))
        ... )
        >>> model = ti.nn.NeuralCDE(
        ...     field, initial=torch.nn.Linear(4, 8), readout=torch.nn.Linear(8, 2)
        ... )
        >>> model(series).shape, model(series, series.times).shape
        (torch.Size([2, 2]), torch.Size([2, 5, 2]))
    """

    report: PathReport | None

    def __init__(
        self,
        field: Callable,
        initial: Callable,
        readout: Callable,
        control: ControlKind = "hermite",
        *,
        counts: bool = False,
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-4),
        adjoint: PathAdjoint = Checkpointed(),
        on_failure: OnFailure = "warn",
    ):
        """Keeps parts and options; solves nothing."""
        super().__init__()
        Options(name="NeuralCDE", solver=solver, adjoint=adjoint, on_failure=on_failure)  # refuses now
        for word, part in (("field", field), ("initial", initial), ("readout", readout)):
            check_field("NeuralCDE", part, True, word)
            warn_of_dropout("NeuralCDE", word, part if word == "field" else nn.Identity())
            warn_of_batch_norm("NeuralCDE", word, part, "paths")
        if control not in get_args(ControlKind):
            raise ValueError(f"NeuralCDE(control={control!r}): expected 'hermite' or 'rectilinear'")
        self.field, self.initial, self.readout = field, initial, readout
        self.control: ControlKind = control
        self.counts, self.solver, self.adjoint = counts, solver, adjoint
        self.on_failure: OnFailure = on_failure

    def forward(self, series: Series, ts: Tensor | None = None) -> Tensor:
        """What is read off at each series' last time, `(B, ...)`; or at times, `(B, T, ...)`.

        Args:
            series: what drives.
            ts: `(T,)`, or `(B, T)` with NaN as padding, between a series' first and last time; None for the last.
        """
        check_observed("NeuralCDE", series, self)
        z = self.states(series, _last(series) if ts is None else ts)
        return self.readout(z[:, 0] if ts is None else z)

    @public
    def states(self, series: Series, ts: Tensor) -> Tensor:
        """The states at times `ts`, `(B, T, hidden)`; see `forward`."""
        check_observed("NeuralCDE", series, self)
        outputs = self._outputs(series, ts)
        path = (hermite if self.control == "hermite" else rectilinear)(series, self.counts)
        z = self.initial(path.values[:, 0])
        solver, knots = _by_pieces(self.solver, path)
        field = partial(_driven, self.field)
        return outputs.pick(self.integrate(field, z, outputs.grid, tuple(path), solver, (0, 1), jumps=knots))

    def _outputs(self, series: Series, ts: Tensor) -> Outputs:
        """When to look, on the path's clock.

        Raises:
            ValueError: behind a series' last time, or as `outputs_of`.
        """
        start = start_of("NeuralCDE", series)
        outputs_of("NeuralCDE", start, ts)  # refuses
        late = ts > _last(series)
        if bool(late.any()):
            row = int(late.expand(len(series), -1).any(1).nonzero()[0])
            raise ValueError(
                f"NeuralCDE(ts=...): got times behind the last one of series {row}, {float(_last(series)[row, 0]):g}, "
                "expected none, for nothing drives the state there; try LatentODE for forecasts"
            )
        clock = on_clock(self.control, series, ts.expand(len(series), -1))
        return outputs_of("NeuralCDE", torch.zeros_like(start), clock)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        options = f"control={self.control!r}, counts={self.counts}, solver={self.solver}, adjoint={self.adjoint}"
        return f"{options}, on_failure={self.on_failure!r}"


def _by_pieces(solver: PathSolver, path: Control) -> tuple[PathSolver, Tensor | None]:
    """The solver for a path whose pieces are known, and where they meet; None where steps are given, or one piece."""
    if not (isinstance(solver, AdaptiveSolver) and solver.adapts and path.values.shape[1] > 2):
        return solver, None
    knots = torch.arange(1, path.values.shape[1] - 1, dtype=path.values.dtype, device=path.values.device)
    return (solver if solver.dt0 is not None else replace(solver, dt0=1.0)), knots


def _driven(field: Callable, t: Tensor, z: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    slope = Control(values, slopes).derivative(t)
    matrix = field(z)
    if matrix.shape != (*z.shape, slope.shape[1]):
        raise ValueError(
            f"field: got shape {tuple(matrix.shape)}, expected {(*z.shape, slope.shape[1])}, a matrix of states by "
            f"channels of the path; try nn.Unflatten(1, {(z.shape[1], slope.shape[1])}) behind the last layer"
        )
    return (matrix @ slope.unsqueeze(2)).squeeze(2)


def _last(series: Series) -> Tensor:
    """The last time of every series, `(B, 1)`."""
    return last_of(series.times.unsqueeze(2), series.present)
