"""Pictures of reconstructions: in one window, with their figures and errors; masks; quality against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchimplicit import picture
from torchimplicit.core.options import is_count, is_number
from torchimplicit.imaging.metrics import psnr, ssim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAGNIFIED = 5  # by how much errors are drawn larger than the window
Zoom = tuple[int, int, int]  # row and column of the corner, and the edge, in pixels


def draw_comparison(
    truth: Tensor,
    images: Mapping[str, Tensor],
    *,
    data_range: float,
    window: tuple[float, float] | None = None,
    zoom: Zoom | None = None,
    target: Any = None,
) -> Figure:
    """The truth and what was made of it, side by side, their errors below: one window, one scale, one range.

    Under every image stand its PSNR and SSIM. Errors are of the magnitude, five times as large as the window shows
    them. Complex images are drawn and compared by magnitude.

    Args:
        truth: `(H, W)`, or colours `(3, H, W)`.
        images: by their names, in the order in which they stand: the input, its rivals, ours; like the truth.
        data_range: of PSNR and SSIM.
        window: what is drawn black and white; None for 0 and the range.
        zoom: (row, column, edge) of a square that is drawn enlarged, in a row of its own.
        target: a path or an open binary file to write to, or None.

    Raises:
        ValueError: an image is of another shape than the truth, or window or zoom are impossible.
        ImportError: matplotlib is not installed.
    """
    low, high = window = window or (0.0, float(data_range))
    columns = {"truth": _shown(truth)} | {name: _shown(each) for name, each in images.items()}
    _check(columns, window, zoom)
    reference = columns["truth"]
    height, width = reference.shape[-2:]
    edge = 2.0  # of an image, in inches
    tall = edge * height / width
    # A square that is enlarged is as wide as the images; titles take half an inch.
    figure = picture.new_figure(edge * len(columns) + 0.7, 2 * tall + (edge if zoom else 0) + 0.5)
    ratios = [tall, edge, tall] if zoom else [tall, tall]
    grid = figure.subplots(len(ratios), len(columns), squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    error = None
    for number, (name, image) in enumerate(columns.items()):
        _draw(grid[0, number], image, window)
        grid[0, number].set_title(f"{name}\n{_figures(image, reference, data_range) if number else ''}", fontsize=8)
        if zoom:
            _draw(grid[1, number], _cut(image, zoom), window)
            grid[0, number].add_patch(_frame(zoom))
        if number:
            size = (image - reference).abs()
            size = size.mean(0) if size.ndim == 3 else size
            error = grid[-1, number].imshow(size.numpy(), cmap="magma", vmin=0, vmax=(high - low) / MAGNIFIED)
    grid[-1, 0].text(0.5, 0.5, f"error x{MAGNIFIED}", ha="center", va="center", fontsize=8)
    if error is not None:
        figure.colorbar(error, ax=grid[-1, 1:].tolist(), location="right", shrink=0.9).ax.tick_params(labelsize=7)
    return picture.save(figure, target)


def draw_masks(masks: Mapping[str, Tensor], *, target: Any = None) -> Figure:
    """Masks of k-space, `(H, W)` or `(W,)` each, with the acceleration that they come to: points over points taken.

    Args:
        masks: by their names.
        target: a path or an open binary file to write to, or None.

    Raises:
        ValueError: a mask is of another shape or not bool.
        ImportError: matplotlib is not installed.
    """
    if not masks:
        raise ValueError("draw_masks: got no mask, expected one at least")
    figure = picture.new_figure(2.2 * len(masks) + 0.3, 2.6)
    for axes, (name, mask) in zip(figure.subplots(1, len(masks), squeeze=False)[0], masks.items(), strict=True):
        if mask.dtype != torch.bool or mask.ndim not in (1, 2) or not mask.numel():
            raise ValueError(
                f"draw_masks({name!r}): got {mask.dtype} {tuple(mask.shape)}, expected bool (H, W) or (W,)"
            )
        taken = int(mask.sum())
        shown = mask.expand(mask.shape[-1], -1) if mask.ndim == 1 else mask
        axes.imshow(shown.cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        rate = f"{mask.numel() / taken:.2f}x" if taken else "takes nothing"
        axes.set_title(f"{name}\n{rate}", fontsize=8)
        axes.set_axis_off()
    return picture.save(figure, target)


def draw_steps(
    curves: Mapping[str, tuple[Tensor, Tensor]], *, trained: Mapping[str, int] | None = None, target: Any = None
) -> Figure:
    """Residual and PSNR against steps, and where training stopped: what is trained for a depth is good at that depth.

    Source: D. Gilton, G. Ongie, R. Willett, arXiv 2102.07944, figure 3.

    Args:
        curves: by name: residuals and PSNR in decibels after every step, `(steps,)` each, or `(samples, steps)`, of
            which the median is drawn. A step that is not finite leaves a gap.
        trained: by the same names, the number of steps for which an unrolled network was trained: drawn as a line.
        target: a path or an open binary file to write to, or None.

    Raises:
        ValueError: curves of other shapes, or a depth of no curve.
        ImportError: matplotlib is not installed.
    """
    trained = dict(trained or {})
    if not curves or set(trained) - set(curves):
        raise ValueError(
            f"draw_steps: got curves {sorted(curves)} and depths of {sorted(trained)}, expected a curve each"
        )
    for name, pair in curves.items():
        if len(pair) != 2 or pair[0].shape != pair[1].shape or pair[0].ndim not in (1, 2) or not pair[0].numel():
            raise ValueError(f"draw_steps({name!r}): expected residuals and PSNR of one shape, (steps,)")
    for name, depth in trained.items():
        if not is_count(depth):
            raise ValueError(f"draw_steps(trained[{name!r}]={depth!r}): expected an integer >= 1")
    figure = picture.new_figure(9.0, 3.6)
    axes = figure.subplots(1, 2)
    colours = (picture.BLUE, picture.ORANGE, picture.GREY, picture.RED, picture.YELLOW)
    for number, (name, pair) in enumerate(curves.items()):
        colour = colours[number % len(colours)]
        for each, values in zip(axes, pair, strict=True):
            middle = (values.median(0).values if values.ndim == 2 else values).detach().double().cpu()
            middle = middle.where(middle.isfinite(), torch.nan)
            each.plot(range(1, len(middle) + 1), middle.numpy(), color=colour, lw=1.8, label=name)
            if name in trained:
                each.axvline(trained[name], color=colour, ls="--", lw=1.0)
    axes[0].set_yscale("log")
    picture.tidy(axes[0], "Residual", "step", "relative residual")
    picture.tidy(axes[1], "Quality", "step", "PSNR, dB")
    if trained:
        axes[0].plot([], [], color=picture.GREY, ls="--", lw=1.0, label="trained depth")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")  # where no residual comes at first
    return picture.save(figure, target)


def _shown(image: Tensor) -> Tensor:
    """What is drawn of an image: its magnitude, in float64."""
    image = image.detach().cpu()
    return image.abs().double() if image.is_complex() else image.double()


def _check(columns: Mapping[str, Tensor], window: Sequence[float], zoom: Zoom | None) -> None:
    shape = tuple(columns["truth"].shape)
    if len(columns) < 2 or not (len(shape) == 2 or (len(shape) == 3 and shape[0] == 3)):
        raise ValueError(
            f"draw_comparison: got a truth {shape}, {len(columns) - 1} images; expected (H, W) or (3, H, W)"
        )
    for name, image in columns.items():
        if tuple(image.shape) != shape:
            raise ValueError(f"draw_comparison({name!r}): got {tuple(image.shape)}, expected {shape} as the truth")
    if len(window) != 2 or not all(map(is_number, window)) or not window[0] < window[1]:
        raise ValueError(f"draw_comparison(window={window}): expected (low, high), low < high")
    if zoom is not None:
        row, column, edge = zoom
        if min(row, column) < 0 or edge < 2 or row + edge > shape[-2] or column + edge > shape[-1]:
            raise ValueError(f"draw_comparison(zoom={zoom}): expected (row, column, edge) within {shape[-2:]}")


def _figures(image: Tensor, truth: Tensor, data_range: float) -> str:
    """PSNR and SSIM in words."""
    said = f"{psnr(image[None], truth[None], data_range=data_range).item():.2f} dB"
    if min(truth.shape[-2:]) < 11:  # smaller than the window of SSIM
        return said
    return f"{said}, {ssim(image[None], truth[None], data_range=data_range).item():.3f}"


def _draw(axes: Any, image: Tensor, window: tuple[float, float]) -> None:
    low, high = window
    if image.ndim == 3:
        axes.imshow(((image - low) / (high - low)).clamp(0, 1).movedim(0, -1).numpy(), interpolation="nearest")
    else:
        axes.imshow(image.numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _cut(image: Tensor, zoom: Zoom) -> Tensor:
    row, column, edge = zoom
    return image[..., row : row + edge, column : column + edge]


def _frame(zoom: Zoom) -> Any:
    from matplotlib.patches import Rectangle

    row, column, edge = zoom
    return Rectangle((column - 0.5, row - 0.5), edge, edge, fill=False, edgecolor=picture.ORANGE, linewidth=0.8)
