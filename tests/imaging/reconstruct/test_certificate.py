"""What `diagnose.certify` says of reconstructions: convex ones are proved, not failed."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.reconstruct.measuring import blur, images
from torchimplicit import diagnose
from torchimplicit.imaging import DnCNN, DouglasRachford, Gradient, Proximal, Reconstruction, Ridge, averaged


def layer(cell, rtol, solver=ti.CG):
    tight = ti.Anderson(window=10, rtol=rtol, atol=0, max_steps=3000)
    return Reconstruction(cell, tight, ti.Implicit(solver(rtol=rtol, max_steps=3000)), on_failure="ignore")


def convex(eps, saturation=0.03):
    return Gradient(Ridge(filters=6, taps=3, saturation=saturation, curvature=0.1).double(), eps=eps).double()


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_a_convex_layer_of_many_unknowns_is_certified(eps):
    op = blur(n=16, width=4)
    y = (op.A(images(1, 16)) + 0.01).detach()
    certificate = diagnose.certify(layer(convex(eps), 1e-8), y, op, starts=1)
    assert certificate.ok
    assert certificate.unique is (True if eps else None)
    assert ("unique, from any start" in str(certificate)) == bool(eps)
    assert float(certificate.condition) > 20


def test_a_loose_solve_of_one_fails_for_its_error_and_is_no_second_answer():
    op = blur(n=16, width=5)
    y = (op.A(images(1, 16)) + 0.01).detach()
    certificate = diagnose.certify(layer(convex(1e-5, saturation=3e-3), 1e-3), y, op, starts=2)
    assert not certificate.ok
    assert certificate.unique
    assert bool(certificate.regular.all())
    assert bool(certificate.point_error.isfinite().all())
    assert "badly conditioned, not broken" in str(certificate)
    free = diagnose.certify(layer(convex(0.0, saturation=3e-3), 1e-3), y, op, starts=2)
    assert free.unique is None


@pytest.mark.parametrize("kind", [Proximal, DouglasRachford])
def test_averaged_denoisers_are_proved_too(kind):
    op, net = blur(n=6), averaged(DnCNN(width=4, depth=3, bound=1.0, skip=False))
    y = op.A(images(2, 6)).detach()
    certificate = diagnose.certify(layer(kind(net, eps=0.05).double(), 1e-8, ti.GMRES), y, op, starts=1)
    assert certificate.ok
    assert certificate.unique
    assert certificate.everywhere < 1


def test_the_proved_bound_covers_the_error_of_the_point():
    op, cell = blur(n=12), convex(1e-2)
    y = op.A(images(2)).detach()
    loose = layer(cell, 1e-2)
    certificate = diagnose.certify(loose, y, op, starts=0)
    with torch.no_grad():
        gap = (loose(y, op) - layer(cell, 1e-12)(y, op)).flatten(1).norm(dim=1)
    reach = certificate.residual * certificate.size * 12 / (1 - certificate.everywhere)
    assert bool((gap <= reach).all())
