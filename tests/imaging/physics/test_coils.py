"""Maps of coils from the middle of k-space: against known ones, against those of another library, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimplicit import imaging

DATA = Path(os.environ.get("TORCHIMPLICIT_DATA", "nowhere")) / "mri"


def scan(dtype=torch.complex128):
    """Smooth coils `(3, 40, 30)` of length one, and a round head that they see."""
    rows, columns = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None], torch.linspace(-1, 1, 30).double()
    coils = torch.stack([1 + 0.6 * rows + 0 * columns, 1 - 0.6 * columns + 0 * rows, 1 + 0.3 * rows * columns])
    coils = coils * torch.exp(1j * torch.stack([0 * rows + columns, 0.5 * rows + 0 * columns, rows - columns]))
    coils = coils / coils.norm(dim=0)
    head = ((rows**2 + columns**2) < 0.6).double() * (1 + 0.3 * torch.cos(6 * rows) * torch.cos(5 * columns))
    return coils.to(dtype), head.to(dtype)


def test_the_maps_are_those_that_measured():
    coils, head = scan()
    maps = imaging.espirit(imaging.fftc(coils * head), width=20)
    inside = head.abs() > 0
    length = maps.norm(dim=0)
    assert torch.all(((length - 1).abs() < 1e-10) | (length == 0))
    along = (maps.conj() * coils).sum(0).abs()
    assert along[inside].min() > 0.99
    assert maps[0].imag.abs().max() < 1e-12  # the first coil's phase is zero
    assert not maps[:, 0, 0].any()  # outside of the head


def test_undersampled_lines_with_a_middle_are_enough():
    coils, head = scan()
    mask = imaging.cartesian(40, 2, center_fraction=0.4).mT
    maps = imaging.espirit(imaging.fftc(coils * head) * mask, mask)
    assert (maps.conj() * coils).sum(0).abs()[head.abs() > 0].min() > 0.98
    assert torch.equal(maps, imaging.espirit(imaging.fftc(coils * head) * mask))  # the mask is seen


@pytest.mark.skipif(not DATA.exists(), reason="TORCHIMPLICIT_DATA has no folder mri")
def test_the_maps_of_a_real_head_are_those_of_sigpy():
    maps = imaging.espirit(torch.from_numpy(np.load(DATA / "cartesian_ksp_8coil_brain.npy")))
    expected = torch.from_numpy(np.load(DATA / "brain_8coil_espirit.npz")["maps"])
    assert torch.equal(maps.abs().sum(0) > 0, expected.abs().sum(0) > 0)
    assert (maps - expected).abs().max() < 1e-3


def test_what_cannot_be_calibrated_is_refused():
    coils, head = scan()
    kspace = imaging.fftc(coils * head)
    with pytest.raises(ValueError, match=r"middle of 3 x 24 points, expected at least 6 x 6; try maps of a prescan"):
        imaging.espirit(kspace, imaging.cartesian(40, 8, center_fraction=0.08).mT)
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 40, 30\), expected \(C, H, W\)"):
        imaging.espirit(kspace[None])
    with pytest.raises(TypeError, match=r"torch.float64, expected a complex one"):
        imaging.espirit(kspace.real)
    with pytest.raises(ValueError, match="1200 entries that are NaN"):
        imaging.espirit(torch.where(torch.arange(3).reshape(3, 1, 1) == 1, torch.nan, kspace))
    with pytest.raises(ValueError, match="zeros alone"):
        imaging.espirit(torch.zeros_like(kspace))
    with pytest.raises(
        ValueError, match=r"mask=...\): got shape \(1, 40\), expected one that broadcasts to \(40, 30\)"
    ):
        imaging.espirit(kspace, torch.ones(1, 40, dtype=torch.bool))
    with pytest.raises(ValueError, match="shows nothing"):
        imaging.espirit(kspace, torch.zeros(40, 30, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"crop=1\): expected a number in \[0, 1\)"):
        imaging.espirit(kspace, crop=1)
    with pytest.raises(ValueError, match=r"taps=0"):
        imaging.espirit(kspace, taps=0)
