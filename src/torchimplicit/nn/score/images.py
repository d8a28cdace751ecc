"""Looking at what a score model is given: images, their range, their classes, times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core import transforms
from torchimplicit.core.options import require_dtype


def check_images(
    owner: str,
    x: Any,
    shape: Sequence[int],
    interval: tuple[float, float] | None,
    finite: bool = False,
    like: nn.Module | None = None,
) -> None:
    """Refuses what are no samples for a model.

    Args:
        owner: who asks, for messages.
        x: samples.
        shape: of one.
        interval: what values lie in; None for no bounds.
        finite: whether NaN is refused without bounds, too: where nothing else would tell of such samples.
        like: the model, whose dtype samples must have; None for any.

    Raises:
        TypeError: no tensor of a real floating dtype, or of another one than the model.
        ValueError: another shape, values outside of the interval, or NaN.
    """
    if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[1:] != torch.Size(shape):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{owner}: got {got}, expected samples of shape (B, {', '.join(map(str, shape))})")
    if not x.is_floating_point():
        raise TypeError(
            f"{owner}: got samples of {x.dtype}, expected floating ones; grey levels are spread out first: try "
            "model.bits_per_dimension(images, levels=256) for a likelihood, (images + torch.rand(images.shape)) / 128 "
            "- 1 for a loss"
        )
    if like is not None:
        require_dtype(owner, x, like)
    if not len(x) or transforms.active() or (interval is None and not finite):
        return
    if not bool(x.detach().isfinite().all()):
        sample = int((~x.detach().flatten(1).isfinite().all(1)).nonzero()[0])
        raise ValueError(
            f"{owner}: got NaN or infinity in sample {sample}, expected finite values; try to leave such samples out"
        )
    if interval is None:
        return
    least, most = (float(end) for end in x.detach().aminmax())
    low, high = interval
    if not (low - 1e-3 <= least and most <= high + 1e-3):
        raise ValueError(
            f"{owner}: got values from {least:.4g} to {most:.4g}, expected them within {interval}; try to scale them, "
            "or interval=None for data without bounds"
        )


def label_of(owner: str, label: Any, classes: int | None, batch: int, device: torch.device) -> Tensor | None:
    """The class of every sample, int64 `(B,)`; without one they are of the class `classes`, that of no class.

    Raises:
        TypeError: neither an int nor a tensor of integers.
        ValueError: a class that the model does not know, or another number of classes than of samples.
    """
    if classes is None:
        if label is not None:
            raise ValueError(f"{owner}(label={label!r}): got classes for a model without; try Denoiser(classes=...)")
        return None
    if label is None:
        return torch.full((batch,), classes, device=device)
    if isinstance(label, int) and not isinstance(label, bool):
        label = torch.full((batch,), label, device=device)
    if not isinstance(label, Tensor) or label.is_floating_point() or label.dtype == torch.bool:
        kind = label.dtype if isinstance(label, Tensor) else type(label).__name__
        raise TypeError(f"{owner}(label=...): got {kind}, expected an int or a tensor (B,) of int64; try label.long()")
    if label.shape != (batch,):
        raise ValueError(f"{owner}(label=...): got shape {tuple(label.shape)}, expected ({batch},), one each")
    if batch and not (int(label.min()) >= 0 and int(label.max()) <= classes):
        strange = sorted({int(number) for number in label.tolist() if not 0 <= number <= classes})
        raise ValueError(
            f"{owner}(label=...): got class {', '.join(map(str, strange[:5]))}, expected 0 to {classes - 1}, which the "
            f"model knows, or {classes}, no class"
        )
    return label.to(device, torch.int64)


def times_of(owner: str, t: Any, x: Tensor, span: tuple[float, float]) -> Tensor:
    """Times as they broadcast against samples, `(B, 1, ...)`.

    Raises:
        ValueError: they are neither one nor one a sample, or not within the schedule's.
    """
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.numel() not in (1, len(x)):
        raise ValueError(f"{owner}(t=...): got shape {tuple(t.shape)}, expected one time, or ({len(x)},), one a sample")
    if not transforms.active() and t.numel():
        least, most = (float(end) for end in t.detach().aminmax())
        if not (span[0] - 1e-6 * span[1] <= least and most <= span[1] * (1 + 1e-6)):
            raise ValueError(
                f"{owner}(t=...): got times from {least:g} to {most:g}, expected them within {span}, those of the "
                "schedule, outside of which there is no noise or no image"
            )
    return t.reshape(-1, *(1,) * (x.dim() - 1)).expand(len(x), *(1,) * (x.dim() - 1))
