"""Steps that samples choose, where samples are as unlike as volatilities from 0.1 to 2: evaluations for one error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import torchimplicit as ti
from benchmarks.kit.table import Table, at_least
from benchmarks.paths import sde_cases
from benchmarks.paths.sde_cases import Counted, Geometric

BAR, DRAWS, INTERVAL = 5, 400, (0.05, 0.95)
Measure = Callable[[Tensor], Tensor]  # of errors over solutions, `(seeds, samples)`


class Found(NamedTuple):
    """What solves with some seeds came to; `(seeds, samples)` each.

    Attributes:
        evaluations: that a sample took part in.
        error: over the size of the exact solution on the same path.
    """

    evaluations: Tensor
    error: Tensor

    def take(self, seeds: Tensor) -> Found:
        """Those of some seeds."""
        return Found(self.evaluations[seeds], self.error[seeds])


def root_mean_square(error: Tensor) -> Tensor:
    """What a few paths decide."""
    return error.square().mean().sqrt()


def median(error: Tensor) -> Tensor:
    """What half of all paths stay below."""
    return error.abs().flatten().median()


def adaptive(batch: int, seeds: int, tolerances: tuple[float, ...], theirs_at: tuple[float, ...]) -> Table:
    """Evaluations for one error; at tolerances of ours, and of theirs, whose errors shall lie around ours."""
    note = (
        f"Geometric Brownian motion, {batch} samples with volatilities from 0.1 to 2 in one batch, {seeds} batches, "
        "Heun, to t = 1, double precision, atol a tenth of rtol. An error is that of a path at the end over its own "
        "exact solution there: solutions reach from 1e-4 to 1e3, and of errors as they are two or three paths among "
        "thousands make the mean of squares, so that single batches give ratios from 0.1 to 1000. Evaluations are "
        "those that a sample takes part in, on average; torchsde takes steps of one size for the batch, and estimates "
        "their error by halving them. For the ratio, its own are read off lines through their logarithms at our "
        f"error; in brackets where it lies in {DRAWS} draws of batches with replacement, nine times in ten. The bar is "
        "for the root of the mean square, and for the lower end."
    )
    table = Table(
        "Unlike samples", note, ["library", "rtol", "evaluations", "rms error", "ratio", "bar", "verdict",
                                 "median error", "ratio at the median"])  # fmt: skip
    theirs, ours = (
        [_torchsde(batch, seeds, tol) for tol in theirs_at],
        [_ours(batch, seeds, tol) for tol in tolerances],
    )
    for library, asked, runs in (("torchsde", theirs_at, theirs), ("torchimplicit", tolerances, ours)):
        for k, (tol, found) in enumerate(zip(asked, runs, strict=True)):
            cells = [f"{each(found.error):.1e}" for each in (root_mean_square, median)]
            first, bar, second = "", ("", ""), ""
            if library != "torchsde":
                low, first = _range(theirs, ours, k, root_mean_square)
                bar, second = at_least(low, BAR), _range(theirs, ours, k, median)[1]
            table.add(library, f"{tol:g}", f"{found.evaluations.mean():.0f}", cells[0], first, *bar, cells[1], second)
    return table


def ratio(theirs: list[Found], ours: Found, measure: Measure) -> float:
    """How many times our evaluations torchsde would take for our error, by lines through neighbours' logarithms."""
    counts = torch.stack([each.evaluations.mean() for each in theirs]).log()
    errors = -torch.stack([measure(each.error) for each in theirs]).log()  # ascending
    wanted = -measure(ours.error).log()
    k = int(torch.searchsorted(errors, wanted).clamp(1, len(errors) - 1))
    part = (wanted - errors[k - 1]) / (errors[k] - errors[k - 1])
    return float((counts[k - 1] + part * (counts[k] - counts[k - 1])).exp() / ours.evaluations.mean())


def _range(theirs: list[Found], ours: list[Found], number: int, measure: Measure) -> tuple[float, str]:
    """The lower end of a ratio, and the ratio with both ends."""
    generator, seeds = torch.Generator().manual_seed(0), len(ours[0].error)
    drawn = []
    for _ in range(DRAWS):
        some = torch.randint(seeds, (2, seeds), generator=generator)  # the noise is not the same
        drawn.append(ratio([each.take(some[0]) for each in theirs], ours[number].take(some[1]), measure))
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    return low, f"{ratio(theirs, ours[number], measure):.1f}x ({low:.1f} to {high:.1f})"


class _Unlike(Geometric):
    sde_type = "stratonovich"

    def __init__(self, batch: int):
        super().__init__()
        self.volatility = torch.logspace(-1, math.log10(2), batch, dtype=torch.float64).unsqueeze(1)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.volatility * y

    def exact(self, w: Tensor) -> Tensor:
        return (0.1 + self.volatility * w).exp()


def _torchsde(batch: int, seeds: int, tol: float) -> Found:
    """Steps of torchsde's, one batch after the other."""
    equation, y0, ts = _Unlike(batch), torch.ones(batch, 1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()
    evaluations, errors = [], []
    for seed in range(seeds):
        bm = sde_cases.torchsde.BrownianInterval(0.0, 1.0, size=y0.shape, dtype=y0.dtype, entropy=seed)
        counted = Counted(equation)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            y = sde_cases.torchsde.sdeint(
                counted, y0, ts, method="heun", adaptive=True, rtol=tol, atol=tol / 10, dt=0.01, bm=bm
            )[-1]
        evaluations.append(torch.full((batch,), float(len(counted.asked)), dtype=torch.float64))
        errors.append((y / equation.exact(bm(0.0, 1.0)) - 1).squeeze(1))
    return Found(torch.stack(evaluations), torch.stack(errors))


def _ours(batch: int, seeds: int, tol: float) -> Found:
    """Our steps, all batches in one, whose samples know nothing of each other.

    The path is a second unknown, which Heun's method makes no error in, and which chooses no steps.
    """
    equation, ts = _Unlike(batch), torch.tensor([0.0, 1.0]).double()
    equation.volatility = equation.volatility.repeat(seeds, 1)
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(batch * seeds, 1)
    atol = torch.tensor([tol / 10, 1e9], dtype=torch.float64)
    with torch.no_grad():
        found = ti.sdeint(
            lambda t, y: torch.cat((equation.f(t, y[:, :1]), torch.zeros_like(y[:, 1:])), 1),
            lambda t, y: torch.cat((equation.g(t, y[:, :1]), torch.ones_like(y[:, 1:])), 1).unsqueeze(2),
            start, ts, solver=ti.sde.Heun(rtol=tol, atol=atol), noise="scalar", calculus="stratonovich", brownian=0,
        )  # fmt: skip
    y, w = found.value[-1].split(1, dim=1)
    error = (y / equation.exact(w) - 1).view(seeds, batch)
    return Found(4 * found.report.steps.double().view(seeds, batch), error)
