"""The benchmark of reconstructions runs, on a scan of its own making, and its masks are what it says."""

import pytest
import torch

from benchmarks.imaging import __main__ as imaging
from benchmarks.imaging.cases import CENTRE, NOISE, Scan, acquisition, psnr


@pytest.fixture
def scan():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 48, 10, dtype=torch.complex64, generator=generator)
    truth = torch.zeros(48, 10, dtype=torch.complex64)
    truth[10:30, 3:8] = 0.5 + 0.5j
    return Scan(maps / maps.abs().square().sum(0).sqrt(), truth)


@pytest.mark.parametrize("acceleration", CENTRE)
def test_masks_have_their_lines_and_centre_and_numbers_of_their_own(scan, acceleration):
    y, op = acquisition(scan, acceleration, 0)
    lines = op.coil.mask.squeeze()
    assert int(lines.sum()) == round(48 / acceleration)
    assert bool(lines[23:25].all())
    assert bool((y[:, :, ~lines] == 0).all())
    noise = (y - op.A(scan.truth[None]))[:, :, lines]
    assert float(noise.abs().square().mean().sqrt()) == pytest.approx(NOISE, rel=0.2)
    assert not torch.equal(acquisition(scan, acceleration, 1)[1].coil.mask, op.coil.mask)


def test_decibels_are_relative_to_the_peak(scan):
    assert psnr(scan.truth[None] + 0.1 * scan.peak, scan) == pytest.approx(20, abs=1e-3)


def test_rivals_stand_in_a_table(scan, monkeypatch):
    some = {"zero-filled", "CG-SENSE, 1e-3"}
    monkeypatch.setattr(
        imaging, "methods", lambda every=imaging.methods: {k: v for k, v in every().items() if k in some}
    )
    table = imaging.decibels(scan, 4, 2)
    zero, least = ([float(cell) for cell in row[1:4]] for row in table.rows)
    assert zero[2] == pytest.approx((zero[0] + zero[1]) / 2, abs=0.01)
    assert all(a < b for a, b in zip(zero, least, strict=True))
    assert table.rows[1][4] == "2 of 2"
