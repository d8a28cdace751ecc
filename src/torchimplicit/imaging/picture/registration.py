"""Pictures of registrations: one image on the other, how space is bent, where it folds, how labels overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit import picture
from torchimplicit.core.options import is_count, is_number
from torchimplicit.imaging.register.warp import det_jacobian, identity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SQUARES = 8  # of a checkerboard along the longer edge
LINES = 24  # of a deformed grid, likewise
VOLUMES = 4.0  # colours of det J end at a quarter and at four times a voxel's volume
EDGE = 2.4  # inches, of the longer edge of a panel


def draw_alignment(
    fixed: Tensor,
    moving: Mapping[str, Tensor],
    *,
    spacing: Sequence[float] | None = None,
    target: Any = None,
) -> Figure:
    """How images lie on a fixed one, a row each: a checkerboard of the two, and both in colours.

    Where they lie on each other edges go on from square to square of the checkerboard. In colours the fixed image is
    magenta and the other one green, so that what is alike is grey. Each is drawn from its own 1st to its 99th
    percentile.

    Args:
        fixed: `(H, W)`, or a volume `(X, Y, Z)` whose axes point to the right, anterior, superior (RAS+), of which the
            three planes through the middle are drawn, the right to the right.
        moving: by their names, on the grid of the fixed one: as they came, and as they were warped.
        spacing: edges of a voxel; None is 1.
        target: a path or an open binary file to write to, or None.

    Raises:
        ValueError: an image is of another shape than the fixed one, or the edges are impossible.
        ImportError: matplotlib is not installed.
    """
    planes = _planes("draw_alignment", fixed, spacing)
    if not moving:
        raise ValueError("draw_alignment: got no moving image, expected one at least")
    for name, image in moving.items():
        if image.shape != fixed.shape:
            raise ValueError(
                f"draw_alignment({name!r}): got {tuple(image.shape)}, expected {tuple(fixed.shape)} as the fixed image"
            )
    figure, grid = _panels(len(moving), [*planes, *planes], [plane.title for plane in planes] * 2)
    one = _between(fixed)
    for row, (name, image) in zip(grid, moving.items(), strict=True):
        other = _between(image)
        for number, plane in enumerate(planes):
            a, b = plane.of(one), plane.of(other)
            _show(row[number], torch.where(_board(a.shape, plane.edges), a, b), plane, cmap="gray", vmin=0, vmax=1)
            _show(row[len(planes) + number], torch.stack((a, b, a), -1), plane)
        row[0].text(-0.04, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=9)
    return picture.save(figure, target)


def draw_deformation(
    displacement: Tensor,
    *,
    image: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    lines: int = LINES,
    linear: bool = True,
    target: Any = None,
) -> Figure:
    """How a field bends space: where it takes the lines of a grid, and the volume that every voxel becomes.

    Of a volume's vectors a plane shows the two components that lie in it. Volumes are `det_jacobian`: blue what
    shrinks, red what grows, on a scale of ratios that ends at a quarter and at four. Voxels that fold, where it is not
    positive, are black, and counted.

    Args:
        displacement: `(2, H, W)` or `(3, X, Y, Z)`, in voxels; of volumes see `draw_alignment`.
        image: the fixed image, drawn below the grid; or None.
        spacing: edges of a voxel; None is 1.
        lines: along the longer edge.
        linear: False takes the nearest affine map off before the lines are drawn, so that they stay on the image and
            show the bending alone. Volumes are always those of the whole field.
        target: a path or an open binary file to write to, or None.

    Raises:
        ValueError: the field is none, the image is of another grid, or an option is impossible.
        ImportError: matplotlib is not installed.
    """
    if not is_count(lines, 2):
        raise ValueError(f"draw_deformation(lines={lines!r}): expected an integer >= 2")
    u = displacement.detach().cpu().double()
    if image is not None and image.shape != u.shape[1:]:
        raise ValueError(
            f"draw_deformation(image): got {tuple(image.shape)}, expected {tuple(u.shape[1:])} as the field's grid"
        )
    J = det_jacobian(u[None])[0]
    planes = _planes("draw_deformation", J, spacing)
    below = None if image is None else _between(image)
    figure, grid = _panels(1, [*planes, *planes], [plane.title for plane in planes] * 2)
    for plane, bent, volume in zip(planes, grid[0], grid[0][len(planes) :], strict=False):
        _draw_grid(bent, u if linear else _bending(u), plane, lines, below)
        shown = _draw_volumes(volume, plane.of(J), plane)
    folds = int((~(J > 0)).sum())
    words = f"det J from {float(J.min()):.2f} to {float(J.max()):.2f}, {folds} of {J.numel()} voxels fold"
    figure.suptitle(words, fontsize=9, color=picture.RED if folds else "black")
    bar = figure.colorbar(shown, ax=grid[0].tolist(), location="right", shrink=0.8, ticks=[0.25, 0.5, 1, 2, 4])
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"], fontsize=7)
    bar.ax.minorticks_off()
    return picture.save(figure, target)


def draw_overlaps(overlaps: Mapping[str, Tensor], *, target: Any = None) -> Figure:
    """Boxes of overlaps, Dice or others in [0, 1], one a method: quartiles and middle, every pair a point.

    Args:
        overlaps: by the name of the method, `(pairs,)` each; NaN are left out.
        target: a path or an open binary file to write to, or None.

    Raises:
        ValueError: there is none, or they are of other shapes.
        ImportError: matplotlib is not installed.
    """
    values = {name: each.detach().double().cpu() for name, each in overlaps.items()}
    if not values or any(each.ndim != 1 or not bool(each.isfinite().any()) for each in values.values()):
        raise ValueError("draw_overlaps: expected figures (pairs,) of every method, some of them finite")
    figure = picture.new_figure(1.3 + 1.5 * len(values), 4.0)
    axes = figure.subplots()
    for number, each in enumerate(values.values(), 1):
        each = each[each.isfinite()]
        spread = torch.linspace(-0.12, 0.12, len(each), device="cpu") if len(each) > 1 else torch.zeros(1, device="cpu")
        axes.plot((number + spread).numpy(), each.numpy(), ".", color=picture.BLUE, alpha=0.5, markersize=5)
        middle = {"color": picture.ORANGE, "linewidth": 2}
        axes.boxplot(each.numpy(), positions=[number], widths=0.5, showfliers=False, medianprops=middle)
    names = [f"{name}\n{float(each.nanmean()):.3f}" for name, each in values.items()]
    axes.set_xticks(range(1, len(values) + 1), names, fontsize=8)
    picture.tidy(axes, "", "mean below", "Dice")
    return picture.save(figure, target)


class _Plane(NamedTuple):
    """A plane through the middle of a volume, or a picture.

    Attributes:
        title: of a panel.
        axis: of the volume, across the plane; None for a picture.
        edges: of a pixel, along the rows' and columns' directions of the panel.
        size: of the panel in pixels.
    """

    title: str
    axis: int | None
    edges: tuple[float, float]
    size: tuple[int, int]

    def of(self, x: Tensor) -> Tensor:
        """Its part of values `(*S, ...)` of all voxels, rows from top to bottom."""
        if self.axis is None:
            return x
        return x.select(self.axis, x.shape[self.axis] // 2).transpose(0, 1).flip(0)

    def components(self, u: Tensor) -> Tensor:
        """Displacements along its rows and columns, `(2, rows, columns)`, of a field `(D, *S)`."""
        if self.axis is None:
            return u
        across, up = [axis for axis in range(3) if axis != self.axis]
        return torch.stack((-self.of(u[up]), self.of(u[across])))


def _planes(owner: str, x: Tensor, spacing: Sequence[float] | None) -> list[_Plane]:
    shape = tuple(x.shape)
    edges = [1.0] * len(shape) if spacing is None else list(spacing)
    if len(shape) not in (2, 3) or not x.numel():
        raise ValueError(f"{owner}: got {shape}, expected (H, W) or (X, Y, Z)")
    if len(edges) != len(shape) or not all(is_number(edge) and edge > 0 for edge in edges):
        raise ValueError(f"{owner}(spacing={spacing!r}): expected {len(shape)} numbers > 0")
    if len(shape) == 2:
        return [_Plane("", None, (edges[0], edges[1]), shape)]
    found = []
    for axis, title in enumerate(("sagittal", "coronal", "axial")):
        across, up = [each for each in range(3) if each != axis]
        found.append(_Plane(title, axis, (edges[up], edges[across]), (shape[up], shape[across])))
    return found


def _panels(rows: int, planes: Sequence[_Plane], titles: Sequence[str]) -> tuple[Figure, Any]:
    """A figure with a panel a plane in every row, all on one scale of length."""
    sizes = [[n * edge for n, edge in zip(plane.size, plane.edges, strict=True)] for plane in planes]
    scale = EDGE / max(map(max, sizes))
    widths = [scale * width for _, width in sizes]
    height = scale * max(height for height, _ in sizes)
    figure = picture.new_figure(sum(widths) + 0.15 * len(widths) + 0.6, rows * (height + 0.3) + 0.3)
    grid = figure.subplots(rows, len(planes), squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    return figure, grid


def _between(image: Tensor) -> Tensor:
    """Values from the 1st to the 99th percentile as [0, 1]."""
    x = image.detach().cpu().double()
    finite = x[x.isfinite()].sort().values
    if not len(finite):
        return torch.zeros_like(x)
    low, high = finite[len(finite) // 100], finite[-1 - len(finite) // 100]
    return ((x - low) / (high - low if high > low else 1.0)).clamp(0, 1).nan_to_num(0)


def _board(shape: Sequence[int], edges: Sequence[float]) -> Tensor:
    square = max(n * edge for n, edge in zip(shape, edges, strict=True)) / SQUARES
    rows, columns = (
        (torch.arange(n, device="cpu") * edge / square).long() for n, edge in zip(shape, edges, strict=True)
    )
    return (rows[:, None] + columns) % 2 == 0


def _show(axes: Any, x: Tensor, plane: _Plane, **options: Any) -> Any:
    return axes.imshow(x.numpy(), interpolation="nearest", aspect=plane.edges[0] / plane.edges[1], **options)


def _bending(u: Tensor) -> Tensor:
    """A field less the affine one that is nearest to it, by least squares."""
    x = identity(u.shape[1:], u).flatten(1)
    x = torch.cat((x, torch.ones_like(x[:1])))
    y = u.flatten(1)
    return (y - torch.linalg.lstsq(x.mT, y.mT).solution.mT @ x).reshape(u.shape)


def _draw_grid(axes: Any, u: Tensor, plane: _Plane, lines: int, below: Tensor | None) -> None:
    along = plane.components(u)
    height, width = along.shape[1:]
    ground = torch.ones(height, width, device="cpu") if below is None else plane.of(below)
    _show(axes, ground, plane, cmap="gray", vmin=0, vmax=1)
    rows = torch.arange(height, device="cpu").view(-1, 1) + along[0]
    columns = torch.arange(width, device="cpu") + along[1]
    step = max(n * edge for n, edge in zip((height, width), plane.edges, strict=True)) / lines
    look: Any = {"color": picture.BLUE if below is None else picture.YELLOW, "linewidth": 0.5}
    for i in range(0, height, max(1, round(step / plane.edges[0]))):
        axes.plot(columns[i].numpy(), rows[i].numpy(), **look)
    for j in range(0, width, max(1, round(step / plane.edges[1]))):
        axes.plot(columns[:, j].numpy(), rows[:, j].numpy(), **look)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def _draw_volumes(axes: Any, J: Tensor, plane: _Plane) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    colours = colormaps["RdBu_r"].with_extremes(bad="black")
    J = J.where(J > 0, torch.nan)  # what is no number is black
    return _show(axes, J.clamp(1 / VOLUMES, VOLUMES), plane, cmap=colours, norm=LogNorm(1 / VOLUMES, VOLUMES))
