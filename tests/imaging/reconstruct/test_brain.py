"""The case that the distance is for: a real brain at fourfold undersampling, of which a loose solve is far off."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import torchimplicit as ti
from torchimplicit.imaging import Gradient, Reconstruction, Ridge, Sense

DATA = Path(os.environ.get("TORCHIMPLICIT_DATA", "nowhere")) / "mri" / "brain_8coil_espirit.npz"


@pytest.mark.skipif(not DATA.exists(), reason="TORCHIMPLICIT_DATA has no mri/brain_8coil_espirit.npz")
def test_the_distance_covers_the_true_one_within_ten_times():
    data, columns = np.load(DATA), slice(78, 102)
    maps, truth = (torch.from_numpy(data[name])[..., columns] for name in ("maps", "recon_l1wavelet"))
    generator = torch.Generator().manual_seed(0)
    size = maps.shape[-2]
    mask = torch.zeros(size, 1, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[: size // 4 - 18]] = True
    mask[size // 2 - 9 : size // 2 + 9] = True
    op = Sense(maps, mask, dims=(-2,))
    y = op.A(truth[None])
    y = y + mask * 0.002 * torch.randn(y.shape, dtype=y.dtype, generator=generator)
    cell = Gradient(Ridge.total_variation(2e-4))

    def solved(rtol, steps):
        layer = Reconstruction(cell, ti.Anderson(window=10, rtol=rtol, atol=0, max_steps=steps), on_failure="ignore")
        with torch.no_grad():
            return layer(y, op), layer.report

    def rms(gap):
        return torch.view_as_real(gap).square().mean().sqrt().item()

    exact, _ = solved(1e-6, 300)
    for rtol in (1e-3, 1e-4):
        x, report = solved(rtol, 300)
        true = rms(x - exact)
        assert report.converged
        assert true < report.distance.item() < 10 * true
        assert true < report.bound.item()
        if rtol == 1e-3:
            assert rms(x - truth) > 1.3 * rms(exact - truth)  # more than 2 dB
