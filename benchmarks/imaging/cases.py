"""Real k-space, undersampled anew: the maps and the reference of a scan of a head, and masks by number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import torchimplicit as ti

NOISE = 0.002  # standard deviation of complex noise, where the reference's largest magnitude is 1.285
CENTRE = {4: 0.08, 8: 0.04}  # of the lines, always sampled, by acceleration


@dataclass(frozen=True)
class Scan:
    """Sensitivities `(C, H, W)`, and the reference `(H, W)`, from which k-space is made."""

    maps: Tensor
    truth: Tensor

    @property
    def peak(self) -> float:
        """The reference's largest magnitude, to which decibels are relative."""
        return float(self.truth.abs().max())


def scan() -> Scan:
    """Of `TORCHIMPLICIT_DATA`.

    Raises:
        SystemExit: it is not there.
    """
    root = os.environ.get("TORCHIMPLICIT_DATA")
    path = Path(root or ".") / "mri" / "brain_8coil_espirit.npz"
    if root is None or not path.exists():
        raise SystemExit(f"TORCHIMPLICIT_DATA={root}: expected a folder with mri/brain_8coil_espirit.npz")
    with np.load(path) as arrays:
        return Scan(torch.from_numpy(arrays["maps"]), torch.from_numpy(arrays["recon_l1wavelet"]))


def acquisition(scan: Scan, acceleration: int, number: int) -> tuple[Tensor, ti.imaging.Sense]:
    """K-space `(1, C, H, W)` and its operator: random lines along axis -2 and all of the centre, with noise.

    Masks are drawn here and not by the package, so that numbers stay comparable when its masks change.

    Args:
        scan: of what.
        acceleration: 4 or 8: how many times fewer lines.
        number: of the mask and its noise.
    """
    generator = torch.Generator().manual_seed(number)
    height = len(scan.truth)
    centre = round(CENTRE[acceleration] * height)
    lines = torch.zeros(height, dtype=torch.bool)
    lines[(height - centre) // 2 : (height - centre) // 2 + centre] = True
    rest = (~lines).nonzero().flatten()
    more = torch.randperm(len(rest), generator=generator)[: round(height / acceleration) - centre]
    lines[rest[more]] = True
    # The mask is constant along the last axis: k-space along the other one alone holds the same.
    op = ti.imaging.Sense(scan.maps, lines[:, None], dims=(-2,))
    y = op.A(scan.truth[None])
    return y + lines[:, None] * NOISE * torch.randn(y.shape, dtype=y.dtype, generator=generator), op


def psnr(x: Tensor, scan: Scan) -> float:
    """Of one image, of the complex difference, in dB."""
    return float(10 * torch.log10(scan.peak**2 / (x[0] - scan.truth).abs().square().mean()))
