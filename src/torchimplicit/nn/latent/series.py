"""Batches of irregular series: every one with times of its own, and with holes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.nn.latent.series_checks import check_form, check_one, refuse, words


@dataclass(frozen=True, eq=False)
class Series:
    """A batch of irregular series, each with times of its own, padded to one length.

    No union of times is needed: what `odeint` takes as times of every sample's own is `times.mT`. A series may be
    without times, such as the part of one before its start; `Series.of`, which data come in by, refuses such.

    Args:
        times: when something was observed, `(B, T)` floating, strictly increasing in a row, and NaN behind its last.
        values: what was observed, `(B, T, C)` floating; whatever stands where nothing was is set to 0.
        mask: what was observed, `(B, T, C)` bool, False on padding.

    Raises:
        TypeError: not tensors of these kinds.
        ValueError: shapes that do not go together, times that do not increase, observations that are not finite or
            stand on padding; the series is named.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> nan = torch.nan
        >>> one = (
        ...     torch.tensor([0.0, 0.5, 2.0]),
        ...     torch.tensor([[1.0, nan], [nan, 3.0], [2.0, 2.0]]),
        ... )
        >>> other = torch.tensor([1.0]), torch.tensor([[5.0, nan]])
        >>> series = ti.nn.Series.of([one, other])
        >>> len(series), series.values.shape, series.observations.tolist()
        (2, torch.Size([2, 3, 2]), [4, 1])
        >>> series.before(1.0).lengths.tolist(), series.since(1.0).lengths.tolist()
        ([2, 0], [1, 1])
    """

    times: Tensor
    values: Tensor
    mask: Tensor

    def __post_init__(self):
        check_form(self.times, self.values, self.mask)
        object.__setattr__(self, "values", torch.where(self.mask, self.values, 0.0))

    @classmethod
    def of(cls, series: Iterable[Sequence[Tensor]]) -> Series:
        """Pads series of different lengths.

        Args:
            series: of each its times `(T,)` and values `(T, C)`, NaN where nothing was observed; or these and a mask
                `(T, C)`, with which NaN is an error where it says that something was.

        Raises:
            TypeError: not tensors of these kinds.
            ValueError: as the class; also a series without observations, and none at all.
        """
        rows = [check_one(number, each) for number, each in enumerate(series)]
        if not rows:
            raise ValueError("Series.of: got no series, expected at least one pair of times (T,) and values (T, C)")
        channels = [values.shape[1] for _, values, _ in rows]
        odd = next((number for number, count in enumerate(channels) if count != channels[0]), None)
        if odd is not None:
            refuse(odd, f"{channels[odd]} channels", f"{channels[0]}, as the first one has", "NaN for those it lacks")
        times, values, mask = zip(*rows, strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(
            pad(list(times), batch_first=True, padding_value=torch.nan), pad(list(values), batch_first=True),
            pad(list(mask), batch_first=True, padding_value=False),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, which: Any) -> Series:
        """Some of the series, without the padding that they do not need: by number, slice, list or tensor."""
        rows = torch.arange(len(self), device=self.times.device)[which].reshape(-1)
        longest = self._longest(self.lengths[rows])
        return Series(*(part[rows, :longest] for part in self._parts))

    @property
    def channels(self) -> int:
        """How many variables there are."""
        return self.values.shape[2]

    @property
    def present(self) -> Tensor:
        """Where there is a time, `(B, T)` bool; False is padding."""
        return ~self.times.isnan()

    @property
    def lengths(self) -> Tensor:
        """How many times each series has, `(B,)`."""
        return self.present.sum(1)

    @property
    def observations(self) -> Tensor:
        """How many observations each series has, `(B,)`."""
        return self.mask.flatten(1).sum(1)

    def to(self, *args: Any, **kwargs: Any) -> Series:
        """On another device, or in another floating dtype, as `Tensor.to` takes them."""
        times, values = self.times.to(*args, **kwargs), self.values.to(*args, **kwargs)
        if not (times.is_floating_point() and values.is_floating_point()):
            raise TypeError(f"Series.to: got {values.dtype}, expected a floating dtype; try torch.float32")
        return Series(times, values, self.mask.to(values.device))

    def pin_memory(self) -> Series:
        """In memory from which copies to an accelerator are fast; loaders of data call it."""
        return Series(*(part.pin_memory() for part in self._parts))

    def before(self, t: float | Tensor) -> Series:
        """What lies before a time; `t` is a number, or `(B,)`, one a series."""
        return self.at(self.times < self._cut(t))

    def since(self, t: float | Tensor) -> Series:
        """What lies at a time and behind it; `t` is a number, or `(B,)`, one a series."""
        return self.at(self.times >= self._cut(t))

    def at(self, kept: Tensor) -> Series:
        """What lies at the times that a mask `(B, T)` keeps; the others are gone."""
        if kept.dtype != torch.bool or kept.shape != self.times.shape:
            raise ValueError(f"Series.at: got {words(kept)}, expected a mask torch.bool {tuple(self.times.shape)}")
        kept = kept & self.present
        lengths = kept.sum(1)
        order = (~kept).to(torch.uint8).sort(dim=1, stable=True).indices[:, : self._longest(lengths)]
        here = torch.arange(order.shape[1], device=order.device) < lengths.unsqueeze(1)
        rows = torch.arange(len(self), device=order.device).unsqueeze(1)
        times, values, mask = (part[rows, order] for part in self._parts)
        return Series(times.where(here, torch.nan), values, mask & here.unsqueeze(2))

    def only(self, mask: Tensor) -> Series:
        """The observations that a mask `(B, T, C)` keeps, at times `(B, T)` that stay where none is kept."""
        if mask.dtype != torch.bool or mask.shape != self.mask.shape:
            raise ValueError(f"Series.only: got {words(mask)}, expected a mask like {words(self.mask)}")
        return Series(self.times, self.values, self.mask & mask)

    def union(self) -> Series:
        """The same observations at the union of all times, which all series then share; for comparison.

        Some models of others need one common list of times. It grows with the batch: mostly of times at which a series
        has no observation at all.
        """
        times = self.times[self.present].unique()
        shape = (len(self), len(times), self.channels)
        rows, columns = self.present.nonzero(as_tuple=True)
        at = torch.searchsorted(times, self.times[rows, columns])
        values, mask = self.values.new_zeros(shape), self.mask.new_zeros(shape)
        values = values.index_put((rows, at), self.values[rows, columns])
        return Series(times.expand(len(self), -1), values, mask.index_put((rows, at), self.mask[rows, columns]))

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.times, self.values, self.mask

    def _cut(self, t: float | Tensor) -> Tensor:
        cut = torch.as_tensor(t, dtype=self.times.dtype, device=self.times.device)
        if cut.shape not in ((), (len(self),)):
            raise ValueError(f"Series: got times of shape {tuple(cut.shape)}, expected a number or ({len(self)},)")
        return cut.reshape(-1, 1)

    def _longest(self, lengths: Tensor) -> int:
        """How many columns are needed: one at least, so that no shape is empty."""
        return max(1, int(lengths.max())) if len(lengths) else 1
