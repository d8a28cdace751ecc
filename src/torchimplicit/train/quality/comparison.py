"""Samplers compared: how good samples are for how many evaluations of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchimplicit.train.quality.reference import Reference, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Any, int], tuple[Tensor, Tensor | None, int]]


@dataclass(frozen=True)
class Quality:
    """What a sampler reaches, over several draws.

    Attributes:
        sampler: its name.
        evaluations: of the network, for a batch.
        verdicts: one for each draw.
    """

    sampler: str
    evaluations: int
    verdicts: tuple[Verdict, ...]

    def mean(self, name: str) -> float:
        """The mean of a figure over the draws."""
        return fmean(getattr(verdict, name) for verdict in self.verdicts)

    def spread(self, name: str) -> float:
        """The standard deviation of a figure over the draws; NaN of a single one."""
        values = [getattr(verdict, name) for verdict in self.verdicts]
        return stdev(values) if len(values) > 1 else float("nan")


def compare(samplers: Iterable[Any], draw: Draw, reference: Reference, draws: int = 3) -> list[Quality]:
    """The quality of every sampler; draws have the same seeds for all of them, so that differences are the samplers'.

    Args:
        samplers: any, which `draw` knows.
        draw: `draw(sampler, seed)` gives samples in [-1, 1], the classes that were asked for or None, and how many
            evaluations of the network it took.
        reference: what judges.
        draws: how many.
    """
    found = []
    for sampler in samplers:
        verdicts, evaluations = [], 0
        for seed in range(draws):
            samples, labels, evaluations = draw(sampler, seed)
            verdicts.append(reference.judge(samples, labels))
        found.append(Quality(type(sampler).__name__, evaluations, tuple(verdicts)))
    return found


def plot_qualities(qualities: Sequence[Quality], floor: Verdict) -> Figure:
    """Evaluations against the two distances, a line for each kind of sampler, with the spread over draws.

    Args:
        qualities: of all samplers.
        floor: of real samples that were held out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(11.5, 3.8), layout="constrained")
    names = {"frechet": "Frechet distance", "sliced": "sliced Wasserstein distance"}
    for ax, (name, title) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for sampler in dict.fromkeys(quality.sampler for quality in qualities):
            line = sorted((each for each in qualities if each.sampler == sampler), key=lambda each: each.evaluations)
            means, spreads = ([f(each, name) for each in line] for f in (Quality.mean, Quality.spread))
            at = [each.evaluations for each in line]
            ax.errorbar(at, means, spreads, label=sampler, marker="o", markersize=4, linewidth=1, capsize=3)
        ax.axhline(getattr(floor, name), color="0.5", linestyle=":", label="held-out real samples")
        ax.set(xscale="log", xlabel="evaluations of the network", title=title)
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure
