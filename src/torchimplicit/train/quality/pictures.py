"""Pictures of images in rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strips(rows: Tensor, titles: Sequence[str] = (), names: Sequence[str] = ()) -> Figure:
    """Square grey images in strips: one panel for each entry, a row for each sample, from left to right what is next.

    Args:
        rows: `(panels, times, count, side**2)`, black at -1 and white at 1.
        titles: of the panels.
        names: of the rows, the same in every panel.
    """
    from matplotlib.figure import Figure

    panels, times, count, numbers = rows.shape
    side = isqrt(numbers)
    figure = Figure(figsize=(0.45 * times * panels + 0.3 * panels, 0.45 * count + 0.5), layout="constrained")
    for number, ax in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        images = rows.new_ones(count, times, side + 1, side + 1)  # a gap beside each
        images[..., :side, :side] = rows[number].transpose(0, 1).reshape(count, times, side, side)
        wall = images.transpose(1, 2).reshape(count * (side + 1), times * (side + 1))
        ax.imshow(wall.cpu().numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(titles[number] if titles else "")
        ax.set_xticks([])
        ax.set_yticks([(place + 0.5) * (side + 1) for place in range(len(names))], names, fontsize=8)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure
