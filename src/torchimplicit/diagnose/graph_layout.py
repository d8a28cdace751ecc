"""Where to draw the nodes of a gradient graph: layers from left to right, with few crossings inside each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchimplicit.diagnose.graph import GradientGraph

SWEEPS = 12
NODE, BEND = 1.0, 0.4  # room that a node takes up and down, and the bend of an edge
BENT = 2.0  # edges up to this long bend around the nodes between their ends; longer ones go straight
ROW = 64.0  # columns in a row of the picture; a longer graph goes on in the next row, like a text

Point = tuple[float, float]


@dataclass(frozen=True)
class Placed:
    """A graph's coordinates.

    Attributes:
        nodes: coordinates of every node.
        paths: every edge as a line through two or more points; one that leaves its row as two short ends.
        width: extent across.
        height: extent up and down.
    """

    nodes: list[Point]
    paths: list[list[Point]]
    width: float
    height: float


def place(graph: GradientGraph) -> Placed:
    """Places a graph: columns one apart, saved memory half a column before the operation that uses it.

    Within a column, nodes go to the mean height of their neighbours, as far as the room that each takes allows
    (the barycentre method of Sugiyama, in sweeps to and fro). Short edges get invisible nodes in columns they cross.
    """
    xs = [-node.depth - (0.5 if node.kind == "saved" else 0.0) for node in graph.nodes]
    chains: list[list[int]] = []
    columns = sorted(set(xs))
    for start, end in graph.edges:
        between = [x for x in columns if xs[start] < x < xs[end]] if xs[end] - xs[start] <= BENT else []
        chains.append([start, *range(len(xs), len(xs) + len(between)), end])
        xs += between
    heights = _heights(xs, chains, len(graph.nodes))
    return _in_rows(list(zip(xs, heights, strict=True)), chains, len(graph.nodes))


def _heights(xs: list[float], chains: list[list[int]], nodes: int) -> list[float]:
    columns: dict[float, list[int]] = {}
    for i, x in enumerate(xs):
        columns.setdefault(x, []).append(i)
    neighbours: list[list[int]] = [[] for _ in xs]
    for chain in chains:
        for start, end in pairwise(chain):
            neighbours[start].append(end)
            neighbours[end].append(start)
    heights = [0.0] * len(xs)
    for column in columns.values():
        for rank, i in enumerate(column):
            heights[i] = rank - (len(column) - 1) / 2
    for sweep in range(SWEEPS):
        for x in sorted(columns, reverse=sweep % 2 == 0):
            wishes = [(_mean([heights[j] for j in neighbours[i]] or [heights[i]]), i) for i in columns[x]]
            wishes.sort()
            sizes = [NODE if i < nodes else BEND for _, i in wishes]
            for (_, i), height in zip(wishes, _apart([wish for wish, _ in wishes], sizes), strict=True):
                heights[i] = height
    return heights


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _apart(wishes: list[float], sizes: list[float]) -> list[float]:
    """Heights in this order with room for these sizes, nearest to the wishes in least squares (pooling neighbours)."""
    offsets = [after - size / 2 for after, size in zip(accumulate(sizes), sizes, strict=True)]
    blocks: list[tuple[float, int]] = []  # mean of the wishes less their offset, count
    for offset, wish in zip(offsets, wishes, strict=True):
        mean, count = wish - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        blocks.append((mean, count))
    levels = [mean for mean, count in blocks for _ in range(count)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]


def _in_rows(points: list[Point], chains: list[list[int]], count: int) -> Placed:
    """Breaks a long graph into rows, one below the other."""
    left = min(x for x, _ in points)
    span = max(x for x, _ in points) - left
    rows = max(1, ceil(span / ROW))
    length = span / rows + 1e-9
    row = [int((x - left) // length) for x, _ in points]
    moved: list[Point] = [(0.0, 0.0)] * len(points)
    top = 0.0
    for r in range(rows):
        inside = [i for i in range(len(points)) if row[i] == r]
        high = max((points[i][1] for i in inside), default=0.0)
        low = min((points[i][1] for i in inside), default=0.0)
        for i in inside:
            moved[i] = points[i][0] - left - r * length, points[i][1] - high + top
        top -= high - low + 3
    paths: list[list[Point]] = []
    for chain in chains:
        piece = [moved[chain[0]]]
        for before, after in pairwise(chain):
            (x, y), (to_x, to_y) = moved[before], moved[after]
            if row[before] != row[after]:  # leaves this row: a short end here and one there
                paths.append([*piece, (x + 0.8, y)])
                piece = [(to_x - 0.8, to_y)]
            piece.append((to_x, to_y))
        paths.append(piece)
    return Placed(moved[:count], paths, length, -top - 3)
