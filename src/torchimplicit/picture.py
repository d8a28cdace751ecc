"""What the pictures share: matplotlib, imported when a picture is asked for, and one look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, YELLOW, GREY, RED = "#3465a4", "#d9730d", "#fbd116", "#8a8f98", "#c01c28"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, known to no window system and to no global state.

    Raises:
        ImportError: matplotlib is not installed; names the extra that brings it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which is not installed; try: pip install 'torchimplicit[train]' or "
            "'torchimplicit[imaging]'"
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def tidy(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels, a light grid and no frame above and to the right."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, target: Any) -> Figure:
    """Writes the figure to a path or an open binary file, unless the target is None; returns the figure."""
    if target is not None:
        figure.savefig(target)
    return figure


def in_bytes(count: float) -> str:
    """A number of bytes in words: 640 B, 12.5 KB, 3.2 MB (1 KB = 1000 B)."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
