"""How far a stochastic path is from the true one, at which order, and how far its law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit import picture
from torchimplicit.core.options import is_count, require_instance
from torchimplicit.core.tree import Layout
from torchimplicit.path.solver import AdaptiveSolver
from torchimplicit.path.stepsize import Fixed
from torchimplicit.sde import Brownian, SDESolver, sdeint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 0.25  # the least order of which an error is guessed
SEEN = 3.0  # standard errors above which an error is not chance


@dataclass(frozen=True)
class PathError:
    """Errors of a solver at several steps, on the same paths.

    Attributes:
        kind: "strong" or "weak".
        dt: lengths of steps, falling by halves, `(K,)`.
        error: at each, estimated from the distance to that of half the step, `(K,)`.
        spread: standard errors of these, `(K,)`.
        order: by which errors fall, from those that are more than chance; NaN where fewer than two are.
        order_spread: its standard error, over the samples.
        stated: the order to expect, strong errors only; see `StochasticReport.strong_order`.
        solver: at the longest steps.
    """

    kind: str
    dt: Tensor
    error: Tensor
    spread: Tensor
    order: float
    order_spread: float
    stated: float | None
    solver: SDESolver = field(repr=False)

    def __str__(self) -> str:
        """One line: the error at the steps of the solver, the order, and the one to expect."""
        text = f"{type(self.solver).__name__}: {self.kind} error {self._at(0)} at dt = {float(self.dt[0]):.4g}, "
        if self.order != self.order:
            return f"{text}no order: errors are no more than chance; try more samples, or larger steps"
        text += f"order {self.order:.2f} +- {self.order_spread:.2f}"
        return text if self.stated is None else f"{text}, {self.stated:g} is stated"

    def table(self) -> str:
        """A line for every step."""
        lines = [str(self), "", f"{'dt':>10}  {self.kind} error"]
        return "\n".join([*lines, *(f"{float(dt):>10.4g}  {self._at(k)}" for k, dt in enumerate(self.dt))])

    def plot(self, target: Any = None) -> Figure:
        """Errors against steps, with their standard errors, and the line of the order.

        Args:
            target: path or binary file to save to; None only returns the figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = picture.new_figure(5.4, 4.0)
        axes = figure.subplots()
        dt, error, spread = (each.double().cpu() for each in (self.dt, self.error, self.spread))
        low = torch.minimum(spread, 0.9 * error)  # a logarithm has no zero
        axes.errorbar(dt, error, yerr=torch.stack((low, spread)), color=picture.BLUE, marker="o", capsize=3, lw=1.5)
        order = self.order if self.stated is None else self.stated
        if order == order:
            line = float(error[0]) * (dt / float(dt[0])) ** order
            axes.plot(dt, line, color=picture.GREY, ls="--", lw=1.2, label=f"order {order:.2g}")
            axes.legend(fontsize=8, frameon=False)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        picture.tidy(axes, f"{type(self.solver).__name__}: {self.kind} error", "dt", "error")
        return picture.save(figure, target)

    def _at(self, k: int) -> str:
        return f"{float(self.error[k]):.2e} +- {float(self.spread[k]):.1e}"


def strong_error(
    drift: Callable, diffusion: Callable, y0: Any, ts: Tensor, *args: Any,
    solver: SDESolver, levels: int = 4, seed: int | Tensor = 0, **options: Any,
) -> PathError:  # fmt: skip
    r"""How far paths at the last time are from the true ones: the root of the mean square over the samples.

    The same paths are solved at steps `dt`, `dt / 2`, ..., `dt / 2 ** levels`. What a step and its half differ by,
    $d_k$, and its like further on add up to the error: at order $p$, $q = 2^{-p}$ and a correlation $\rho$ of $d_k$
    and $d_{k+1}$ the square is $E d_k^2 (1 + 2 \rho q / (1 - q)) / (1 - q^2)$. It is the error
    to the solver's own limit: that this is the process that was meant, no step size tells.

    Args:
        drift: see `sdeint`.
        diffusion: see `sdeint`.
        y0: starts, at least two samples: give a start as often as you want paths.
        ts: times, `(T,)`, their distances multiples of `dt`.
        *args: see `sdeint`.
        solver: with its `dt`, the longest steps.
        levels: how many errors.
        seed: of the paths, see `Brownian`.
        **options: `noise` and `calculus` of `sdeint`.

    Raises:
        TypeError: no solver of stochastic paths.
        ValueError: a solver without `dt`, one sample, fewer than two levels, times that are no multiples.
        ConvergenceError: a sample did not arrive.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit import diagnose
        >>> found = diagnose.strong_error(
        ...     lambda t, y: 0.1 * y,
        ...     lambda t, y: 0.5 * y,
        ...     torch.ones(500, 1, dtype=torch.float64),
        ...     torch.tensor([0.0, 1.0], dtype=torch.float64),
        ...     solver=ti.sde.EulerMaruyama(dt=0.125),
        ... )
        >>> abs(found.order - 0.5) < 0.15
        True
    """
    rows, stated = _solved(drift, diffusion, y0, ts, args, solver, levels, seed, options)
    found = rows[:-1] - rows[1:]  # (K, B, q)
    squares, products = found.square().sum(2), (found[:-1] * found[1:]).sum(2)
    whole = _strong(squares.mean(1, keepdim=True), products.mean(1, keepdim=True))
    return _result("strong", solver, whole, _strong(_without(squares), _without(products)), stated)


