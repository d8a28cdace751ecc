"""The picture of two acquisitions of a moving object: how well they match, and what moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchimplicit import picture
from torchimplicit.imaging.joint import Joint
from torchimplicit.imaging.register import det_jacobian, identity, warp

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EVERY = 6  # lines of the grid that are drawn
SPREAD = 0.5  # of det J about 1


def draw_pair(found: Joint, truth: Tensor | None = None, *, target: Any = None) -> Figure:
    """The first two samples of a joint loss: images, their difference before and after, motion and det J.

    The motion is drawn as a grid whose points are moved by it, det J with what is turned over in black.

    Args:
        found: of a registration.
        truth: the true motion, `(B, 2, H, W)` in voxels, to be drawn beside it.
        target: a path or an open binary file to write to, or None.

    Raises:
        ImportError: matplotlib is not installed.
    """
    assert found.displacement is not None
    fixed, moving = (each.detach().abs().cpu() for each in found.image[:2])
    u = found.displacement[0].detach().float().cpu()
    moved = warp(moving[None, None].float(), u[None], interpolation="cubic")[0, 0]
    top, error = float(fixed.max()), 0.3 * float(fixed.max())
    plain = {"first": fixed, "second": moving, "second, in place": moved}
    errors = {"second - first": moving - fixed, "in place - first": moved - fixed}
    fields = {"motion found": u} | ({} if truth is None else {"true motion": truth[0].cpu()})
    figure = picture.new_figure(2 * 5 + 0.7, 4.8)
    grid = figure.subplots(2, 5, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, image) in zip(grid[0], plain.items(), strict=False):
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=top)
        axes.set_title(name, fontsize=8)
    for axes, (name, image) in zip(grid[0, 3:], errors.items(), strict=True):
        axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-error, vmax=error)
        axes.set_title(name, fontsize=8)
    for axes, (name, field) in zip(grid[1], fields.items(), strict=False):
        _draw_grid(axes, field)
        axes.set_title(name, fontsize=8)
    shown: Any = None
    for axes, (name, field) in zip(grid[1, 2:], fields.items(), strict=False):
        shown = _draw_volumes(axes, field)
        axes.set_title(f"det J, {name}", fontsize=8)
    figure.colorbar(shown, cax=grid[1, 4].inset_axes((0, 0.1, 0.07, 0.8))).ax.tick_params(labelsize=7)
    return picture.save(figure, target)


def _draw_grid(axes: Axes, u: Tensor) -> None:
    """Every sixth line of the grid, moved."""
    rows, columns = (u + identity(u.shape[1:], u)).numpy()
    for line in range(0, len(rows), EVERY):
        axes.plot(columns[line], rows[line], color=picture.BLUE, linewidth=0.5)
    for line in range(0, rows.shape[1], EVERY):
        axes.plot(columns[:, line], rows[:, line], color=picture.BLUE, linewidth=0.5)
    axes.set_aspect("equal")
    axes.invert_yaxis()


def _draw_volumes(axes: Axes, u: Tensor) -> Any:
    """Grown red, shrunk blue, turned over black."""
    volume = det_jacobian(u[None])[0]
    volume = torch.where(volume > 0, volume, torch.nan).numpy()
    shown = axes.imshow(volume, cmap="RdBu_r", vmin=1 - SPREAD, vmax=1 + SPREAD)
    shown.set_cmap(shown.get_cmap().with_extremes(bad="black"))
    return shown
