"""How far an image is from the true one: PSNR, SSIM and NRMSE of every sample, differentiable."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_count, is_number

By = Literal["magnitude", "difference"]
Window = Literal["gaussian", "uniform"]


def psnr(x: Tensor, truth: Tensor, *, data_range: float | Tensor, by: By | None = None, border: int = 0) -> Tensor:
    r"""Peak signal-to-noise ratio in decibels, $10 \log_{10}(R^2 / \operatorname{mean} |x - t|^2)$.

    A range belongs to every figure: for images in [0, 1] it is 1; for a reconstruction without a scale of its own it
    is usually `truth.abs().amax()`, of an image or of a volume, which are different figures.

    Args:
        x: images, `(B, ...)`, real or complex.
        truth: as `x`.
        data_range: `R`, a number > 0 or one a sample, `(B,)`.
        by: for complex images, which has no default: "magnitude" compares `|x|` with `|t|`, and is blind to phase;
            "difference" takes the modulus of `x - t`. None for real images.
        border: pixels left out on each side of the last two dimensions.

    Returns:
        `(B,)`; infinite where the two are the same, with a gradient of zero.

    Raises:
        TypeError: the images are integers, which wrap around when they are subtracted.
        ValueError: shapes, the range, `by` or `border` are impossible.

    Examples:
        >>> import torch
        >>> from torchimplicit import imaging
        >>> truth = torch.zeros(2, 1, 8, 8)
        >>> imaging.psnr(truth + 0.1, truth, data_range=1.0)
        tensor([20., 20.])
    """
    pair = _prepared("psnr", x, truth, by, border)
    scale = _scale("psnr", data_range, pair.x)
    error = (pair.x - pair.truth).abs().square().flatten(1).mean(1)
    same = error == 0
    return torch.where(same, torch.inf, 10 * (scale.square() / error.where(~same, 1.0)).log10())


def nrmse(x: Tensor, truth: Tensor, *, by: By | None = None, border: int = 0) -> Tensor:
    r"""Error relative to the truth, $\lVert x - t \rVert_2 / \lVert t \rVert_2$; its square is fastMRI's NMSE.

    Args:
        x: see `psnr`.
        truth: see `psnr`.
        by: see `psnr`.
        border: see `psnr`.

    Returns:
        `(B,)`; infinite or NaN where the truth is zero.

    Raises:
        TypeError: see `psnr`.
        ValueError: see `psnr`.
    """
    pair = _prepared("nrmse", x, truth, by, border)
    error, size = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (pair.x - pair.truth, pair.truth))
    return error / size


def ssim(
    x: Tensor,
    truth: Tensor,
    *,
    data_range: float | Tensor,
    by: By | None = None,
    border: int = 0,
    window: Window = "gaussian",
) -> Tensor:
    r"""Structural similarity in [-1, 1]: the mean over all windows that lie within the image, and over channels.

    $$\frac{(2 \mu_x \mu_t + c_1)(2 \sigma_{xt} + c_2)}{(\mu_x^2 + \mu_t^2 + c_1)(\sigma_x^2 + \sigma_t^2 + c_2)},
    \quad c_1 = (0.01 R)^2, \quad c_2 = (0.03 R)^2$$

    Two windows are in use, and give different figures. "gaussian" is that of the paper, and of scikit-image with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`: 11 pixels wide. "uniform" is 7 pixels wide with
    the covariance of a sample: what scikit-image does by default, and so fastMRI, with the maximum of the *volume* as
    the range. Channels are averaged, as with scikit-image's `channel_axis`.

    Source: Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, IEEE Trans. Image Processing 13 (2004), equation 13.

    Args:
        x: images, `(B, ..., H, W)`, real or complex; whatever stands before the last two dimensions is channels.
        truth: as `x`.
        data_range: see `psnr`.
        by: "magnitude" for complex images, which have no other SSIM here. None for real images.
        border: see `psnr`.
        window: "gaussian" or "uniform".

    Returns:
        `(B,)`.

    Raises:
        TypeError: see `psnr`.
        ValueError: see `psnr`; or an image is smaller than the window.
    """
    if window not in ("gaussian", "uniform"):
        raise ValueError(f"ssim(window={window!r}): expected 'gaussian' (Wang et al.) or 'uniform' (fastMRI)")
    if by == "difference":
        raise ValueError("ssim(by='difference'): complex images have no such SSIM; try by='magnitude'")
    pair = _prepared("ssim", x, truth, by, border)
    if pair.x.ndim < 3:
        raise ValueError(f"ssim: got images of shape {tuple(pair.x.shape)}, expected (B, ..., H, W)")
    kernel, correction = _window(window, pair.x)
    if min(pair.x.shape[-2:]) < len(kernel):
        raise ValueError(
            f"ssim: got {pair.x.shape[-2]} x {pair.x.shape[-1]} pixels, expected at least {len(kernel)} each way; "
            "try a smaller border, or psnr"
        )
    scale = _scale("ssim", data_range, pair.x).view(-1, *[1] * (pair.x.ndim - 1))
    return _similarity(pair, kernel, correction, (0.01 * scale).square(), (0.03 * scale).square()).flatten(1).mean(1)


class _Pair(NamedTuple):
    x: Tensor
    truth: Tensor


def _similarity(pair: _Pair, kernel: Tensor, correction: float, c1: Tensor, c2: Tensor) -> Tensor:
    """The map of similarities, of every window."""
    # (Co)variances do not notice an offset, and without one they lose no digits: CT has values of -1000.
    offset = pair.truth.mean((-2, -1), keepdim=True)
    x, t = pair.x - offset, pair.truth - offset
    mx, mt, xx, tt, xt = (_smooth(each, kernel) for each in (x, t, x * x, t * t, x * t))
    vx, vt, cov = (correction * each for each in (xx - mx * mx, tt - mt * mt, xt - mx * mt))
    mx, mt = mx + offset, mt + offset
    return (2 * mx * mt + c1) * (2 * cov + c2) / ((mx * mx + mt * mt + c1) * (vx + vt + c2))


def _window(kind: Window, like: Tensor) -> tuple[Tensor, float]:
    """Weights along one axis, and what makes the variance of a window that of its sample."""
    if kind == "uniform":
        return torch.full((7,), 1 / 7, dtype=like.dtype, device=like.device), 49 / 48
    weights = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64, device="cpu") / 1.5) ** 2)
    return (weights / weights.sum()).to(like), 1.0


def _smooth(x: Tensor, kernel: Tensor) -> Tensor:
    """Means over all windows that lie within the image."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = torch.nn.functional.conv2d(flat, kernel.view(1, 1, -1, 1))
    flat = torch.nn.functional.conv2d(flat, kernel.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])


def _prepared(owner: str, x: Tensor, truth: Tensor, by: By | None, border: int) -> _Pair:
    """The two images as they are compared."""
    for name, value in (("x", x), ("truth", truth)):
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{owner}({name}): got {got}, expected a tensor of floats; try .to(torch.float32)")
    if x.shape != truth.shape or x.ndim < 2 or not x.numel():
        raise ValueError(
            f"{owner}: got x {tuple(x.shape)} and truth {tuple(truth.shape)}, expected two batches of one shape "
            "(B, ...); try x[None] for a single image"
        )
    if by not in (None, "magnitude", "difference"):
        raise ValueError(f"{owner}(by={by!r}): expected 'magnitude' or 'difference'")
    if (x.is_complex() or truth.is_complex()) and by is None:
        raise ValueError(
            f"{owner}(by=None): got {x.dtype} and {truth.dtype}, expected by='magnitude' (blind to phase) or "
            "by='difference': they are different figures"
        )
    if by == "magnitude":
        x, truth = x.abs(), truth.abs()
    if not is_count(border, 0) or (border and (x.ndim < 3 or 2 * border >= min(x.shape[-2:]))):
        raise ValueError(f"{owner}(border={border!r}): expected pixels >= 0 that leave some of {tuple(x.shape)}")
    cut = (..., slice(border, -border), slice(border, -border)) if border else ...
    return _Pair(x[cut], truth[cut])


def _scale(owner: str, data_range: float | Tensor, like: Tensor) -> Tensor:
    """The range of every sample, `(B,)` or `(1,)`."""
    known = isinstance(data_range, Tensor) and data_range.shape in ((), (1,), (len(like),))
    if not known and not is_number(data_range):
        got = tuple(data_range.shape) if isinstance(data_range, Tensor) else repr(data_range)
        raise ValueError(f"{owner}(data_range): got {got}, expected a number > 0, or one a sample, ({len(like)},)")
    scale = torch.as_tensor(data_range, dtype=like.dtype.to_real(), device=like.device).reshape(-1)
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(
            f"{owner}(data_range={data_range!r}): expected finite numbers > 0; try truth.abs().amax() of the volume"
        )
    return scale
