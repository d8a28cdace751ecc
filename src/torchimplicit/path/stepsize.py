"""How large a step may be: the first one, and the next one from the errors of the last ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require
from torchimplicit.core.tree import norm
from torchimplicit.path.field.dynamics import Field


@dataclass(frozen=True, kw_only=True)
class PID:
    r"""The next step size from the last three errors, sample by sample.

    With $r_k$ the error of step $k$ over its tolerance and $p$ the order of the error estimate,

    $$h_{k+1} = h_k \cdot s\, r_k^{-(k_P + k_I + k_D) / p} r_{k-1}^{(k_P + 2 k_D) / p} r_{k-2}^{-k_D / p}.$$

    The default is the integral controller of most libraries; `PID(proportional=0.4, integral=0.3)` rejects fewer steps
    where an explicit method is at its limit of stability.

    An estimate of an error changes its sign here and there along a path, and close to that it says that any step will
    do. So a step of an ODE is at most twice as long as the error of the step before the last one allowed, too: where
    steps may grow for long they do, by `largest` at a time.

    Source: G. Soederlind, ACM Trans. Math. Softw. 29 (2003) 1.

    Args:
        proportional: $k_P$.
        integral: $k_I$.
        derivative: $k_D$.
        safety: $s$, in (0, 1].
        smallest: the smallest factor, in (0, 1).
        largest: the largest factor, > 1.
    """

    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        for name in ("proportional", "integral", "derivative"):
            value = getattr(self, name)
            require(self, name, is_number(value) and 0 <= value < math.inf, "a finite number >= 0")
        total = self.proportional + self.integral + self.derivative
        require(self, "integral", total > 0, "proportional + integral + derivative > 0, else no step ever changes")
        require(self, "safety", is_number(self.safety) and 0 < self.safety <= 1, "a number in (0, 1]")
        require(self, "smallest", is_number(self.smallest) and 0 < self.smallest < 1, "a number in (0, 1)")
        require(self, "largest", is_number(self.largest) and 1 < self.largest < math.inf, "a number > 1")

    @property
    def remembers(self) -> bool:
        """Whether it looks at more than the last error."""
        return self.proportional > 0 or self.derivative > 0

    def factor(self, ratio: Tensor, history: History | None, order: int) -> Tensor:
        """What to multiply the step size by, `(B,)`, from errors over tolerances, 1 being the limit."""
        p, d = self.proportional, self.derivative
        exponent = -(p + self.integral + d) / order
        factor = power(ratio, exponent).mul_(self.safety)
        if history is not None:
            factor.mul_(power(history.last, (p + 2 * d) / order))
            if d > 0:
                factor.mul_(power(history.before, -d / order))
        return factor.clamp_(self.smallest, self.largest)


@dataclass(frozen=True)
class Fixed:
    """Steps of one size for a method that could choose its own: repeatable, and blind to their error.

    For measuring an order of convergence, for derivatives by finite differences, which a change of the steps would
    spoil, and for as many steps whatever the state. Tolerances then hold the stage equations of stiff methods alone,
    and `dt0` and `dt_min` play no part. A sample with a step whose stage equations are not solved ends there,
    `STEP_TOO_SMALL`: no smaller one is tried.

    Args:
        dt: size of the steps, the last one being shorter where it does not fit; None takes one step from each output
            time to the next.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ts = torch.tensor([0.0, 1.0])
        >>> sol = ti.odeint(
        ...     lambda t, y: -y, torch.ones(1, 1), ts, solver=ti.Tsit5(control=ti.Fixed(0.1))
        ... )
        >>> sol.report.steps.tolist(), sol.report.nfev
        ([10], 61)
    """

    dt: float | None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_dt(self)


def require_dt(config: object, name: str = "dt") -> None:
    """Refuses what is no size of a step.

    Args:
        config: what has it as an option.
        name: of the option.

    Raises:
        ValueError: it is neither a plain number > 0 nor None.
    """
    dt = getattr(config, name)
    require(config, name, dt is None or (is_number(dt) and 0 < dt < math.inf), "a number > 0, or None")


def tightest(tolerance: float | Tensor) -> float:
    """The smallest of tolerances, or the one that there is."""
    return float(tolerance.min()) if isinstance(tolerance, Tensor) else tolerance


def power(base: Tensor, exponent: float) -> Tensor:
    """`base ** exponent` of numbers >= 0, one by one, a new tensor.

    `torch.pow` takes another function for the last few numbers on a CPU, of another rounding: a sample's steps would
    depend on how many there are.
    """
    return base.log().mul_(exponent).exp_()


LONGER, SHORT = 32.0, 0.125  # how much larger the error of a first step may be, which is as short against `turn`
UNCONFIRMED = 2.0  # how much longer a step may be than the error of the one before the last allowed


class History(NamedTuple):
    """The errors over tolerances of the last accepted step and of the one before, `(B,)`, never near zero."""

    last: Tensor
    before: Tensor

    @classmethod
    def start(cls, like: Tensor) -> History:
        """As if all had been on the limit."""
        return cls(torch.ones_like(like), torch.ones_like(like))

    def then(self, ratio: Tensor, accepted: Tensor) -> History:
        """With the errors of one more step, where it was accepted."""
        return History(
            torch.where(accepted, ratio.clamp_min(1e-4), self.last), torch.where(accepted, self.last, self.before)
        )


class Tolerance:
    """Errors over tolerances: the RMS over a sample's unknowns of `error / (atol + rtol * max(|y|, |y'|))`.

    Args:
        rtol: a number, or a tensor that broadcasts against `(B, n)`.
        atol: likewise.
        like: a state, `(B, n)`.
    """

    def __init__(self, rtol: float | Tensor, atol: float | Tensor, like: Tensor):
        root = math.sqrt(like.shape[1])
        self.rtol, self.atol = rtol * root, atol * root  # so that a plain norm gives the RMS
        self.floor: Tensor | None = None  # with which numbers scale in one operation
        if not isinstance(rtol, Tensor) and not isinstance(atol, Tensor):
            self.floor = like.new_full((), atol * root)

    def ratio(self, error: Tensor, y: Tensor, end: Tensor) -> Tensor:
        """The error of a step from `y` to `end`, `(B,)`; NaN where anything is not finite."""
        return norm(error / self._scale(torch.maximum(y.abs(), end.abs())))

    def _scale(self, size: Tensor) -> Tensor:
        """What an error is held against where the state is of a size, `(B, n)`, which is written to."""
        if self.floor is None:
            return size.mul_(self.rtol).add_(self.atol)
        return torch.add(self.floor, size, alpha=self.rtol)  # type: ignore[arg-type]

    def first_step(
        self, field: Field, t: Tensor, y: Tensor, slope: Tensor, end: Tensor, order: int, longer: bool = False
    ) -> Tensor:
        """A first step size, `(B,)`, to `end` at most, after E. Hairer, S. Norsett, G. Wanner, Solving ODEs I, II.4.

        Their rule takes the larger of the first two derivatives, which depends on the unit of time. Here derivatives
        are taken to grow as the first two do, so that it does not. In another unit it could be the time in which the
        state changes by its own size, where Bosh3's estimate of the error of an exponential decay is zero. It may be
        `longer` where it is short against the time in which the slope turns: there an estimate of its error is good.
        """
        scale = self._scale(y.abs())
        size, speed = norm(y / scale), norm(slope / scale)
        known = torch.finfo(y.dtype)
        speed = speed.clamp(known.tiny, known.max**0.5)  # its square may overflow: no step at all
        still = torch.minimum(size, speed) < 1e-5
        trial = torch.where(still, 1e-6, 0.01 * size / speed).to(t.dtype)
        way = end - t
        trial = torch.minimum(trial, way)
        moved = torch.addcmul(y, trial.to(y.dtype).unsqueeze(1), slope)
        bend = norm((field(torch.minimum(t + trial, end), moved) - slope) / scale) / trial.to(y.dtype)
        # turn * (0.01 / (speed * turn)) ** (1 / order) with turn = speed / bend, in which the slope changes by its own
        # size; a state at rest is as fast as it will be once it has moved by a hundredth of what is tolerated.
        bend, hundredth = bend.log_(), math.log(0.01)
        speed = torch.maximum(speed.log_(), (bend + hundredth) * 0.5)
        turn = speed - bend
        wanted = bend.mul_(1 / order - 1).add_(speed, alpha=1 - 2 / order).add_(hundredth / order)
        if longer:
            short = torch.minimum(wanted + math.log(LONGER) / order, turn.add_(math.log(SHORT)))
            wanted = torch.maximum(wanted, short)
        first = torch.minimum(torch.minimum(100 * trial, wanted.exp_().to(t.dtype)), way)
        return torch.where(first > 0, first, trial)
