"""Empty batches: every operator, baseline, loss and layer gives an empty result, and no library below complains."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.physics.dense import normal
from tests.imaging.physics.test_operators import CASES

im = ti.imaging
LINES = im.Fourier(im.cartesian(8, 2, center_fraction=0.25))
NONE = torch.zeros(0, 8, 8, dtype=torch.complex128)


@CASES
def test_operators(operator, shape, dtype):
    y = operator.A(normal(2, *shape, dtype=dtype))
    x, none = torch.zeros(0, *shape, dtype=dtype, requires_grad=True), y[:0].detach().requires_grad_()
    assert operator.A(x).shape == none.shape
    assert operator.A(x).dtype == y.dtype
    assert operator.norm(x).shape == (0,)
    for image in (operator.A_adjoint(none), operator.gram(x), operator.A_dagger(none), operator.prox(x, none, 0.5)):
        assert image.shape == x.shape
        image.abs().sum().backward()
    assert x.grad.shape == x.shape


def test_operators_of_the_samples_own():
    rows, x = torch.zeros(0, dtype=torch.int64), normal(3, 8, 8, dtype=torch.complex128)
    masks, kernels = im.cartesian(8, 2, 0.2, seed=range(3)), normal(3, 2, 3, 3)
    maps = normal(3, 2, 8, 8, dtype=torch.complex128)
    for operator in (im.Sense(maps, masks), im.Fourier(masks), im.Sense(maps[0], masks)):
        assert operator.take(rows).A_adjoint(operator.A(x)[rows]).shape == NONE.shape
    for border in ("valid", "circular", "reflect"):
        blur, x = im.Blur(kernels, border), normal(3, 2, 8, 8)
        y = blur.A(x)
        assert blur.take(rows).A(x[rows]).shape == y[rows].shape
        assert blur.take(rows).A_adjoint(y[rows]).shape == x[rows].shape


def test_masks_of_no_seed():
    assert im.cartesian(8, 2, 0.2, seed=[]).shape == (0, 1, 8)
    assert im.poisson_disc((8, 6), 2, seed=torch.zeros(0, dtype=torch.int64)).shape == (0, 8, 6)
    assert im.radial((8, 6), 2, seed=range(0)).shape == (0, 8, 6)


BASELINES = {
    "zero-filled": im.zero_filled,
    "cg": lambda y, op: im.cg_sense(y, op, weight=0.1).value,
    "total variation": lambda y, op: im.total_variation(y, op, weight=0.1).value,
    "wavelet": lambda y, op: im.wavelet(y, op, weight=0.1, levels=1).value,
    "plug and play": lambda y, op: im.plug_and_play(y, op, lambda x: x / 2).value,
}


@pytest.mark.parametrize("reconstruct", BASELINES.values(), ids=BASELINES)
def test_baselines_and_losses(reconstruct):
    assert reconstruct(NONE, LINES).shape == NONE.shape
    for group in (im.Shift(), im.Flip(), im.QuarterTurn()):
        assert im.equivariant_loss(reconstruct, NONE, LINES, group, seed=0).shape == (0,)
    assert im.split_loss(reconstruct, NONE, LINES, seed=0).shape == (0,)
    assert im.joint_loss(reconstruct, NONE, LINES).loss.shape == (0,)
    assert im.sure_loss(reconstruct, NONE, LINES, noise=0.1, seed=0).shape == (0,)


FEW = im.Analysis(im.Filters(filters=2, taps=3), weight=0.1)
CELLS = {
    **{kind: lambda kind=kind: kind(im.Ridge(filters=2, taps=3)) for kind in (im.Gradient, im.Proximal, im.ADMM)},
    im.HalfQuadratic: lambda: im.HalfQuadratic(im.averaged(im.DnCNN(channels=2, width=2, depth=2))),
    im.DouglasRachford: lambda: im.DouglasRachford(im.Sparsity(moments=1, levels=1)),
    im.Preconditioned: lambda: im.Preconditioned(im.Ridge(filters=2, taps=3)),
    im.PrimalDual: lambda: im.PrimalDual(FEW),
}


@pytest.mark.parametrize("make", CELLS.values(), ids=[kind.__name__ for kind in CELLS])
def test_layers(make):
    layer = im.Reconstruction(make().double(), on_failure="raise")
    x = layer(NONE, LINES)
    assert x.shape == NONE.shape
    x.abs().sum().backward()
    assert all(not parameter.grad.any() for parameter in layer.parameters())
    with torch.no_grad():
        assert layer(NONE, LINES).shape == NONE.shape
        state = layer.initial_state(NONE, LINES)
        assert layer.cell.output(layer.cell(state, NONE, LINES), NONE, LINES).shape == NONE.shape
    assert str(layer.report).endswith("an empty batch")


def test_starts_and_bounds():
    blur = im.Blur(torch.ones(3, 3, dtype=torch.float64))
    assert blur.guess(torch.zeros(0, 1, 6, 6)).shape == (0, 1, 8, 8)
    assert im.Sense(torch.ones(0, 2, 8, 8, dtype=torch.complex64)).norm_bound().shape == (0,)


def test_figures_of_no_image_are_refused():
    for figure in (im.psnr, im.ssim):
        with pytest.raises(ValueError, match=r"got x \(0, 1, 16, 16\)"):
            figure(torch.zeros(0, 1, 16, 16), torch.zeros(0, 1, 16, 16), data_range=1.0)
