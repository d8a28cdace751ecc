"""A process beside its prior: the same equation with two unknowns more, which measure how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.core.tree import Layout
from torchimplicit.path.dense.dense_path import DensePath
from torchimplicit.path.report import PathReport
from torchimplicit.sde.dense import StochasticPath
from torchimplicit.sde.diffusion import Diffusion
from torchimplicit.sde.driver import Driver
from torchimplicit.sde.dynamics import NoisyField, Part, StochasticDynamics, Value
from torchimplicit.sde.girsanov import control
from torchimplicit.sde.solution import StochasticSolution

Divergence = Literal["quadratic", "pathwise"]


def beside(y0: Any, layout: Layout) -> tuple[Any, Tensor, Tensor]:
    """A start with two unknowns more: the divergence as far as it is finite, and whether it is not.

    The second one is there because a path goes on where its divergence is infinite, and an infinite unknown would end
    it.
    """
    nothing = torch.zeros(layout.batch, dtype=layout.dtype, device=layout.device)
    return y0, nothing, nothing.clone()


def relative_solution(
    value: Any, report: PathReport, path: DensePath | None = None, **found: Any
) -> StochasticSolution:
    """The solution for a state that `beside` has started."""
    y, kl, outside = value
    found["path"] = None if path is None else StochasticPath(path, beside=True)
    return StochasticSolution(y, report, kl=torch.where(outside != 0, torch.inf, kl), **found)


class RelativeField(NoisyField):
    """A `NoisyField` whose drift takes all three functions; the prior is counted, too.

    Attributes:
        weight: what multiplies the noise in the divergence, see `NoisyField.control`, whether it is asked for or not.
    """

    weight: Part

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        """See `NoisyField.drift`."""
        return self.both(t, y)[0]

    def both(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoisyField.both`."""
        self.nfev += 1
        return super().both(t, y)


class RelativeDynamics(StochasticDynamics):
    """Stochastic dynamics of a state that `beside` has started; the equation has a prior, the diffusion is the user's.

    Args:
        *args: see `StochasticDynamics`.
        pathwise: whether the noise is wanted in the divergence.
        **kwargs: see `StochasticDynamics`.
    """

    form: ClassVar[str] = "drift(t, y, *args), diffusion(t, y, *args) or prior(t, y, *args)"

    def __init__(self, *args: Any, pathwise: bool, **kwargs: Any):
        """Makes the functions and the state explicit; evaluates nothing."""
        super().__init__(*args, **kwargs)
        self.pathwise = pathwise

    @property
    def user_layout(self) -> Layout:
        """See `Problem.user_layout`."""
        return self.diffusion.layout

    def check(self, value: Any) -> None:
        """Refuses what drift, diffusion and prior must not return."""
        f, g, p = value
        user, cast = self.diffusion, self.autocast.enabled
        user.layout.check(f, cast=cast, subject="the drift returned")
        user.check(g, cast=cast)
        user.layout.check(p, cast=cast, subject="the prior returned")

    @property
    def making(self) -> Callable[..., NoisyField]:
        """See `StochasticDynamics.making`."""
        return pathwise_field if self.pathwise else relative_field


def relative_field(value: Value, first: Value | None, diffusion: Diffusion, driver: Driver) -> RelativeField:
    """Drift and diffusion of a state that `beside` has started; see `noisy_field`."""
    layout, noise = diffusion.layout, diffusion.noise

    def rows(ask: Value, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, g, p = ask(t, y[:, :-2])
        return layout.flatten(f), diffusion.flatten(g), layout.flatten(p)

    def widened(g: Tensor) -> Tensor:
        return pad(g, (0, 2) if g.dim() == 2 else (0, 0, 0, 2))

    def both(ask: Value, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        f, g, p = rows(ask, t, y)
        return torch.cat((f, control(f, p, g, noise).rates()), 1), widened(g)

    def u(t: Tensor, y: Tensor) -> Tensor:
        field.nfev += 3
        f, g, p = rows(value, t, y)
        return control(f, p, g, noise).u

    field = RelativeField(
        lambda t, y: both(value, t, y)[0],
        lambda t, y: widened(diffusion.flatten(value(t, y[:, :-2], 1))),
        partial(both, value), driver, None if first is None else partial(both, first),
    )  # fmt: skip
    field.weight = u
    return field


def pathwise_field(value: Value, first: Value | None, diffusion: Diffusion, driver: Driver) -> NoisyField:
    """The same with the noise in the divergence."""
    field = relative_field(value, first, diffusion, driver)
    field.control = field.weight
    return field
