"""What users hand over by mistake, walked through every baseline and layer: an error that helps, or a status."""

import pytest
import torch

import torchimplicit as ti

im = ti.imaging
MAPS = torch.randn(2, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
OP = im.Sense(MAPS, im.cartesian(8, 2, 0.25))
X = torch.randn(3, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
Y = OP.A(X)
RIDGE = im.Ridge(filters=2, taps=3)
FEW = ti.Anderson(rtol=1e-3, max_steps=200)


def layer(cell):
    return im.Reconstruction(cell, FEW, on_failure="ignore")


LAYERS = {
    "Gradient": layer(im.Gradient(RIDGE, eps=1e-2)),
    "Preconditioned": layer(im.Preconditioned(RIDGE, eps=1e-2)),
    "Proximal": layer(im.Proximal(RIDGE, step=0.1, eps=1e-2)),
    "HalfQuadratic": layer(im.HalfQuadratic(RIDGE, eps=1e-2)),
    "ADMM": layer(im.ADMM(RIDGE, eps=1e-2)),
    "DouglasRachford": layer(im.DouglasRachford(RIDGE, eps=1e-2)),
    "PrimalDual": layer(im.PrimalDual(im.Analysis(im.Differences(), weight=0.1), eps=1e-2)),
}
BASELINES = {
    "zero_filled": im.zero_filled,
    "cg_sense": lambda y, op: im.cg_sense(y, op, weight=0.1, on_failure="ignore"),
    "total_variation": lambda y, op: im.total_variation(y, op, weight=0.1, solver=FEW, on_failure="ignore"),
    "wavelet": lambda y, op: im.wavelet(y, op, weight=0.1, moments=1, levels=1, solver=FEW, on_failure="ignore"),
    "plug_and_play": lambda y, op: im.plug_and_play(y, op, lambda x: x / 2, on_failure="ignore"),
}
ALL = pytest.mark.parametrize("reconstruct", [*LAYERS.values(), *BASELINES.values()], ids=[*LAYERS, *BASELINES])


@ALL
def test_what_does_not_belong_together_is_refused_by_its_shapes(reconstruct):
    for y in (Y[:, :1], Y[..., :7], Y[0]):
        with pytest.raises(ValueError, match=r"got measurements .*, expected \(B, 2, 8, 8\)"):
            reconstruct(y, OP)
    with pytest.raises(TypeError, match=r"expected a floating or complex one; try .\.float"):
        reconstruct(Y.real.int(), OP)
    with pytest.raises(TypeError, match=r"got torch.float16 on a CPU, expected single or double precision; try .float"):
        reconstruct(Y.real.half(), OP)
    with pytest.raises(TypeError, match=r"got a NoneType, expected an operator, with methods A\(x\) and A_adjoint"):
        reconstruct(Y, None)


@pytest.mark.parametrize(
    "reconstruct", [*LAYERS.values(), *list(BASELINES.values())[1:]], ids=[*LAYERS, *[*BASELINES][1:]]
)
def test_a_sample_that_is_not_finite_has_a_status_and_disturbs_no_other(reconstruct):
    with torch.no_grad():
        good = reconstruct(Y, OP)
        bad = Y.clone()
        bad[1, 0, 4, 4] = torch.nan  # in the sampled middle
        found = reconstruct(bad, OP)
    if isinstance(reconstruct, im.Reconstruction):
        status = reconstruct.report.status
    else:
        good, found, status = good.value, found.value, found.status
    assert status.tolist() == [ti.Status.CONVERGED, ti.Status.NON_FINITE, ti.Status.CONVERGED]
    torch.testing.assert_close(found[[0, 2]], good[[0, 2]], rtol=1e-4, atol=1e-5)


def test_physics_that_measures_nothing_or_is_none_is_refused_when_it_is_made():
    some = torch.ones(8, 8, dtype=torch.bool)
    for make, error, words in (
        (lambda: im.Sense(MAPS, ~some), ValueError, "a mask that shows nothing"),
        (lambda: im.Sense(MAPS, torch.stack([some, ~some])), ValueError, "shows nothing"),
        (lambda: im.Sense(MAPS, some.float()), TypeError, "try mask > 0"),
        (lambda: im.Sense(MAPS, some[:, :7]), ValueError, r"expected one that broadcasts to \(B, 8, 8\)"),
        (lambda: im.Sense(0 * MAPS), ValueError, "got zeros alone"),
        (lambda: im.Sense(MAPS.real.int()), TypeError, "expected a complex one"),
        (lambda: im.Sense(torch.nan * MAPS), ValueError, "NaN or infinite.*try maps.nan_to_num"),
        (lambda: im.cartesian(64, 4, 0.25), ValueError, "less than all that an acceleration of 4 samples; try 0.08"),
        (lambda: im.psnr(X.abs(), X.abs()), TypeError, "data_range"),
        (lambda: im.ssim(X.abs(), X.abs()), TypeError, "data_range"),
        (lambda: im.psnr(X.real.int(), X.real.int(), data_range=1), TypeError, "expected a tensor of floats"),
    ):
        with pytest.raises(error, match=words):
            make()


def test_from_ten_steps_to_many_the_image_stays_what_it_is():
    """Elsewhere a hundred steps of Anderson's method were NaN where fifty were fine."""
    x = torch.zeros(1, 1, 12, 12)
    x[..., 3:9, 4:8] = 1
    blur = im.Blur(im.gaussian_kernel(3, 0.8), "reflect")
    one = layer(im.Gradient(im.Ridge.total_variation(1e-2, width=0.1, taps=3)))
    quality = []
    for steps in (10, 50, 100, 500):
        one.solver = ti.Anderson(rtol=0, atol=0, max_steps=steps)
        with torch.no_grad():
            quality.append(float(im.psnr(one(blur.A(x), blur), x, data_range=1.0)))
    assert max(quality) - quality[-1] < 0.05
    assert quality[1] > quality[0] - 0.05
