"""The layer: memory, independence, the physics as an argument, and how far an answer is from the fixed point."""

import copy
import pickle

import pytest
import torch

import torchimplicit as ti
from tests.imaging.reconstruct.measuring import blur, coils, images
from torchimplicit.imaging import (
    ADMM,
    Blur,
    DnCNN,
    DouglasRachford,
    Gradient,
    HalfQuadratic,
    Proximal,
    Reconstruction,
    Ridge,
    Sense,
    averaged,
)

TIGHT = ti.Anderson(rtol=1e-11, atol=1e-13, max_steps=3000)


def ridge(**options):
    return Ridge(**{"filters": 4, "taps": 3, "saturation": 0.05} | options).double()


def gradient(eps=1e-2):
    return Gradient(ridge(), eps=eps).double()


def psnr(x, truth):
    return -10 * (x - truth).square().mean((1, 2, 3)).log10()


def saved(layer, y, op):
    """Bytes kept for the backward pass, each storage once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = layer(y, op)
    assert x.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("make", [gradient, lambda: ADMM(ridge()).double()])
def test_what_is_saved_for_backward_does_not_grow_with_the_steps(make):
    op, cell = blur(), make()
    y = op.A(images()).detach()
    few, many = (
        Reconstruction(cell, ti.Anderson(rtol=0, atol=0, max_steps=steps), on_failure="ignore") for steps in (10, 50)
    )
    assert saved(few, y, op) == saved(many, y, op)
    assert few.report.steps.tolist() == [10, 10]
    assert many.report.steps.tolist() == [50, 50]


def test_ten_times_the_steps_do_not_harm_the_image():
    op, truth, cell = (
        blur(n=24),
        images(n=24),
        Gradient(Ridge.total_variation(1e-3, width=0.1, taps=3).double()).double(),
    )
    y = op.A(truth) + 1e-3 * torch.randn(truth.shape, dtype=truth.dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stopped = Reconstruction(cell, on_failure="raise")
        quality = psnr(stopped(y, op), truth)
        steps = 10 * int(stopped.report.steps.max())
        on = Reconstruction(cell, ti.Anderson(window=10, rtol=0, atol=0, max_steps=steps), on_failure="ignore")
        assert bool((psnr(on(y, op), truth) > quality - 0.05).all())
        assert bool((quality > psnr(y, truth) + 10).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_report_covers_the_distance_to_the_fixed_point(symmetric):
    op = blur(n=16, width=4)
    cell = gradient(1e-3) if symmetric else HalfQuadratic(ridge(), eps=1e-3).double()
    y = op.A(images(n=16))
    with torch.no_grad():
        exact = Reconstruction(cell, TIGHT, on_failure="ignore")(y, op)
        for rtol in (1e-2, 1e-3, 1e-4):
            layer = Reconstruction(cell, ti.Anderson(rtol=rtol))
            true = (layer(y, op) - exact).square().mean((1, 2, 3)).sqrt()
            distance, bound = layer.report.distance, layer.report.bound
            assert bool((distance > 0.5 * true).all())
            assert bool((distance < 10 * true).all())
            if symmetric:
                assert bool((true < distance).all())
                assert bool((distance < bound).all())
            assert bool((true <= bound * (1 + 1e-6)).all()) or not symmetric
            assert f"distance up to about {distance.max():.2e}" in str(layer.report)


@pytest.mark.parametrize("kind", [ADMM, DouglasRachford])
def test_the_distance_is_of_the_image_whatever_the_state_is(kind):
    """A multiplier may be far larger than the image: of the pair the distance would be another one."""
    op = blur(n=16, width=4)
    cell = kind(ridge(), step=200.0, eps=1e-3).double()
    y = op.A(images(n=16))
    with torch.no_grad():
        exact = Reconstruction(cell, TIGHT, on_failure="ignore")(y, op)
        for rtol in (1e-2, 1e-3):
            layer = Reconstruction(cell, ti.Anderson(rtol=rtol, atol=0.0))
            true = (layer(y, op) - exact).square().mean((1, 2, 3)).sqrt()
            assert bool((layer.report.distance > 0.5 * true).all())
            assert bool((layer.report.distance < 2 * true).all())


def test_the_distance_is_asked_for_where_no_gradient_is_wanted():
    op, cell = blur(), gradient()
    y = op.A(images()).detach()
    layer, without = Reconstruction(cell), Reconstruction(cell, products=0)
    layer(y, op)
    assert layer.report.distance is None
    assert bool(layer.report.bound.isfinite().all())
    with torch.no_grad():
        layer(y, op), without(y, op)
    assert layer.report.distance.shape == (2,)
    assert without.report.distance is None


class Own(torch.nn.Module):
    """A user's cell, of which nothing is known."""

    def forward(self, z, y, op):
        return z - 0.5 * (op.A_adjoint(op.A(z) - y) + 0.1 * z)