def weak_error(
    drift: Callable, diffusion: Callable, y0: Any, ts: Tensor, *args: Any,
    solver: SDESolver, quantity: Callable[[Any], Tensor] | None = None, levels: int = 4, seed: int | Tensor = 0,
    **options: Any,
) -> PathError:  # fmt: skip
    """How far the mean of a quantity at the last time is from the true one, as `strong_error` measures paths.

    The mean is over the samples, of differences on the same paths, whose chance is far less than that of the means.

    Args:
        drift: see `strong_error`; so are the other arguments.
        diffusion: see `sdeint`.
        y0: starts.
        ts: times.
        *args: see `sdeint`.
        solver: with its `dt`.
        quantity: of the state at the last time, `(B, ...)`; the state itself by default.
        levels: how many errors.
        seed: of the paths.
        **options: `noise` and `calculus` of `sdeint`.
    """
    rows, _ = _solved(drift, diffusion, y0, ts, args, solver, levels, seed, options, quantity)
    found = rows[:-1] - rows[1:]  # (K, B, q)
    mean, chance = found.mean(1, keepdim=True).norm(dim=2), (found.var(1).sum(1) / found.shape[1]).sqrt()
    few = int(torch.cumprod((mean.squeeze(1) > SEEN * chance).int(), 0).sum())  # the first ones that are no chance
    return _result("weak", solver, _weak(mean, few), _weak(_without(found).norm(dim=2), few), None)


def _solved(
    drift: Callable, diffusion: Callable, y0: Any, ts: Tensor, args: tuple, solver: SDESolver, levels: int,
    seed: int | Tensor, options: dict[str, Any], quantity: Callable[[Any], Tensor] | None = None,
) -> tuple[Tensor, float | None]:  # fmt: skip
    """States at the last time at every step, or what is asked of them, `(levels + 1, B, q)`; the order to expect."""
    require_instance("solver", solver, SDESolver, "ti.sde.EulerMaruyama(dt=0.01)")
    dt, batch = solver.dt_given, Layout(y0).batch
    if solver.adapts or dt is None:
        raise ValueError(f"solver: got {solver}, expected one with dt; try {type(solver).__name__}(dt=0.1)")
    if not is_count(levels) or levels < 2:
        raise ValueError(f"levels: got {levels!r}, expected an integer from 2 on; try 4")
    if batch < 2:
        raise ValueError(f"y0: got {batch} sample, expected two or more; try y0.expand(1000, ...) for a thousand paths")
    found, stated = [], None
    source = Brownian(seed=seed, base=dt / 2**levels if solver.levy else dt)  # areas are known of whole bases
    with torch.no_grad():
        for level in range(levels + 1):
            solution = sdeint(
                drift, diffusion, y0, ts, *args, solver=_of_size(solver, dt / 2**level), brownian=source, **options
            )  # fmt: skip
            end = pytree.tree_map(lambda leaf: leaf[-1], solution.value)
            value = Layout(end).flatten(end) if quantity is None else quantity(end)
            found.append(value.reshape(batch, -1).double())
            stated = solution.report.strong_order  # type: ignore[attr-defined]
    return torch.stack(found), stated


def _of_size(solver: SDESolver, dt: float) -> SDESolver:
    """The solver with steps of this size, said in the same way."""
    by_control = isinstance(solver, AdaptiveSolver) and isinstance(solver.control, Fixed)
    return replace(solver, control=Fixed(dt)) if by_control else replace(solver, dt=dt)


def _result(
    kind: str, solver: SDESolver, found: tuple[Tensor, Tensor], without: tuple[Tensor, Tensor], stated: float | None
) -> PathError:
    """From errors `(K, 1)` and an order `(1,)`, and from those without each sample, `(K, B)` and `(B,)`."""
    (error, order), dt = found, solver.dt_given
    assert dt is not None
    steps, (spread, order_spread) = (
        dt / 2.0 ** torch.arange(len(error), dtype=torch.float64, device="cpu"),
        map(_jackknife, without),
    )
    return PathError(kind, steps, error.squeeze(1), spread, float(order), float(order_spread), stated, solver)


def _strong(squares: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Errors `(K, N)` and order `(N,)` from means of `d_k ** 2`, `(K, N)`, and of `d_k d_(k+1)`; see `strong_error`."""
    squares = squares.clamp_min(0)
    order = _slope(squares.sqrt())
    q = 2.0 ** -order.nan_to_num(1.0).clamp_min(LEAST)
    along = (products / (squares[:-1] * squares[1:]).sqrt()).nan_to_num(0.0).mean(0).clamp(0, 1)
    return (squares * (1 + 2 * along * q / (1 - q)) / (1 - q * q)).sqrt(), order


def _weak(means: Tensor, few: int) -> tuple[Tensor, Tensor]:
    """Errors `(K, N)` and order `(N,)` from norms of means, `(K, N)`, of which the first `few` are no chance."""
    order = _slope(means[:few]) if few >= 2 else torch.full_like(means[0], torch.nan)
    return means / (1 - 2.0 ** -order.nan_to_num(1.0).clamp_min(LEAST)), order


def _without(values: Tensor) -> Tensor:
    """Means over the samples without each of them, from values `(K, B, ...)`."""
    return (values.sum(1, keepdim=True) - values) / (values.shape[1] - 1)


def _slope(errors: Tensor) -> Tensor:
    """By which order errors `(K, N)` fall, `(N,)`: least squares of the logarithms."""
    level = torch.arange(len(errors), dtype=errors.dtype, device=errors.device)
    level = (level - level.mean()).unsqueeze(1)
    return -(level * errors.log2()).sum(0) / level.square().sum()


def _jackknife(without: Tensor) -> Tensor:
    """The standard error of what was found without each sample, `(..., B)`."""
    count = without.shape[-1]
    return ((count - 1) * without.var(-1, correction=0)).sqrt()
