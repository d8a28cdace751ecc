"""Total variation and wavelets: the minimum, in known cases and against an iteration of another kind; its gradient."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.imaging import Blur, Fourier, Inpainting, Sense, total_variation, wavelet
from torchimplicit.imaging.baselines.frame import Differences, Wavelets
from torchimplicit.optim import prox

TIGHT = ti.Anderson(window=10, rtol=1e-9, max_steps=3000)
EVERYTHING = Inpainting(torch.ones(8, 7, dtype=torch.bool))


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def coils(seed=0, height=8, width=7):
    mask = torch.rand(height, 1, generator=torch.Generator().manual_seed(seed)) < 0.6
    return Sense(random(3, height, width, dtype=torch.complex128, seed=seed), mask)


class Identity:
    """An operator of somebody else's."""

    def A(self, x):
        return x

    def A_adjoint(self, y):
        return y


def by_primal_dual(y, op, frame, weight, steps=1500):
    """The minimum by the method of Chambolle and Pock, as extended by Condat and Vu."""
    x = torch.zeros_like(op.A_adjoint(y))
    v = torch.zeros_like(frame.analyse(x))
    top = float(torch.linalg.matrix_norm(dense(op, x), 2)) ** 2
    sigma = top / frame.bound
    tau = 1 / (top / 2 + sigma * frame.bound)
    bound = weight * frame.weights(x)
    for _ in range(steps):
        new = x - tau * (op.A_adjoint(op.A(x) - y) + frame.adjoint(v))
        v = v + sigma * frame.analyse(2 * new - x)
        size = v.abs().square().sum(-1, keepdim=True).sqrt() if frame.joint else v.abs()
        v = v * (bound / size.clamp_min(1e-300)).clamp_max(1)
        x = new
    return x


def dense(op, like):
    basis = torch.eye(like[0].numel(), dtype=like.dtype).view(-1, *like.shape[1:])
    return op.A(basis).flatten(1).T


@pytest.mark.parametrize("isotropic", [True, False])
def test_what_is_measured_completely_is_denoised(isotropic):
    x = random(3, 8, 7)
    found = total_variation(x, Identity(), weight=0.3, isotropic=isotropic, solver=TIGHT)
    exact = prox.total_variation_2d(x, 0.3, isotropic=isotropic, solver=TIGHT)
    assert found.report.converged
    assert torch.allclose(found.value, exact, atol=1e-7)


@pytest.mark.parametrize("frame", [Differences(True), Differences(False), Wavelets(1, 2)])
def test_the_minimum_is_that_of_another_method(frame):
    op = coils()
    y = op.A(random(1, 8, 7, dtype=torch.complex128)) + 0.1 * random(1, 3, 8, 7, dtype=torch.complex128, seed=3)
    if isinstance(frame, Wavelets):
        found = wavelet(y, op, weight=0.4, moments=1, levels=2, solver=TIGHT)
    else:
        found = total_variation(y, op, weight=0.4, isotropic=frame.joint, solver=TIGHT)
    expected = by_primal_dual(y, op, frame, 0.4)
    assert found.report.converged
    assert (found.value - expected).abs().max() < 1e-5 * expected.abs().max()


def test_weights_scale_as_images_and_operators_do():
    op, y = coils(), coils().A(random(1, 8, 7, dtype=torch.complex128))
    one = total_variation(y, op, weight=0.3, solver=TIGHT).value
    many = total_variation(torch.cat([y, 1e-3j * y, 50 * y]), op, weight=torch.tensor([0.3, 3e-4, 15.0]), solver=TIGHT)
    assert torch.allclose(many.value / torch.tensor([1, 1e-3j, 50]).view(3, 1, 1), one.expand(3, -1, -1), atol=1e-6)
    loud = total_variation(20 * y, 20 * op, weight=400 * 0.3, solver=TIGHT).value
    assert torch.allclose(loud, one, atol=1e-6)


def test_channels_are_images_of_their_own():
    blur, x = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64)), random(1, 2, 8, 7)
    y = blur.A(x)
    loose = ti.Anderson(window=10, rtol=1e-5, max_steps=1000)
    together = total_variation(y, blur, weight=0.05, solver=loose).value
    apart = [total_variation(y[:, i : i + 1], blur, weight=0.05, solver=loose).value for i in range(2)]
    assert torch.allclose(together, torch.cat(apart, 1), atol=1e-3)


def test_a_sample_does_not_notice_its_mates():
    op = coils()
    y = op.A(random(3, 8, 7, dtype=torch.complex128))
    bad = y.clone()
    bad[1] = torch.nan
    good = total_variation(y, op, weight=0.3)
    with pytest.warns(ti.ConvergenceWarning, match="non_finite: sample 1"):
        mixed = total_variation(bad, op, weight=0.3)
    assert mixed.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
    assert torch.equal(mixed.value[[0, 2]], good.value[[0, 2]])
    assert torch.equal(mixed.steps[[0, 2]], good.steps[[0, 2]])


