"""The picture of a gradient graph."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torchimplicit import picture
from torchimplicit.diagnose.graph_layout import Placed, place
from torchimplicit.picture import in_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchimplicit.diagnose.graph import GradientGraph

LABELLED = 30  # nodes up to which names and shapes are written
LOOKS = (  # kind, its words in the legend for one and for more, colour, marker, share of the diameter
    ("operation", "operation", "operations", picture.BLUE, "o", 0.8),
    ("saved", "saved tensor", "saved tensors", picture.YELLOW, "o", 1.1),
    ("leaf", "parameter or input", "parameters and inputs", "#d5d8dc", "s", 0.9),
)


def draw(graph: GradientGraph, target: Any) -> Figure:
    """Draws a graph; see `GradientGraph.plot`."""
    placed = place(graph)
    labelled = len(graph.nodes) <= LABELLED
    across, up = (1.25, 0.7) if labelled else (0.27, 0.27)
    wide = max(6.8, min(18.0, 1.5 + across * placed.width))
    high = max(2.4, min(16.0, 1.4 + up * placed.height))
    figure = picture.new_figure(wide, high)
    axes = figure.subplots()
    # A node is as large as the room between columns and rows lets it be.
    room = min((wide - 0.5) / (placed.width + 2), (high - 1.2) / (placed.height + 1.5))
    diameter = max(2.0, min(11.0, 72 * room * 0.6))
    _draw_edges(placed, axes)
    for kind, one, many, color, marker, share in LOOKS:
        chosen = [placed.nodes[i] for i, node in enumerate(graph.nodes) if node.kind == kind]
        if chosen:
            xs, ys = zip(*chosen, strict=True)
            label = f"{len(chosen)} {one if len(chosen) == 1 else many}"
            label += f" ({in_bytes(graph.bytes)})" if kind == "saved" else ""
            size = (share * diameter) ** 2
            style = {"c": color, "marker": marker, "edgecolors": "#333333", "lw": 0.4}
            axes.scatter(xs, ys, size, zorder=3, label=label, **style)
    if labelled:
        box = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.8}
        for point, node in zip(placed.nodes, graph.nodes, strict=True):
            below = (0, -0.5 * diameter - 3)
            style = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 7, "bbox": box}
            axes.annotate(node.label, point, below, zorder=2, **style)
    axes.set_xlim(-1, placed.width + 1)
    axes.set_ylim(-placed.height - 0.9, 0.6)
    axes.set_axis_off()
    axes.set_title(f"{_title(graph)} (inputs left, output right)", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, markerscale=7 / diameter)
    return picture.save(figure, target)


def _title(graph: GradientGraph) -> str:
    many = "" if graph.operations == 1 else "s"
    return f"Kept for the backward pass: {graph.operations} operation{many}, {graph.depth} deep"


def _draw_edges(placed: Placed, axes: Axes) -> None:
    """Edges as lines, fainter the longer they are."""
    from matplotlib.collections import LineCollection

    colors = []
    for path in placed.paths:
        longest = max(abs(b[0] - a[0]) for a, b in pairwise(path))
        colors.append((0.25, 0.25, 0.3, max(0.06, min(0.8, 1.6 / (1 + longest)))))
    axes.add_collection(LineCollection(placed.paths, colors=colors, linewidths=0.8, zorder=1))
