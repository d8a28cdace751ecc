"""Pictures of irregular series: what was observed, what a network makes of it, and its latent paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchimplicit.nn import Series
from torchimplicit.train.data.series import SeriesBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_series(
    network: Any, batch: SeriesBatch, variables: Sequence[str], rows: int = 3, columns: int = 4
) -> dict[str, Figure]:
    """A figure of some series, a row each: their most often observed variables, and latent paths where there are some.

    Args:
        network: see `networks.SeriesNetwork`; bands are drawn where it has `spread`, latent paths where it has `paths`.
        batch: what is seen, and what was to be predicted.
        variables: names of the channels.
        rows: how many series.
        columns: how many variables.
    """
    from matplotlib.figure import Figure

    seen, target = batch.seen[:rows], batch.target[:rows]
    first, last = seen.times[:, :1], target.times.nan_to_num(-torch.inf).amax(1, keepdim=True)
    ts = first + (last - first) * torch.linspace(0, 1, 100, device=first.device)
    paths = hasattr(network, "paths")
    figure = Figure(figsize=(3 * (columns + paths), 2.1 * len(seen)), layout="constrained")
    grid = figure.subplots(len(seen), columns + paths, squeeze=False)
    with torch.no_grad():
        drawn = network.spread(seen, ts, 50) if hasattr(network, "spread") else network.predict(seen, ts)[None]
        latent = network.paths(seen, ts, 3).cpu() if paths else None
    for row in range(len(seen)):
        often = (seen.mask[row].sum(0) * (target.mask[row].sum(0) > 0)).topk(min(columns, seen.channels)).indices
        for ax, channel in zip(grid[row], often.tolist(), strict=False):
            _draw(ax, ts[row].cpu(), drawn[:, row, :, channel].cpu())
            for series, colour in ((target, "C3"), (seen, "k")):
                ax.plot(*_observed(series, row, channel), ".", color=colour, markersize=4)
            ax.set_title(variables[channel], fontsize="small")
        if latent is not None:
            moving = (
                latent[:, row].std(1).mean(0).topk(min(6, latent.shape[3])).indices
            )  # the coordinates that move most
            for number, coordinate in enumerate(moving.tolist()):
                grid[row, -1].plot(ts[row].cpu(), latent[:, row, :, coordinate].T, color=f"C{number}", linewidth=0.8)
            grid[row, -1].set_title("latent paths", fontsize="small")
    figure.suptitle("black: seen; red: to be predicted; line and band: mean and 90 % of the draws", fontsize="small")
    return {"series": figure}


def _draw(ax: Any, ts: Tensor, values: Tensor) -> None:
    ax.plot(ts, values.mean(0), color="C0", linewidth=1.2)
    low, high = values.quantile(torch.tensor([0.05, 0.95], dtype=values.dtype), 0)
    ax.fill_between(ts, low, high, color="C0", alpha=0.25, linewidth=0)


def _observed(series: Series, row: int, channel: int) -> tuple[Tensor, Tensor]:
    here = series.mask[row, :, channel]
    return series.times[row][here].cpu(), series.values[row, :, channel][here].cpu()
