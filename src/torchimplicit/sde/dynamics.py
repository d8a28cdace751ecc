"""Drift and diffusion in the flat form that steps work on, with the noise that drives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from torchimplicit.core.tree import Layout
from torchimplicit.path.field.dynamics import Dynamics, Field, MappedDynamics
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import Diffusion
from torchimplicit.sde.driver import Driver
from torchimplicit.sde.report import StochasticReport

Tensors = list[Tensor] | tuple[Tensor, ...]
Part = Callable[[Tensor, Tensor], Tensor]  # of times (B,) and states (B, n)
Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Value = Callable[..., Any]  # of times, states, and the number of a part of the equation, what it returns
WHOLE = -1  # all parts


class RawEquation(NamedTuple):
    """The user's functions as they are, for kernels.

    Attributes:
        parts: drift, diffusion and further ones, of times, states and arguments.
        args: their further arguments.
        diffusion: how diffusions become rows.
        making: makes a field of what they return, see `StochasticDynamics.making`.
        time_shape: of the times, which have the solver's dtype.
        users: the functions as the user gave them, which stay the same from solve to solve.
    """

    parts: tuple[Callable, ...]
    args: tuple
    diffusion: Diffusion
    making: Callable[..., NoisyField]
    time_shape: tuple[int, ...]
    users: tuple[Callable, ...]


class NoisyField(Field):
    """What steps of a stochastic path ask for: drift and diffusion, and the increments of the noise.

    As a field it is both side by side, `(B, n + n m)`, for those who ask what depends on what.

    Args:
        drift: rows `(B, n)`.
        diffusion: rows `(B, n)`, or matrices `(B, n, m)`.
        both: drift and diffusion.
        driver: the noise of these samples.
        first: both at the first states that are asked for, looked at closely; None where no one has to look.

    Attributes:
        control: what multiplies the noise in a divergence, `(B, m)`; None where nobody asks for it.
        equation: what it is made of; None where that is not one real tensor.
    """

    control: Part | None = None
    equation: RawEquation | None = None

    def __init__(self, drift: Part, diffusion: Part, both: Pair, driver: Driver, first: Pair | None = None):
        super().__init__(self._side_by_side)
        self._drift, self._diffusion, self._both, self.driver, self._first = drift, diffusion, both, driver, first
        self._met: tuple[Tensor, tuple[Tensor, ...]] | None = None
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift at `(t, y)`."""
        if self._first is not None:
            return self.both(t, y)[0]
        self.nfev += 1
        return self._drift(t, y)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion at `(t, y)`."""
        if self._first is not None:
            return self.both(t, y)[1]
        self.nfev += 1
        return self._diffusion(t, y)

    def both(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion at `(t, y)`."""
        self.nfev += 2
        if self._first is None:
            return self._both(t, y)
        first, self._first = self._first, None
        f, g = first(t, y)
        self._seen = t, y, torch.cat((f.detach(), g.detach().flatten(1)), 1)
        return f, g

    def seen(self, t: Tensor, y: Tensor) -> Tensor | None:
        """See `Field.seen`."""
        if (known := self._seen) is None or known[1] is not y:
            return None
        return known[2] if torch.equal(known[0].flatten(), t.to(known[0].dtype)) else None

    def look(self, t: Tensor, y: Tensor) -> None:
        """Looks closely at both, for steps that will not; and makes the noise."""
        _, g = self.both(t, self._one(y))
        if not self.driver.ready:
            self.driver.prepare(g.shape[-1])

    def prepare(self, t: Tensor, y: Tensor) -> None:
        """Makes the noise: how many channels there are a diffusion tells, at the states `(B, n)`, or pairs."""
        if not self.driver.ready:
            self.driver.prepare(self.diffusion(t, self._one(y)).shape[-1])

    def _one(self, y: Tensor) -> Tensor:
        """Of pairs of states the first ones."""
        return y if y.shape[1] == (width := self.driver.layout.width) else y[:, :width]

    def increment(self, span: Span, y: Tensor) -> Increment:
        """The noise over a step from the states `(B, n)`."""
        self.prepare(span.start, y)
        return self.driver.increment(span)

    def meet(self, end: Tensor, there: tuple[Tensor, ...]) -> Tensor:
        """Notes what a step knows of its end, drift and diffusion say, for one that goes on from this very tensor."""
        self._met = end, there
        return end

    def met(self, start: Tensor) -> tuple[Tensor, ...] | None:
        """What the last step has noted of its end, where that is the start of this one; else None."""
        return None if self._met is None or self._met[0] is not start else self._met[1]

    def _side_by_side(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfev -= 1  # was counted as one
        f, g = self.both(t, y)
        return torch.cat((f, g.flatten(1)), 1)


class StochasticDynamics(Dynamics):
    """`dy = f(t, y, *args) dt + g(t, y, *args) dW`, its tensors explicit, its state flat.

    Args:
        equation: drift and diffusion, as `equation` has them.
        y0: the initial state, nested.
        args: further arguments of both.
        batch_dims: 1.
        batched_args: see `Problem`.
        backward: which samples run backward in time; None, or refused.
        layout: see `Problem`.
        diffusion: how diffusions become rows.
        driver: the noise.

    Raises:
        ValueError: times decrease.
    """

    form: ClassVar[str] = "drift(t, y, *args) or diffusion(t, y, *args)"
    joint: ClassVar[str] = "the same, a batch of one"
    pathwise: bool = False  # whether the noise is wanted in a divergence; see `RelativeDynamics`

    def __init__(
        self,
        equation: partial,
        y0: Any,
        args: tuple,
        batch_dims: int,
        batched_args: Sequence[int] | None,
        backward: Tensor | None,
        layout: Layout | None = None,
        *,
        diffusion: Diffusion,
        driver: Driver,
    ):
        """Makes both functions and the state explicit; evaluates nothing."""
        if backward is not None:
            raise ValueError("ts: got decreasing times, expected increasing ones: noise is not known before its time")
        super().__init__(equation, y0, args, batch_dims, batched_args, layout=layout)
        self.diffusion, self.driver = diffusion, driver
        channels = Diffusion(diffusion.noise, self.layout).channels
        if driver.layout.width and channels is not None:
            driver.prepare(channels)

    def of_rows(self, rows: Tensor) -> Self:
        """See `Dynamics.of_rows`."""
        other = super().of_rows(rows)
        other.driver = self.driver.take(rows)
        return other

    def mapped(self, count: int, dims: tuple[int | None, ...]) -> MappedDynamics:
        """See `Dynamics.mapped`."""
        return MappedNoise(self, count, dims)

    def report(self, *args: Any, **kwargs: Any) -> StochasticReport:
        """See `Dynamics.report`."""
        return StochasticReport(*args, **kwargs, seed=self.driver.seed, noise=self.diffusion.noise)

    def check(self, value: Any) -> None:
        """Refuses what drift and diffusion must not return."""
        f, g = value
        self.layout.check(f, cast=self.autocast.enabled, subject="the drift returned")
        self.diffusion.check(g, cast=self.autocast.enabled)

    @contextmanager
    def bind(
        self, tensors: Tensors, audit: bool = False, keep_buffers: bool = False, rows: Tensor | None = None
    ) -> Iterator[NoisyField]:
        """See `Dynamics.bind`; where a graph is recorded captured tensors are looked for in the first value's."""
        recording = torch.is_grad_enabled()
        tensors = [each.detach() for each in tensors] if audit and not recording else list(tensors)
        looks = rows is None and (audit or keep_buffers)  # a path made again has been looked at
        diffusion = self.diffusion if rows is None else self.diffusion.of_batch(len(rows))
        driver = self.driver if rows is None else self.driver.of_phase(rows)
        dtype, shape, nested = self.time_dtype, self.time_shape, diffusion.layout.unflatten
        dims, flat = len(shape), diffusion.layout.flat

        def value(t: Tensor, y: Tensor, number: int = WHOLE) -> Any:
            t = t if t.dtype is dtype else t.to(dtype)
            return parts[number](t if t.dim() == dims else t.view(shape), y if flat else nested(y))

        def first(t: Tensor, y: Tensor) -> Any:
            values = self.evaluate_first(partial(value, t, y), y)
            if audit and recording:
                self.check_captures(values, [y, *tensors])
            return values

        with self.explicit.bind(tensors, keep_buffers, audit and not recording) as bound, self.autocast.off():
            equation: Any = bound.f
            each = [replace(bound, f=part) for part in equation.args]
            parts = [self.autocast.around(part) for part in (*each, bound)]
            field = self.making(value, first if looks else None, diffusion, driver)
            if diffusion.layout.plain and not any(diffusion.layout.channels_last) and not self.autocast.enabled:
                field.equation = RawEquation(equation.args, bound.args, diffusion, self.making, shape, self.f.args)
            yield field

    @property
    def making(self) -> Callable[..., NoisyField]:
        """Makes a field of what the user's functions return, see `noisy_field`; equal where it does the same."""
        return noisy_field


def noisy_field(value: Value, first: Value | None, diffusion: Diffusion, driver: Driver) -> NoisyField:
    """What steps ask for, made of what the user's functions return.

    Args:
        value: asks them.
        first: asks all for the first time, and looks closely; None where no one has to.
        diffusion: how diffusions become rows.
        driver: the noise.
    """
    flat = partial(diffusion.layout.flatten, subject="the drift returned")
    own = partial(diffusion.layout.flatten, subject="the diffusion returned")
    flat_g = own if diffusion.noise == "diagonal" else diffusion.flatten

    def both(t: Tensor, y: Tensor, ask: Value = value) -> tuple[Tensor, Tensor]:
        f, g = ask(t, y)
        return flat(f), flat_g(g)

    return NoisyField(
        lambda t, y: flat(value(t, y, 0)),
        lambda t, y: flat_g(value(t, y, 1)),
        both, driver, None if first is None else partial(both, ask=first),
    )  # fmt: skip


class MappedNoise(MappedDynamics):
    """Stochastic dynamics under `torch.vmap`: copies of a sample share its noise."""

    dynamics: StochasticDynamics | MappedNoise

    def __init__(self, dynamics: StochasticDynamics | MappedNoise, count: int, dims: tuple[int | None, ...]):
        """See `MappedDynamics`."""
        super().__init__(dynamics, count, dims)
        rows = torch.arange(dynamics.driver.count, device=dynamics.driver.layout.device)
        self.driver = dynamics.driver.take(rows.repeat(count))
        self.pathwise: bool = dynamics.pathwise

    @contextmanager
    def bind(
        self, tensors: Tensors, audit: bool = False, keep_buffers: bool = False, rows: Tensor | None = None
    ) -> Iterator[NoisyField]:
        """The field on `(count * B, n)`; see `Dynamics.bind`."""

        def one(t: Tensor, y: Tensor, *tensors: Tensor, part: str) -> Tensor:
            with self.dynamics.bind(tensors) as field:
                return getattr(field, part)(t, y)

        def part_of(name: str) -> Part:
            mapped = torch.vmap(partial(one, part=name), in_dims=(0, 0, *self.dims), randomness="different")
            return lambda t, y: mapped(
                t.unflatten(0, (self.count, -1)), y.unflatten(0, (self.count, -1)), *tensors
            ).flatten(0, 1)

        drift, diffusion = part_of("drift"), part_of("diffusion")
        field = NoisyField(drift, diffusion, lambda t, y: (drift(t, y), diffusion(t, y)), self.driver)
        field.control = part_of("control") if self.pathwise else None
        yield field
