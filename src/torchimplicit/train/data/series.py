"""What data modules of irregular series share: what a model sees of them, and what it shall predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import require
from torchimplicit.nn import Series
from torchimplicit.train.data.base import DataError, RecipeData, Splits

TASKS = ("extrapolation", "interpolation")


class SeriesBatch(NamedTuple):
    """Some series.

    Attributes:
        seen: what the model sees.
        target: what it shall predict.
        label: of each, `(B,)`; NaN where there are none.
    """

    seen: Series
    target: Series
    label: Tensor


class SeriesRows(Dataset):
    """Series of which a model sees a part.

    Args:
        series: all that is known.
        label: of each, `(N,)`.
        cut: what lies before this time is seen, and what lies at it and later is to be predicted; None for none.
        share: without a cut, the share of a series' times that is seen; all are to be predicted.
        fresh: draw these times anew whenever they are asked for.
    """

    def __init__(
        self, series: Series, label: Tensor, cut: float | None = None, share: float = 1.0, fresh: bool = False
    ):
        """Keeps the series."""
        self.series, self.label, self.cut, self.share, self.fresh = series, label, cut, share, fresh
        self._rank = torch.rand(series.times.shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: int) -> SeriesBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SeriesBatch:
        """A whole batch at once."""
        rows = torch.as_tensor(indices)
        series, label = self.series[rows], self.label[rows]
        if self.cut is not None:
            return SeriesBatch(series.before(self.cut), series.since(self.cut), label)
        if self.share == 1:
            return SeriesBatch(series, series, label)
        rank = torch.rand(series.times.shape) if self.fresh else self._rank[rows, : series.times.shape[1]]
        return SeriesBatch(series.at(_first(rank, series, self.share)), series, label)


def _first(rank: Tensor, series: Series, share: float) -> Tensor:
    """Which times are seen: a series' first one, where a path starts, and of all the share with the least rank."""
    kept = (series.mask.any(2).sum(1, keepdim=True) * share).ceil().clamp(min=1)
    rank = rank.where(series.mask.any(2), 2.0)
    rank = torch.where(series.times == series.times[:, :1], -1.0, rank)
    return (rank.argsort(1).argsort(1) < kept) & series.present


class SeriesData(RecipeData):
    """Base of the data modules of irregular series; a subclass adds `load`, which ends with `divided`.

    Args:
        task: "extrapolation": the first part of the time points that all series together have is seen, and the rest is
            to be predicted. "interpolation": a share of each series' times is seen, and all are to be predicted.
        seen: that part, or share.
        batch_size: see `RecipeData`.
        seed: see `RecipeData`.
    """

    variables: Sequence[str]

    def __init__(self, task: str = "extrapolation", seen: float = 0.5, batch_size: int = 50, seed: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.task, self.seen = task, seen
        require(self, "task", task in TASKS, f"one of {', '.join(TASKS)}")
        most = 1 if task == "interpolation" else 0.999
        require(self, "seen", 0 < seen <= most, "a part of the times: more than 0, and for extrapolation less than 1")

    def divided(self, series: Series, label: Tensor, parts: Sequence[Tensor], names: Sequence[str]) -> Splits:
        """The splits.

        Args:
            series: all series.
            label: of each, `(N,)`.
            parts: numbers of the series of train, validation and test.
            names: of all series, for messages.

        Raises:
            DataError: of a series nothing would be seen.
        """
        cut = self._cut(series) if self.task == "extrapolation" else None
        if cut is not None:
            unseen = (series.before(cut).observations == 0).nonzero()[:, 0].tolist()
            if unseen:
                raise DataError(
                    f"{type(self).__name__}(seen={self.seen}): series {names[unseen[0]]!r}, and {len(unseen) - 1} more "
                    f"of {len(names)}, have no observation before the time {cut:g}, from which on values are to be "
                    "predicted; expected one at least. Try to leave them out, or a larger part."
                )
        return Splits(
            *(
                SeriesRows(series[rows], label[rows], cut, self.seen, fresh=split == "train")
                for split, rows in zip(Splits._fields, parts, strict=True)
            )
        )

    def _cut(self, series: Series) -> float:
        """The first of the time points, of all series together, that is to be predicted."""
        times = series.times[series.present].unique()
        return float(times[min(int(len(times) * self.seen), len(times) - 1)])