def test_a_users_cell_is_a_cell():
    op, truth = blur(), images()
    y = op.A(truth)
    with torch.no_grad():
        layer = Reconstruction(Own(), init=lambda y, op: op.A_adjoint(y))
        x = layer(y, op)
        assert x.shape == truth.shape
        assert layer.report.converged
        assert layer.report.bound is None
        exact = op.prox(torch.zeros_like(y), y, 10.0)
        true = (x - exact).square().mean((1, 2, 3)).sqrt()
        assert bool((layer.report.distance < 10 * true + 1e-9).all())
        assert bool((layer.report.distance > 0.1 * true).all())


def test_what_the_physics_is_made_of_gets_gradients():
    op, layer = (
        coils(n=6, count=2),
        Reconstruction(gradient(0.05), TIGHT, ti.Implicit(ti.CG(rtol=1e-12, max_steps=500))),
    )
    y = op.A(torch.complex(images(1, 6), images(1, 6, seed=1)).squeeze(1)).detach()

    def image(maps, y):
        own = copy.copy(op)
        own._parameters = {"maps": maps}
        return torch.view_as_real(layer(y, own))

    assert torch.autograd.gradcheck(
        image, (op.maps.detach().requires_grad_(), y.requires_grad_()), rtol=1e-4, fast_mode=True
    )


def test_the_prior_gets_gradients():
    op, cell = blur(n=6), gradient(0.05)
    layer = Reconstruction(cell, TIGHT, ti.Implicit(ti.CG(rtol=1e-12, max_steps=500)))
    y = op.A(images(1, 6)).detach()

    def image(weight, log_saturation):
        cell.prior._parameters = {"weight": weight, "log_saturation": log_saturation}
        return layer(y, op)

    inputs = [parameter.detach().clone().requires_grad_() for parameter in cell.prior.parameters()]
    assert torch.autograd.gradcheck(image, inputs, rtol=1e-4)


@pytest.mark.parametrize("many", [False, True])
def test_every_sample_has_the_image_that_it_has_alone(many):
    """Physics of its own, of norms of its own; in a batch so large that the solve goes on with those that still run."""
    count, n = (40, 24) if many else (3, 12)
    op, y = blur(n=n, batch=count), images(count, n=n)
    with torch.no_grad():
        y = op.A(y) * torch.logspace(0, 2, count, dtype=y.dtype).reshape(-1, 1, 1, 1)
        layer = Reconstruction(gradient(1e-3), ti.Anderson(rtol=1e-6, max_steps=300))
        together = layer(y, op)
        report = layer.report
        for i in range(0, count, 8 if many else 1):
            rows = torch.tensor([i])
            alone = layer(y[rows], op.take(rows))
            torch.testing.assert_close(alone, together[rows], rtol=1e-9, atol=0)
            assert layer.report.steps.tolist() == report.steps[rows].tolist()
            torch.testing.assert_close(layer.report.distance, report.distance[rows], rtol=1e-5, atol=0)


class Counting(Gradient):
    """Notes how many samples each evaluation was of."""

    seen: list

    def forward(self, z, y, op):
        assert len(z) == len(y) == (len(op.kernel) if op.kernel.dim() == 3 else len(z))
        type(self).seen.append(len(z))
        return super().forward(z, y, op)


@pytest.mark.parametrize("own", [True, False])
def test_a_large_batch_goes_on_without_those_that_have_arrived(own):
    count, n = 64, 24
    Counting.seen = []
    op = blur(n=n, batch=count if own else None)
    with torch.no_grad():
        x = images(count, n=n) * torch.where(torch.arange(count) < 4, 1.0, 0.0).reshape(-1, 1, 1, 1).double()
        layer = Reconstruction(Counting(ridge(), eps=1e-3).double(), products=0)
        layer(op.A(x), op)
    assert layer.report.converged
    assert 4 in Counting.seen


