"""Spectral normalisation: the norm is near the bound from below or at it, follows the weight, and differentiates."""

import copy

import pytest
import torch

import torchimplicit as ti


def operator_norm(conv, size):
    """The largest singular value of a convolution on images of that size, as a dense matrix."""
    zero = torch.zeros(1, conv.in_channels, size, size, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda x: conv(x) - conv(zero), zero)
    return float(torch.linalg.matrix_norm(matrix.reshape(-1, zero.numel()), 2))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2, "padding": 2}])
def test_the_norm_comes_to_the_bound(options):
    torch.manual_seed(0)
    conv = ti.nn.SpectralConv2d(4, 4, 3, **({"padding": 1} | options), bound=0.6, size=6).double()
    conv.weight = 3 * torch.randn_like(conv.weight)
    for _ in range(60):
        conv(torch.zeros(1, 4, 6, 6, dtype=torch.float64))
    assert operator_norm(conv, 6) == pytest.approx(0.6, rel=1e-3)


def test_the_norm_of_a_dense_layer_comes_to_the_bound():
    torch.manual_seed(0)
    linear = ti.nn.SpectralLinear(5, 9, bound=0.6).double()
    linear.weight = 3 * torch.randn(9, 5, dtype=torch.float64)
    for _ in range(60):
        linear(torch.zeros(1, 5, dtype=torch.float64))
    assert torch.linalg.matrix_norm(linear.weight.detach(), 2).item() == pytest.approx(0.6, rel=1e-6)
    scale, weight = linear.eval().parametrizations.weight[0], torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scale, weight)


def test_autocast_does_not_round_the_norm():
    torch.manual_seed(0)
    linear = ti.nn.SpectralLinear(40, 40, bound=0.5).eval()
    linear.weight = torch.randn(40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear.weight
    assert torch.equal(rounded, linear.weight)


def test_a_weight_below_the_bound_is_left_alone():
    conv = ti.nn.SpectralConv2d(2, 2, 3, padding=1, bound=0.6, size=6)
    conv.weight = small = 1e-3 * torch.randn(2, 2, 3, 3)
    assert torch.equal(conv.weight, small)
    conv.weight = torch.zeros(2, 2, 3, 3)
    assert torch.equal(conv.weight, torch.zeros(2, 2, 3, 3))


def test_evaluation_leaves_the_estimate_and_training_goes_on_with_it():
    torch.manual_seed(0)
    conv = ti.nn.SpectralConv2d(3, 3, 3, padding=1, size=6)
    conv.parametrizations.weight.original.data.normal_()
    before = conv.parametrizations.weight[0].image.clone()
    conv.eval()(torch.zeros(1, 3, 6, 6))
    assert torch.equal(conv.parametrizations.weight[0].image, before)
    conv.train()(torch.zeros(1, 3, 6, 6))
    assert not torch.equal(conv.parametrizations.weight[0].image, before)


def test_the_gradient_is_that_of_the_scaled_weight():
    torch.manual_seed(0)
    conv = ti.nn.SpectralConv2d(2, 2, 3, padding=1, bound=0.5, size=5).double().eval()
    scale = conv.parametrizations.weight[0]
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scale, weight)


def test_a_solve_advances_the_estimate_once():
    torch.manual_seed(0)
    layer = ti.nn.DEQ(ti.nn.SpectralCell(4, 6, size=6), ti.Picard(rtol=1e-5, max_steps=200)).double()
    other = copy.deepcopy(layer)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    layer(x).sum().backward()
    assert int(layer.report.steps.max()) > 2
    assert other.cell.conv1.weight is not None
    ours, theirs = (each.cell.conv1.parametrizations.weight[0].image for each in (layer, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_cell_contracts_by_the_square_of_the_bound():
    torch.manual_seed(0)
    cell = ti.nn.SpectralCell(3, 5, bound=0.8, size=6).double()
    for conv in (cell.conv1, cell.conv2):
        conv.weight = 5 * torch.randn_like(conv.weight)
        for _ in range(60):
            conv(torch.zeros(1, conv.in_channels, 6, 6, dtype=torch.float64))
    cell.eval()
    x, z, other = torch.randn(3, 4, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        moved = (cell(z, x) - cell(other, x)).flatten(1).norm(dim=1)
    assert (moved <= 0.64 * 1.001 * (z - other).flatten(1).norm(dim=1)).all()
    layer = ti.nn.DEQ(cell, ti.Picard(rtol=1e-8, max_steps=80))
    assert layer(x).shape == x.shape
    assert layer.report.converged
    names, values = zip(*cell.named_parameters(), strict=True)
    assert len(values) == len(names) == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ti.nn.SpectralLinear(2, 2, bound=-1.0), r"bound=-1.0\): expected a finite number > 0"),
        (lambda: ti.nn.SpectralConv2d(2, 2, 3, bound=0.0), r"bound=0.0\): expected a finite number > 0"),
        (lambda: ti.nn.SpectralConv2d(2, 2, 3, size=0), r"size=0\): expected an integer >= 1"),
        (lambda: ti.nn.SpectralConv2d(2, 2, 3, padding="same"), "numbers of pixels"),
        (lambda: ti.nn.SpectralConv2d(2, 2, 3, padding=1, padding_mode="circular"), "'zeros'"),
        (lambda: ti.nn.SpectralCell(2, 2, kernel_size=2), "an odd number"),
    ],
)
def test_impossible_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()
