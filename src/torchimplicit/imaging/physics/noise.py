"""Noise of measurements, with seeds: what a sample gets does not depend on its batch mates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require
from torchimplicit.imaging.physics.check import can_look, check_images, is_real_or_complex
from torchimplicit.sde.normals import DRAW, pair, places
from torchimplicit.sde.seeds import seeds_of_samples


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    r"""Normal noise, $y + \sigma n$, real or complex, differentiable in both.

    Of complex measurements, as k-space, real and imaginary part have the standard deviation $\sigma / \sqrt 2$ each, so
    that $\mathrm{E} |\sigma n|^2 = \sigma^2$ in either case. A normal is a function of the sample's seed and the place.

    Args:
        std: $\sigma$, a number >= 0, or a tensor of one a sample, `(B,)`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> noise = ti.imaging.GaussianNoise(0.1)
        >>> y = torch.zeros(3, 4)
        >>> seed = torch.tensor([5, 6, 7])
        >>> torch.equal(noise(y, seed=seed)[1:], noise(y[1:], seed=seed[1:]))
        True
    """

    std: float | Tensor

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        fine = is_real_or_complex(self.std) if isinstance(self.std, Tensor) else is_number(self.std) and self.std >= 0
        require(self, "std", fine, "a number >= 0, or a floating tensor of one a sample")

    def __call__(self, y: Tensor, seed: int | Tensor, where: Tensor | None = None) -> Tensor:
        """Noisy measurements.

        Args:
            y: measurements, `(B, ...)`.
            seed: of all samples, an int; or one a sample, `(B,)` int64.
            where: what is measured, bool, that broadcasts to `y`; the rest stays as it is. None for all.
        """
        check_images("GaussianNoise", y, "...", name="measurements")
        std = self._std(y)
        n = normals(y, seeds_of_samples("GaussianNoise", seed, len(y), y.device))
        return y + std * (n if where is None else n * where)

    def _std(self, y: Tensor) -> float | Tensor:
        """A number, or one a sample beside measurements."""
        std = self.std
        if not isinstance(std, Tensor):
            return std
        if std.shape not in ((), (1,), y.shape[:1]) or std.is_complex():
            got = f"{tuple(std.shape)}, {std.dtype}"
            raise ValueError(
                f"GaussianNoise(std=...): got shape {got}, expected real numbers, one a sample, ({len(y)},)"
            )
        if can_look(std) and not bool(((std.detach() >= 0) & std.detach().isfinite()).all()):
            raise ValueError(f"GaussianNoise(std={std!r}): expected finite numbers >= 0")
        return std.reshape(-1, *(1,) * (y.dim() - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class PoissonNoise:
    r"""Counted photons, $\mathrm{Poisson}(c\, y) / c$: the variance is $y / c$. It has no gradient.

    Args:
        photons: $c$, how many a measurement of 1 counts; a number > 0.
    """

    photons: float

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "photons", is_number(self.photons) and 0 < self.photons < torch.inf, "a number > 0")

    def __call__(self, y: Tensor, seed: int | Tensor) -> Tensor:
        """Noisy measurements.

        Args:
            y: measurements, `(B, ...)`, real, none below 0.
            seed: see `GaussianNoise`.

        Raises:
            TypeError: measurements that are not floating.
            ValueError: negative ones, or NaN.
        """
        check_images("PoissonNoise", y, "...", name="measurements")
        if y.is_complex():
            raise TypeError(f"PoissonNoise: got measurements of {y.dtype}, expected real ones; try y.abs()")
        y = y.detach()
        if not bool((y >= 0).all()):
            raise ValueError(
                f"PoissonNoise: got measurements down to {float(y.min()):.4g}, expected none below 0 and no NaN; try "
                "y.clamp_min(0)"
            )
        seeds = seeds_of_samples("PoissonNoise", seed, len(y), y.device).tolist()
        drawn = [
            torch.poisson(rate, generator=torch.Generator(y.device).manual_seed(seed))
            for rate, seed in zip(self.photons * y, seeds, strict=True)
        ]
        return torch.stack(drawn) / self.photons if drawn else y


def normals(like: Tensor, seeds: Tensor) -> Tensor:
    """Standard normals by seed and place, of measurements' shape and dtype; complex ones of variance 1 in all.

    Args:
        like: measurements, `(B, ...)`.
        seeds: `(B,)` int64.
    """
    count = like[:1].numel() if len(like) else 0
    words = places(DRAW, torch.arange(count, device=like.device))
    real, imaginary = pair(seeds[:, None], words[None], like.real.dtype)
    if like.is_complex():
        return torch.complex(real, imaginary).mul_(0.5**0.5).view(like.shape)
    return real.view(like.shape)
