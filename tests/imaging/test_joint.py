"""Two acquisitions of a moving object: the loss by hand, with the true motion, its gradients, and pairs that fail."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import torchimplicit as ti
from tests.imaging.register.phantoms import texture
from torchimplicit.core.status import Status
from torchimplicit.imaging import Fourier, Preconditioned, Reconstruction, Ridge, cartesian, joint_loss
from torchimplicit.imaging.joint import missed
from torchimplicit.imaging.register import Demons, Rigid, align, identity, warp

D = torch.float64
N = 16
TIGHT = ti.Anderson(window=10, rtol=1e-11, max_steps=2000)
BACK = ti.Implicit(ti.GMRES(rtol=1e-10, restart=60, max_steps=600))
STIFF = Demons("displacement", levels=((1, 1.5, 0.2),), solver=TIGHT, interpolation="cubic")


def adjoint(y, op):
    return op.A_adjoint(y)


def field(count, reach=0.6, seed=5):
    u = torch.cat([texture(N, N, seed=seed + i, width=2.0) for i in range(2 * count)]).view(count, 2, N, N)
    return reach * u / u.abs().amax((1, 2, 3), keepdim=True)


def scene(objects=1, acceleration=2, seed=0):
    """Objects, twice each, moved in between: measurements, operator, images."""
    images = []
    for i in range(objects):
        size = 1 + texture(N, N, seed=seed + i, width=1.2)
        still = torch.polar(size.abs(), 0.3 * texture(N, N, seed=50 + seed + i, width=3.0))
        images += [still[:, 0], warp(still, field(1, seed=5 + i), interpolation="cubic")[:, 0]]
    x = torch.cat(images)
    op = Fourier(torch.stack([cartesian(N, acceleration, 0.25, seed=i).mT for i in range(2 * objects)]))
    return op.A(x), op, x


def layer():
    return Reconstruction(
        Preconditioned(Ridge(filters=2, taps=3, saturation=0.3).to(D), eps=0.05), TIGHT, BACK, products=0
    )


def test_without_motion_it_is_the_formula():
    y, op, _ = scene(2)
    found = joint_loss(adjoint, y, op, None, weight=0.5)
    x = op.A_adjoint(y)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        k = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x[j]), norm="ortho"))
        expected = (op.mask[i] * k - y[i]).abs().square().sum() / y[i].abs().square().sum()  # of its own all is met
        assert found.loss[i].item() == pytest.approx(expected.item(), rel=1e-9)
    assert found.displacement is None
    assert found.report is None
    assert bool(found.used.all())
    assert torch.equal(found.image, x)


def test_the_other_image_is_brought_into_place_and_its_own_counts_by_the_weight():
    y, op, _ = scene()
    u = field(2)

    def crude(y, op):
        return 0.9 * op.A_adjoint(y)

    found = joint_loss(crude, y, op, u, weight=0.3)
    image = crude(y, op)
    for i, j in ((0, 1), (1, 0)):
        seen = warp(image[None, j : j + 1], u[i : i + 1], interpolation="cubic")[0]
        one = op.take(torch.tensor([i]))
        expected = missed(seen, y[i : i + 1], one) + 0.3 * 0.1**2
        assert found.loss[i].item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(found.displacement, u)


def test_true_images_at_their_true_motion_miss_nothing():
    y, op, x = scene()
    u = torch.cat((field(1), field(1)))  # true for the second, which was made by it
    found = joint_loss(lambda y, op: x, y, op, u)
    assert found.loss[1].item() == pytest.approx(0, abs=1e-20)
    assert joint_loss(lambda y, op: x, y, op, None).loss[1] > 1e-3
    # And noise of relative variance s is what is missed of a measurement that has it.
    noise = op.mask[1] * torch.randn(N, N, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    noise = 0.2 * noise * y[1].norm() / noise.norm()
    noisy = torch.stack((y[0], y[1] + noise))
    expected = 0.2**2 * y[1].norm() ** 2 / noisy[1].norm() ** 2
    assert joint_loss(lambda y, op: x, noisy, op, u, weight=0).loss[1].item() == pytest.approx(expected.item())


def test_registration_finds_much_of_the_motion_and_lowers_the_loss():
    y, op, x = scene(acceleration=1)
    found = joint_loss(adjoint, y, op, Demons("displacement", levels=((1, 2.0, 1.0),)))
    still = joint_loss(adjoint, y, op, None)
    assert bool(found.used.all())
    assert bool((found.loss < 0.5 * still.loss).all())
    direct = align(x.abs()[:, None], x[[1, 0]].abs()[:, None], Demons("displacement", levels=((1, 2.0, 1.0),)))
    torch.testing.assert_close(found.displacement, direct.displacement())


def test_rigid_motion_is_a_kind_too():
    still = torch.polar(1 + texture(N, N), 0.2 * texture(N, N, seed=3))[:, 0]
    moved = warp(still[None], torch.full((1, 2, N, N), 0.5, dtype=D), interpolation="cubic")[0]
    op = Fourier()
    y = op.A(torch.cat((still, moved)))
    found = joint_loss(adjoint, y, op, Rigid(levels=((1, 1),)))
    assert bool((found.loss < 0.3 * joint_loss(adjoint, y, op, None).loss).all())


@pytest.mark.parametrize("differentiate", [False, True])
def test_gradients_through_both_equilibria_are_those_of_differences(differentiate):
    y, op, _ = scene()
    network = layer()
    weights = list(network.parameters())
    start = parameters_to_vector(weights).detach().clone()
    way = torch.randn(start.shape, dtype=D, generator=torch.Generator().manual_seed(1))
    held = None if differentiate else joint_loss(network, y, op, STIFF).displacement.detach()

    def value(step):
        with torch.no_grad():
            vector_to_parameters(start + step * way, weights)
            return joint_loss(network, y, op, STIFF if held is None else held).loss.sum().item()

    found = joint_loss(network, y, op, STIFF, differentiate=differentiate)
    assert bool(found.used.all())
    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(found.loss.sum(), weights)])
    h = 1e-4
    numeric = (value(h) - value(-h)) / (2 * h)
    assert (gradient @ way).item() == pytest.approx(numeric, rel=1e-4)


def test_detached_is_the_gradient_at_the_motion_that_was_found():
    y, op, _ = scene()
    network = layer()
    through, held = (joint_loss(network, y, op, STIFF, differentiate=each) for each in (True, False))
    known = joint_loss(network, y, op, held.displacement)
    weights = list(network.parameters())
    whole, part, same = (torch.autograd.grad(each.loss.sum(), weights) for each in (through, held, known))
    torch.testing.assert_close(through.loss, held.loss, rtol=1e-7, atol=0)
    assert not held.displacement.requires_grad
    assert all(torch.equal(one, other) for one, other in zip(part, same, strict=True))
    assert any(not torch.allclose(one, other, rtol=1e-2) for one, other in zip(whole, part, strict=True))


@pytest.mark.parametrize("fault", ["nan", "zero", "unconverged and folded"])
@pytest.mark.parametrize("differentiate", [False, True])
def test_a_pair_that_fails_disturbs_no_other(fault, differentiate):
    y, op, x = scene(2)
    if fault == "nan":
        y[0, 3, 4] = math.nan
    elif fault == "zero":
        y[1] = 0
    else:  # no motion turns an image over: one way takes more steps than there are, the other one folds
        y[:2] = op.A(torch.stack((x[0], x[0].flip(0), x[2], x[3])))[:2]
    kind = replace(STIFF, solver=replace(TIGHT, max_steps=150))
    network = layer()
    network.on_failure = "ignore"
    weights = list(network.parameters())
    found = joint_loss(network, y, op, kind, differentiate=differentiate)
    alone = joint_loss(network, y[2:], op.take(torch.tensor([2, 3])), kind, differentiate=differentiate)
    assert found.used.tolist() == [False, False, True, True]
    assert torch.equal(found.loss[:2], torch.zeros(2, dtype=D))
    assert torch.equal(found.displacement[:2], torch.zeros(2, 2, N, N, dtype=D))
    assert torch.equal(found.loss[2:], alone.loss)
    assert found.report.status[0] != Status.CONVERGED
    gradients, expected = (torch.autograd.grad(each.loss.sum(), weights) for each in (found, alone))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_bad_input_is_refused_in_words():
    y, op, _ = scene()
    with pytest.raises(ValueError, match=r"got 1 samples.*torch.stack\(\(first, second\), 1\)"):
        joint_loss(adjoint, y[:1], op.take(torch.tensor([0])))
    with pytest.raises(TypeError, match=r"motion\): got a str.*Demons"):
        joint_loss(adjoint, y, op, "demons")
    with pytest.raises(ValueError, match=r"got displacements \(2, 2, 4, 4\), expected \(2, 2, 16, 16\)"):
        joint_loss(adjoint, y, op, torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match="weight=-1"):
        joint_loss(adjoint, y, op, None, weight=-1)


@pytest.mark.parametrize("fault", [math.nan, 0.0])
def test_a_pair_of_which_one_is_no_image_is_left_out_without_registration_too(fault):
    y, op, _ = scene(2)
    y[2] = fault
    found = joint_loss(adjoint, y, op, None)
    assert found.used.tolist() == [True, True, False, False]
    assert found.loss[2:].tolist() == [0, 0]


def test_a_registration_that_converged_to_folds_is_left_out(monkeypatch):
    y, op, _ = scene(2)

    def folded(fixed, moving, kind, **options):
        found = align(fixed, moving, kind, **options)
        vectors = found.displacement().clone()
        vectors[1, 0] = -2 * identity((N, N), vectors)[0]  # upside down
        return SimpleNamespace(displacement=lambda: vectors, report=found.report)

    monkeypatch.setattr("torchimplicit.imaging.joint.align", folded)
    found = joint_loss(adjoint, y, op, Rigid(levels=((1, 1),)))
    assert found.report.status[1] == Status.CONVERGED
    assert not found.used[1]
    assert found.loss[1] == 0
    assert bool(found.used[2:].all())
