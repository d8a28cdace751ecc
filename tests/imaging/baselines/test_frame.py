"""Differences and wavelets: adjoints, bounds, reconstruction, and the orthogonal transform that they are a mean of."""

import math

import pytest
import torch

from torchimplicit.imaging.baselines.frame import Differences, Wavelets, daubechies

SIZES = [(8, 8), (13, 10), (1, 5)]


def random(*shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", [Differences(), Wavelets(1, 1), Wavelets(4, 3)])
def test_adjoint_gram_and_bound(frame, size):
    x = random(2, *size)
    v = torch.randn_like(frame.analyse(x))
    assert torch.allclose((frame.analyse(x) * v.conj()).sum(), (x * frame.adjoint(v).conj()).sum(), atol=1e-12)
    assert torch.allclose(frame.gram(x), frame.adjoint(frame.analyse(x)), atol=1e-12)
    basis = torch.eye(math.prod(size), dtype=torch.float64).view(-1, *size)
    assert torch.linalg.matrix_norm(frame.analyse(basis).flatten(1), 2) ** 2 <= frame.bound + 1e-12


def test_known_taps():
    r = math.sqrt(3)
    two = torch.tensor([1 + r, 3 + r, 3 - r, 1 - r], dtype=torch.float64) / (4 * math.sqrt(2))
    assert torch.allclose(daubechies(1), torch.full((2,), math.sqrt(0.5), dtype=torch.float64))
    assert torch.allclose(daubechies(2), two, atol=1e-14)


@pytest.mark.parametrize("moments", range(1, 11))
def test_taps_are_orthogonal_and_moments_vanish(moments):
    taps = daubechies(moments)
    for shift in range(moments):
        product = float((taps[2 * shift :] * taps[: len(taps) - 2 * shift]).sum())
        assert product == pytest.approx(float(shift == 0), abs=1e-12)
    place = torch.arange(2 * moments, dtype=torch.float64) / moments
    for power in range(moments):
        assert abs(float(((-1) ** torch.arange(2 * moments) * taps * place**power).sum())) < 1e-9


@pytest.mark.parametrize("moments", [0, 11, 1.5])
def test_impossible_moments(moments):
    with pytest.raises(ValueError, match="expected an integer from 1 to 10"):
        daubechies(moments)


def test_sizes_are_meaned_over_all_shifts_of_the_orthogonal_transform():
    frame, x, total = Wavelets(2, 2), random(8, 8), 0.0
    for down in range(4):
        for right in range(4):
            total += details(x.roll((down, right), (0, 1)), frame.taps, 2) / 16
    assert float((frame.analyse(x).abs() * frame.weights(x)).sum()) == pytest.approx(total, rel=1e-12)


def details(x, taps, levels):
    """The sum of the sizes of the orthogonal transform's details, by its matrices."""
    low = math.sqrt(2) * torch.tensor(taps, dtype=torch.float64)
    high = low.flip(0) * (-1) ** torch.arange(len(taps))
    total = 0.0
    for _ in range(levels):
        size = len(x)
        rows = torch.zeros(size, size, dtype=torch.complex128)
        for k in range(size // 2):
            for i in range(len(taps)):
                rows[k, (2 * k + i) % size] += low[i]
                rows[size // 2 + k, (2 * k + i) % size] += high[i]
        assert torch.allclose(rows @ rows.mH, torch.eye(size, dtype=rows.dtype))
        y = rows @ x @ rows.mT
        total += float(y.abs().sum() - y[: size // 2, : size // 2].abs().sum())
        x = y[: size // 2, : size // 2]
    return total