def test_zero_measurements_are_a_zero_image():
    found = total_variation(torch.zeros(1, 8, 7), Identity(), weight=0.3)
    assert found.report.converged
    assert not found.value.any()


@pytest.mark.parametrize("method", [total_variation, wavelet])
def test_the_minimum_is_differentiated_by_measurements_weight_and_maps(method):
    maps, mask = random(2, 5, 4, dtype=torch.complex128), torch.tensor([True, False, True, True, True])[:, None]
    y = Sense(maps, mask).A(random(1, 5, 4, dtype=torch.complex128, seed=1))
    options = {"levels": 1} if method is wavelet else {}
    solver = ti.Anderson(window=10, rtol=1e-8, max_steps=3000)
    adjoint = ti.Implicit(ti.GMRES(rtol=1e-8, restart=60, max_steps=600))
    leaves = [y, torch.tensor(0.5, dtype=torch.float64), maps]
    ways = [random(*leaf.shape, dtype=leaf.dtype, seed=5) for leaf in leaves]

    def solve(y, weight, maps):
        return method(y, Sense(maps, mask), weight=weight, solver=solver, adjoint=adjoint, **options)

    def loss(solution):
        return (solution.value * random(1, 5, 4, dtype=torch.complex128, seed=2)).real.sum()

    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    solution = solve(*leaves)
    gradients = torch.autograd.grad(loss(solution), leaves)
    assert solution.backward.converged
    slope = sum((gradient.conj() * way).real.sum() for gradient, way in zip(gradients, ways, strict=True))
    with torch.no_grad():
        ends = [[leaf + step * way for leaf, way in zip(leaves, ways, strict=True)] for step in (1e-5, -1e-5)]
        expected = (loss(solve(*ends[0])) - loss(solve(*ends[1]))) / 2e-5
    assert float(slope) == pytest.approx(float(expected), rel=1e-3)
    assert all(bool(gradient.abs().max() > 1e-3) for gradient in gradients)


def test_more_steps_change_nothing_once_converged():
    op, x = coils(), torch.zeros(1, 8, 7, dtype=torch.complex128)
    x[:, 2:6, 2:5] = 1 + 1j
    y = op.A(x)
    errors = []
    for steps in (10, 50, 200, 500):
        solver = ti.Anderson(window=10, rtol=1e-5, max_steps=steps)
        found = total_variation(y, op, weight=0.1, solver=solver, on_failure="ignore")
        errors.append((bool(found.report.converged), 10 * float((found.value - x).abs().square().mean().log10())))
    done = [error for converged, error in errors if converged]
    assert len(done) >= 2
    assert max(done) - min(done) < 0.05


def test_too_few_steps_are_said():
    y = random(1, 8, 7)
    options = {"weight": 0.3, "solver": ti.Picard(rtol=1e-9, max_steps=2)}
    with pytest.warns(ti.ConvergenceWarning, match="max_steps"):
        total_variation(y, Identity(), **options)
    with pytest.raises(ti.ConvergenceError) as caught:
        total_variation(y, Identity(), on_failure="raise", **options)
    assert caught.value.solution.value.shape == y.shape


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), "0.1", torch.ones(2), torch.tensor(-1.0), True])
def test_impossible_weights(weight):
    with pytest.raises(ValueError, match=r"total_variation\(weight=.*expected a"):
        total_variation(random(1, 8, 7), Identity(), weight=weight)


def test_impossible_measurements_and_operators():
    with pytest.raises(TypeError, match=r"expected an operator, with methods A\(x\) and A_adjoint"):
        total_variation(random(1, 8, 7), torch.nn.ReLU(), weight=0.1)
    with pytest.raises(TypeError, match=r"try y.float"):
        total_variation(torch.ones(1, 8, 7, dtype=torch.int64), Identity(), weight=0.1)
    with pytest.raises(ValueError, match=r"got images \(1, 7\), expected \(B, ..., H, W\)"):
        total_variation(random(1, 7), Identity(), weight=0.1)
    with pytest.raises(ValueError, match="moments"):
        wavelet(random(1, 8, 7), Identity(), weight=0.1, moments=0)
    with pytest.raises(ValueError, match="levels"):
        wavelet(random(1, 8, 7), Identity(), weight=0.1, levels=0)


@pytest.mark.parametrize("options", [{"moments": 1}, {"levels": 1}])
def test_every_option_of_wavelets_changes_the_image(options):
    y = Fourier(torch.tensor([True, True, False, True])[:, None]).A(random(1, 4, 8, dtype=torch.complex128))
    op = Fourier(torch.tensor([True, True, False, True])[:, None])
    usual, other = (wavelet(y, op, weight=0.2, **some).value for some in ({}, options))
    assert (usual - other).abs().max() > 1e-2
