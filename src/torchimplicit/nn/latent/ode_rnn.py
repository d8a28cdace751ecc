"""A recurrent network whose state follows a differential equation between observations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require_count
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.latent.encoder import Context, Encoder, Reading, check_series, last_of, read
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.times import outputs_of
from torchimplicit.nn.paths.layer import PathLayer, without_time
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.path.options import Options


class _Recurrence(nn.Module):
    """Reads series: the state moves over a gap, and is then renewed by what is observed.

    Args:
        channels: how many variables a series has.
        width: of the state.
        hidden: of the network that moves it.
        steps: of the midpoint rule over a gap.
    """

    def __init__(self, channels: int, width: int, hidden: int, steps: int):
        super().__init__()
        require_count("ODERNN", channels=channels, width=width, hidden=hidden, steps=steps)
        self.field = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        self.cell = nn.GRUCell(2 * channels, width)
        self.width, self.steps = width, steps

    def forward(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """The states before what is observed at each time, and after it, both `(B, T, width)`."""
        count = reading.inputs.shape[2] // 2
        seen = (reading.inputs[:, :, count:] != 0).any(2, keepdim=True).unbind(1)
        inputs, gaps = reading.inputs.unbind(1), reading.gaps.unsqueeze(2).unbind(1)
        h = inputs[0].new_zeros(len(inputs[0]), self.width)
        before, after = [], []
        for number, (x, gap, renewed) in enumerate(zip(inputs, gaps, seen, strict=True)):
            h = self._moved(h, gap) if number else h
            before.append(h)
            h = torch.where(renewed, self.cell(x, h), h)
            after.append(h)
        return torch.stack(before, 1), torch.stack(after, 1)

    def _moved(self, h: Tensor, gap: Tensor) -> Tensor:
        step = gap / self.steps
        for _ in range(self.steps):
            h = h + step * self.field(h + 0.5 * step * self.field(h))
        return h


class ODERNNEncoder(Encoder):
    r"""Reads a series with a state that moves by a differential equation between observations.

    It knows a gap by what its state does there, and costs a Python loop over the observation times: some two or three
    times a `GRUEncoder`. Gaps are crossed by a fixed number of steps, which are part of the model, as the published
    encoder's Euler steps are: nobody looks at their error.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907, algorithm 1.

    Args:
        channels: how many variables a series has.
        latent: dimension of the distribution that `encoder(series)` gives, `(B, latent)`.
        width: of its state.
        hidden: of the network that moves the state.
        steps: of the midpoint rule over a gap.
        reverse: see `GRUEncoder`.
    """

    def __init__(
        self, channels: int, latent: int, width: int = 40, hidden: int = 50, *, steps: int = 1, reverse: bool = True
    ):
        """Makes the networks."""
        super().__init__(channels, latent, width)
        self.recurrence = _Recurrence(channels, width, hidden, steps)
        self.reverse = reverse

    def context(self, series: Series) -> Context:
        """See `Encoder.context`."""
        self.check(series)
        reading = read(series, self.reverse)
        states = self.recurrence(reading)[1]
        return Context(series.times, reading.back(states), last_of(states, reading.present))


class ODERNN(PathLayer):
    r"""A model of the next values: a recurrent state that follows a differential equation between observations.

    At every time of a series it says what to expect from what came before; behind the last one it goes on along the
    equation, solved to a tolerance. It has no distribution of paths: see `LatentODE`.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907, section 3.1.

    Args:
        channels: how many variables a series has.
        width: of its state.
        hidden: of the network that moves the state.
        steps: of the midpoint rule between two observations.
        decoder: a module from states `(..., width)` to what to expect, `(..., C)`; None for one layer.
        solver: behind the last time, see `NeuralODE`.
        adjoint: see `NeuralODE`.
        on_failure: "warn" (default), "raise" or "ignore" paths that do not reach the last time.

    Attributes:
        report: how the last forecasts were solved; None before the first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> series = ti.nn.Series.of(
        ...     [(torch.rand(n).sort().values, torch.randn(n, 3)) for n in (5, 1)]
        ... )
        >>> model = ti.nn.ODERNN(channels=3)
        >>> model(series).shape, model.forecast(series, torch.tensor([1.0, 2.0])).shape
        (torch.Size([2, 5, 3]), torch.Size([2, 2, 3]))
    """

    def __init__(
        self, channels: int, width: int = 40, hidden: int = 50, *, steps: int = 1, decoder: nn.Module | None = None,
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-4), adjoint: PathAdjoint = Checkpointed(),
        on_failure: OnFailure = "warn",
    ):  # fmt: skip
        """Makes the networks."""
        super().__init__()
        Options(name="ODERNN", solver=solver, adjoint=adjoint, on_failure=on_failure)  # refuses now
        self.recurrence = _Recurrence(channels, width, hidden, steps)
        self.decoder = nn.Linear(width, channels) if decoder is None else decoder
        self.channels, self.solver, self.adjoint = channels, solver, adjoint
        self.on_failure: OnFailure = on_failure

    def forward(self, series: Series) -> Tensor:
        """What to expect at every time of a series from what lies before it, `(B, T, C)`.

        Raises:
            ValueError: another number of channels, or a series without observations.
        """
        check_series("ODERNN", series, self.channels, self)
        return self.decoder(self.recurrence(read(series, reverse=False))[0])

    @public
    def forecast(self, series: Series, ts: Tensor) -> Tensor:
        """What to expect behind a series' last time: `(B, T, C)` at times `ts`.

        Args:
            series: what is known.
            ts: `(T,)`, or `(B, T)` with NaN as padding; none before a series' last one.

        Raises:
            ValueError: as `forward`; or times that are no such.
        """
        check_series("ODERNN", series, self.channels, self)
        reading = read(series, reverse=False)
        h = last_of(self.recurrence(reading)[1], reading.present)
        last = last_of(series.times.unsqueeze(2), series.present).squeeze(1)
        outputs = outputs_of("ODERNN", last, ts, "last")
        field: Any = partial(without_time, self.recurrence.field)
        states = self.integrate(field, h, outputs.grid, (), self.solver, ())
        return self.decoder(outputs.pick(states))