def test_one_sample_of_many_fails_alone():
    op, y = blur(), blur().A(images(3)).detach()
    y[1, 0, 2, 2] = torch.nan
    layer = Reconstruction(gradient(), on_failure="ignore")
    x = layer(y, op)
    assert layer.report.status.tolist() == [0, ti.Status.NON_FINITE, 0]
    x.square().sum().backward()
    grads = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    alone = layer(y[[0, 2]], op)
    torch.testing.assert_close(alone, x[[0, 2]], rtol=1e-12, atol=0)
    alone.square().sum().backward()
    for ours, theirs in zip(grads, (parameter.grad for parameter in layer.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    with torch.no_grad():
        layer(y, op)
    assert layer.report.distance.isfinite().tolist() == [True, False, True]


def test_what_does_not_converge_says_so():
    op, y = blur(), blur().A(images()).detach()
    layer = Reconstruction(Proximal(averaged(DnCNN(width=4, depth=2))).double(), ti.Anderson(rtol=1e-12, max_steps=2))
    with pytest.warns(ti.ConvergenceWarning, match="in Reconstruction"):
        layer(y, op)
    assert layer.report.status.tolist() == [ti.Status.MAX_STEPS] * 2


@pytest.mark.parametrize(
    "tried",
    [
        lambda: Gradient(ridge(curvature=0.01), eps=0.1),
        lambda: HalfQuadratic(ridge(curvature=0.01), step=100.0),
        lambda: DouglasRachford(ridge(curvature=0.01), step=100.0),
    ],
)
def test_what_the_advice_says_to_try_helps(tried):
    op = blur(n=16, width=4)
    y, solver = op.A(images(n=16)).detach(), ti.Anderson(window=10, rtol=1e-6, max_steps=40)
    layer = Reconstruction(Gradient(ridge(curvature=0.01)).double(), solver)
    with pytest.warns(ti.ConvergenceWarning, match="try a larger eps in the cell"):
        layer(y, op)
    other = Reconstruction(tried().double(), solver)
    other(y, op)
    assert other.report.converged


def test_symmetric_cells_take_conjugate_gradients_backward():
    op, y = blur(n=16), blur(n=16).A(images(n=16)).detach()
    layer, other = Reconstruction(gradient()), Reconstruction(HalfQuadratic(ridge()))
    assert isinstance(layer.adjoint.linear_solver, ti.CG)
    assert isinstance(other.adjoint.linear_solver, ti.GMRES)
    layer(y, op).square().mean().backward()
    assert layer.report.backward.converged
    chosen = Reconstruction(gradient(), adjoint=ti.Implicit(ti.LU()))
    assert isinstance(chosen.adjoint.linear_solver, ti.LU)


@pytest.mark.parametrize("kind", [Gradient, Proximal, HalfQuadratic, ADMM, DouglasRachford])
def test_every_cell_makes_a_layer_of_images(kind):
    op, truth = blur(), images()
    layer = Reconstruction(kind(ridge(), eps=1e-2).double(), ti.Anderson(rtol=1e-6, max_steps=500), on_failure="raise")
    x, steps = layer(op.A(truth), op, save_steps=(0, 1))
    assert x.shape == truth.shape
    assert [step.shape for step in steps] == [truth.shape] * 2
    (x - truth).square().mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in layer.cell.prior.parameters())
    torch.testing.assert_close(layer(op.A(truth), op=op), x, rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    torch.testing.assert_close(again(op.A(truth), op), x)


def test_a_measurement_without_its_physics_is_refused():
    with pytest.raises(TypeError, match=r"expected layer\(y, op\)"):
        Reconstruction(gradient())(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="products"):
        Reconstruction(gradient(), products=-1)


@pytest.mark.parametrize("own", [False, True])
def test_coils_with_masks_and_maps_of_ones_own(own):
    """The operators of the package: complex images, every sample as alone, and gradients by the maps."""
    generator = torch.Generator().manual_seed(0)
    lines = torch.rand(3 if own else 1, 1, 12, generator=generator) < 0.5
    maps = coils(n=12).maps.detach()
    maps = (maps * torch.linspace(0.5, 1.5, 3).reshape(3, 1, 1, 1) if own else maps).requires_grad_()
    op, x = Sense(maps, lines if own else lines[0]), torch.complex(images(3), images(3, seed=1)).squeeze(1)
    layer = Reconstruction(gradient(1e-2), ti.Anderson(rtol=1e-9, max_steps=500), on_failure="raise")
    y = op.A(x).detach()
    together = layer(y, op)
    (slope,) = torch.autograd.grad(together.abs().square().sum(), maps)
    assert bool(slope.abs().sum() > 0)
    for i in range(3):
        alone = layer(y[i : i + 1], op.take(torch.tensor([i])))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [Gradient, HalfQuadratic])
def test_a_blur_that_loses_the_border_gives_the_whole_image(kind):
    op, truth = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64)), images(n=20)
    y = op.A(truth)
    with torch.no_grad():
        layer = Reconstruction(kind(Ridge.total_variation(1e-4, width=0.1, taps=3).double()).double())
        x = layer(y, op)
    assert y.shape[-1] == 18
    assert x.shape == truth.shape
    assert layer.report.converged
    assert bool((psnr(x, truth) > 25).all())
