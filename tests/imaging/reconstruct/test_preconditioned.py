"""Preconditioned descent: the minimum of `Gradient`, in fewer steps, and what is proved of the way."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.reconstruct.measuring import blur, coils, images
from torchimplicit.imaging import (
    Blur,
    DnCNN,
    Gradient,
    Preconditioned,
    Reconstruction,
    Ridge,
    Sense,
    cartesian,
    gaussian_kernel,
)

TIGHT = ti.Anderson(window=10, period=1, rtol=1e-11, atol=1e-13, max_steps=3000)
DENSE = ti.Implicit(ti.GMRES(rtol=1e-11, restart=80, max_steps=400))


def ridge(**options):
    return Ridge(**{"filters": 4, "taps": 3, "saturation": 0.05} | options).double()


def box(border="valid"):
    return Blur(gaussian_kernel(3, torch.tensor(3.0, dtype=torch.float64)), border)


def complex_images(count=2, size=12):
    real, imaginary = images(count, size)[:, 0], images(count, size, seed=1)[:, 0]
    return torch.complex(real, imaginary)


def lines(batch=None):
    """Coils of which lines were left out, for all samples alike or each its own."""
    mask = cartesian(12, 2, 0.2, seed=0 if batch is None else range(batch)).mT
    return Sense(coils().maps, mask)


def layers(prior, **options):
    kinds = (Gradient, Preconditioned)
    return [
        Reconstruction(kind(prior, eps=1e-2), solver=TIGHT, adjoint=DENSE, on_failure="raise", **options)
        for kind in kinds
    ]


@pytest.mark.parametrize(
    ("op", "x"),
    [
        (box("valid"), images()),
        (box("circular"), images()),
        (blur(), images()),
        (coils(), complex_images()),
        (lines(), complex_images()),
        (lines(3), complex_images(3)),
    ],
)
def test_the_minimum_and_its_gradient_are_those_of_plain_descent(op, x):
    found = []
    for layer in layers(ridge()):
        prior = layer.cell.prior
        prior.zero_grad()
        image = layer(op.A(x).detach(), op)
        image.abs().square().sum().backward()
        found.append((image.detach(), prior.weight.grad.clone(), prior.log_saturation.grad.clone()))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-8)


def test_steps_of_the_same_size_come_nearer():
    op, x = Blur(gaussian_kernel(5, torch.tensor(5.0, dtype=torch.float64))), images(2, 24)
    prior = Ridge.total_variation(1e-3, 0.03, filters=2, taps=3).double()
    y = op.A(x)
    with torch.no_grad():
        truth = Reconstruction(Preconditioned(prior), solver=TIGHT)(y, op)
        loose = ti.Anderson(window=10, period=1, rtol=1e-3, max_steps=300)
        away = [
            (Reconstruction(kind(prior), solver=loose)(y, op) - truth).norm() for kind in (Gradient, Preconditioned)
        ]
    assert away[1] < 0.5 * away[0]


def jacobian(cell, z, y, op):
    flat = torch.func.jacrev(lambda z: cell(z.reshape(1, 1, *op.shape), y, op).flatten())(z.flatten())
    return flat.reshape(z.numel(), z.numel())


def test_steps_by_lines_of_the_same_size_come_nearer():
    op, x = lines(), complex_images()
    prior, y = Ridge.total_variation(1e-2, 0.03, filters=2, taps=3).double(), op.A(x)
    with torch.no_grad():
        truth = Reconstruction(Preconditioned(prior), solver=ti.Anderson(rtol=1e-9, atol=0, max_steps=3000))(y, op)
        loose = ti.Anderson(window=10, rtol=1e-3, max_steps=300)
        away = [
            (Reconstruction(kind(prior), solver=loose)(y, op) - truth).norm() for kind in (Gradient, Preconditioned)
        ]
    assert away[1] < 0.5 * away[0]


def test_samples_with_lines_of_their_own_are_independent():
    op, x = lines(3), complex_images(3)
    layer, y = layers(ridge())[1], op.A(x)
    with torch.no_grad():
        together = layer(y, op)
        for i in range(3):
            rows = torch.tensor([i])
            assert torch.equal(layer(y[rows], op.take(rows)), together[rows])


def test_the_bound_of_lines_holds():
    op, x = lines(), complex_images()
    y, tight = op.A(x), layers(ridge())[1]
    with torch.no_grad():
        truth = tight(y, op)
        loose = Reconstruction(Preconditioned(ridge(), eps=1e-2), solver=ti.Picard(rtol=1e-2, max_steps=300))
        image = loose(y, op)
    true = torch.view_as_real(image - truth).flatten(1).square().mean(1).sqrt()
    assert bool((true <= loose.report.bound).all())


@pytest.mark.parametrize("border", ["valid", "circular", "reflect"])
def test_the_bound_of_the_inverse_holds(border):
    op, z = box(border), images(1, 7)
    op.shape = z.shape[-2:]
    y = op.A(z)
    cell = Preconditioned(ridge(), eps=0.05)
    gap = torch.eye(z.numel(), dtype=z.dtype) - jacobian(cell, z, y, op)
    true = 1 / torch.linalg.svdvals(gap)[-1]
    bound = cell.inverse(op, z).item()
    assert true <= bound
    assert bound < 1.5 / 0.05


def test_no_step_is_too_long_where_nothing_wraps_around():
    op, z = box("circular"), images(1, 7)
    op.shape = z.shape[-2:]
    cell = Preconditioned(ridge(), eps=0.05)
    steps = 1 - torch.linalg.eigvals(jacobian(cell, z, op.A(z), op)).real
    assert steps.min() > 0
    assert steps.max() < 1.1  # filters stop at the border, where the transform goes on


def test_the_report_bounds_the_distance():
    op, x = box(), images()
    layer = Reconstruction(Preconditioned(ridge(), eps=0.05), solver=ti.Anderson(rtol=1e-3))
    with torch.no_grad():
        found = layer(op.A(x), op)
        report = layer.report
        truth = Reconstruction(layer.cell, solver=TIGHT)(op.A(x), op)
    distance = (found - truth).square().flatten(1).mean(1).sqrt()
    assert (distance <= report.bound).all()
    assert (report.distance < report.bound).all()
    assert (distance < 3 * report.distance).all()
    assert Preconditioned(ridge(), eps=0.0).inverse(op, x) == torch.inf


def test_samples_with_blurs_of_their_own_are_independent():
    kernels = torch.stack([gaussian_kernel(3, s).double() for s in (0.5, 1.0, 3.0, 9.0)])[:, None]
    op, x = Blur(kernels), images(4)
    layer = Reconstruction(Preconditioned(ridge(), eps=1e-3), solver=ti.Anderson(rtol=1e-8, max_steps=500))
    with torch.no_grad():
        y = op.A(x)
        together = layer(y, op)
        for i in range(4):
            rows = torch.tensor([i])
            alone = layer(y[rows], op.take(rows))
            torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)
    cell = layer.cell.begin(x, (y, op), 1)
    assert torch.equal(cell.take(rows).curvature(op, x), layer.cell.curvature(op.take(rows), x[rows]))


def test_images_smaller_than_the_filters_are_solved_too():
    op, x = box(), images(2, 4)
    layer = Reconstruction(Preconditioned(ridge(taps=7), eps=1e-2), solver=TIGHT)
    with torch.no_grad():
        layer(op.A(x), op)
    assert layer.report.converged


def test_the_weight_counts_in_the_metric():
    op, x = box(), images()
    light, heavy = (Preconditioned(ridge(), weight=weight).double() for weight in (0.1, 10.0))
    assert (heavy.curvature(op, x) > light.curvature(op, x)).any()
    assert light.curvature(op, x).shape == (1, 1, *x.shape[-2:])


def test_a_prior_without_a_known_slope_is_refused():
    with pytest.raises(ValueError, match="no known Lipschitz constant"):
        Preconditioned(DnCNN())
