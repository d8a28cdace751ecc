"""Measurements: operators, posteriors that are exact, and one that is not; replacement; failures; bad input."""

import math

import pytest
import torch

import torchimplicit as ti
from tests.nn.score.gaussian import MEAN, VARIANCE, D, Exact, double, model
from tests.nn.score.mixture import SEEN, SIZE, errors, measured, mixture
from torchimplicit.nn.score.conditioned import conditioned

COUNT = 6000
HALF = torch.tensor([True, False, True])
BLUR = ti.imaging.Blur(torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.4, 0.3], [0.0, 0.0, 0.1]], dtype=D), "reflect")


class Mix(ti.imaging.Operator):
    """Two weighted sums of three entries, of no simple Gram matrix."""

    def __init__(self, turned=1.0):
        super().__init__()
        self.matrix, self.turned = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]], dtype=D), turned

    def A(self, x):
        return x @ self.matrix.T

    def A_adjoint(self, y):
        return self.turned * y @ self.matrix


def posterior(A, y, std, mean, variance):
    """Mean and covariance of normal data given `y`."""
    C = torch.diag(variance)
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + std**2 * torch.eye(len(A), dtype=D))
    return mean + (y - A @ mean) @ gain.T, C - gain @ A @ C


def check_posterior(x, mean, covariance):
    """Within four standard errors."""
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / len(x)).sqrt()).all()
    size = covariance.diagonal()
    error = (size[:, None] * size + covariance.square()) / len(x)
    assert ((torch.cov(x.T) - covariance).abs() < 4 * error.sqrt() + 1e-12).all()


@pytest.mark.parametrize("covariance", ["isotropic", "tweedie"])
@pytest.mark.parametrize("operator", [ti.imaging.Inpainting(HALF), Mix()], ids=["inpainting", "mix"])
@pytest.mark.parametrize("sampler", [ti.nn.HeunEDM(80), ti.nn.ReverseSDE(ti.sde.Heun(dt=0.15))], ids=["ode", "sde"])
def test_guidance_is_exact_for_normal_data(covariance, operator, sampler):
    """Of one variance, with the isotropic covariance; of any, with the true one."""
    variance = torch.full((3,), 0.25, dtype=D) if covariance == "isotropic" else VARIANCE
    own = ti.nn.Denoiser(Exact(variance=variance), ti.nn.EDM(0.01, 80.0), shape=3, interval=None)
    A, y, std = operator.A(torch.eye(3, dtype=D)).T, torch.tensor([[0.6, 0.9]], dtype=D), 0.3
    given = ti.nn.Guidance(operator, y, std, covariance)
    with torch.no_grad():
        x = own.sample(COUNT, sampler, seed=1, condition=given)
    check_posterior(x, *posterior(A, y[0], std, MEAN, variance))
    assert own.report.converged


@pytest.mark.parametrize("products", [1, 2])
def test_what_few_products_leave_of_the_equations_is_told(products):
    """By the equations themselves, of normal data, at what the adjoint of the operator is given; two solve two."""

    class Heard(Mix):
        def A_adjoint(self, y):
            self.last = y
            return super().A_adjoint(y)

    own = ti.nn.Denoiser(Exact(), ti.nn.EDM(0.01, 80.0), shape=3, interval=None)
    operator, y = Heard(), double(5, 2)
    given = ti.nn.Guidance(operator, y, 0.3, "tweedie", products)
    guided = given.around(conditioned(own, None, 1, None, double(5, 3)), double(5, 3), own.std)
    A, worst = operator.matrix, torch.zeros(5, dtype=D)
    for level in (20.0, 0.5, 0.1):
        u = level * double(5, 3, seed=2)
        guided(u, torch.full((5, 1), level, dtype=D))
        J = torch.diag(VARIANCE / (VARIANCE + level**2))
        K = level**2 * A @ J @ A.T + 0.09 * torch.eye(2, dtype=D)
        miss = y - (MEAN + (u - MEAN) @ J) @ A.T
        left = miss - operator.last @ K
        worst = torch.maximum(worst, left.norm(dim=1) / miss.norm(dim=1))
    assert torch.allclose(guided.unsolved, worst, atol=1e-9)
    assert (worst > 1e-2).any() == (products == 1)


def test_the_report_of_samples_tells_what_the_guidance_left():
    own, seen = model(), double(4, 2)
    with torch.no_grad():
        for covariance, products in (("tweedie", 1), ("tweedie", 2), ("isotropic", 1)):
            own.sample(4, ti.nn.HeunEDM(12), seed=0, condition=ti.nn.Guidance(Mix(), seen, 0.1, covariance, products))
            assert own.report.converged
            assert own.report.unsolved.shape == (4,)
            assert (own.report.unsolved > 1e-3).all() == (products == 1 and covariance == "tweedie")
        own.sample(4, seed=0, condition=ti.nn.Guidance(ti.imaging.Inpainting(HALF), seen))
        assert not own.report.unsolved.any()
        own.sample(4, seed=0)
    assert own.report.unsolved is None


@pytest.mark.parametrize(
    ("operator", "shape"), [(ti.imaging.Greyscale(), (3, 1, 2)), (BLUR, (1, 2, 3))], ids=["colour", "blur"]
)
@pytest.mark.parametrize("covariance", ["isotropic", "tweedie"])
def test_colours_and_sharpness_of_normal_images(operator, shape, covariance):
    """A network that returns zeros knows normal images of mean zero; all entries of the posterior are looked at."""
    own = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), ti.nn.EDM(0.01, 80.0), shape=shape, interval=None).double()
    count = math.prod(shape)
    A = operator.A(torch.eye(count, dtype=D).view(-1, *shape)).flatten(1).T
    y, std = 0.4 * double(1, *operator.A(double(1, *shape)).shape[1:]), 0.2
    condition = ti.nn.Guidance(operator, y, std, covariance, products=len(A))
    x = own.sample(2000, ti.nn.DPMSolverMultistep(50), seed=1, condition=condition).flatten(1)
    check_posterior(
        x, *posterior(A, y.flatten(), std, torch.zeros(count, dtype=D), torch.full((count,), 0.25, dtype=D))
    )
    assert own.report.converged


def test_colours_by_replacement():
    own = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=(3, 2, 2), interval=None).double()
    grey = double(1, 1, 2, 2)
    x = own.sample(50, ti.nn.Replacement(operator=ti.imaging.Greyscale(), y=grey, steps=20), seed=1)
    assert torch.allclose(ti.imaging.Greyscale().A(x), grey.expand(50, -1, -1, -1))
    assert x.std(0).min() > 0.1


def test_the_isotropic_covariance_is_biased_for_others():
    """Which is what the documentation says of it."""
    y, std = torch.tensor([[0.6, 0.9]], dtype=D), 0.3
    x = model().sample(COUNT, ti.nn.HeunEDM(60), seed=1, condition=ti.nn.Guidance(Mix(), y, std))
    mean, _ = posterior(Mix().matrix, y[0], std, MEAN, VARIANCE)
    assert (x.mean(0) - mean).norm() > 0.05


def test_a_mixture_against_its_posterior():
    """How far the modes' shares are off, in the mean of 8 measurements: all are biased, some far less than others."""
    own, operator, std, each = mixture(), ti.imaging.Inpainting(torch.arange(SIZE) < SEEN), 0.05, 100
    given = [measured(100 + k, std) for k in range(8)]
    y = torch.cat([y.expand(each, -1) for y, *_ in given])

    def off(sampler, covariance=None):
        condition = None if covariance is None else ti.nn.Guidance(operator, y, std, covariance)
        x = own.sample(len(y), sampler, seed=7, condition=condition).split(each)
        return sum(errors(part, *known)[0] for part, (_, *known) in zip(x, given, strict=True)) / len(given)

    corrected = ti.nn.PredictorCorrector(60, corrections=2, snr=0.3)
    replaced, repeated = (off(ti.nn.Replacement(operator=operator, y=y, steps=20, repeats=n)) for n in (1, 8))
    flow, tweedie = (off(ti.nn.DPMSolverMultistep(20), name) for name in ("isotropic", "tweedie"))
    isotropic, best = (off(corrected, name) for name in ("isotropic", "tweedie"))
    assert min(flow, replaced) > 0.38, "the probability flow with an isotropic covariance is no better than replacement"
    assert max(isotropic, tweedie, repeated) < 0.33
    assert best < 0.2


def test_measurements_of_their_own_and_independence():
    own, operator = model(), ti.imaging.Inpainting(HALF)
    y, seeds = double(5, 2), torch.arange(5)
    for sampler in (ti.nn.HeunEDM(12), ti.nn.Replacement(operator=operator, y=y, steps=12, repeats=2)):
        condition = None if isinstance(sampler, ti.nn.Replacement) else ti.nn.Guidance(operator, y)
        x = own.sample(5, sampler, seed=seeds, condition=condition)
        assert torch.allclose(operator.A(x), y, atol=1e-4)
        order = torch.tensor([3, 1])
        if condition is None:
            other = own.sample(
                2, ti.nn.Replacement(operator=operator, y=y[order], steps=12, repeats=2), seed=seeds[order]
            )
        else:
            other = own.sample(2, sampler, seed=seeds[order], condition=ti.nn.Guidance(operator, y[order]))
        assert torch.equal(other, x[order])


def test_a_class_and_a_measurement():
    own = ti.nn.Denoiser(Exact(), shape=3, classes=2, interval=None)
    given = ti.nn.Guidance(ti.imaging.Inpainting(HALF), torch.tensor([[0.2, 0.1]], dtype=D), 0.1)
    x = own.sample(4000, seed=1, label=1, guidance=2.0, condition=given)
    assert abs(x[:, 1].mean() - 1.0) < 0.05  # twice the class's mean of 0.5
    assert (x[:, 0] - 0.2).abs().max() < 0.6


def test_every_sampler_takes_a_condition():
    own, y = model(), torch.tensor([[0.2]], dtype=D)
    given = ti.nn.Guidance(ti.imaging.Inpainting(torch.tensor([True, False, False])), y, 1e-3)
    for sampler in (
        ti.nn.HeunEDM(12, churn=2.0), ti.nn.DPMSolverMultistep(12), ti.nn.PredictorCorrector(40), ti.nn.ReverseSDE(),
        ti.nn.ProbabilityFlow(),
    ):  # fmt: skip
        x = own.sample(8, sampler, seed=1, condition=given)
        assert (x[:, 0] - 0.2).abs().max() < 0.02
        assert x[:, 1].std() > 0.01
        assert own.report.nfev > 11
        assert not x.requires_grad


def test_equations_that_are_not_solved_are_told():
    """An operator that measures the same twice, otherwise each time, without noise."""

    class Twice(Mix):
        def __init__(self):
            super().__init__()
            self.matrix = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=D)

    own, y = model(), torch.tensor([[0.2, 0.4]], dtype=D)
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)stagnated.*Try std=... of the noise"):
        own.sample(3, condition=ti.nn.Guidance(Twice(), y))
    assert (own.report.status == ti.Status.STAGNATED).all()
    x = own.sample(3, condition=ti.nn.Guidance(Twice(), y, 1e-2))
    assert own.report.converged
    assert torch.allclose(x[:, 0], torch.tensor(0.3, dtype=D), atol=0.05)


SEES = ti.imaging.Inpainting(HALF)
Y = torch.zeros(1, 2, dtype=D)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ti.nn.Guidance(SEES, Y, std=-1), ValueError, r"Guidance\(std=-1\)"),
        (lambda: ti.nn.Guidance(SEES, Y, covariance="full"), ValueError, r"Guidance\(covariance='full'\)"),
        (lambda: ti.nn.Guidance(SEES, Y, products=0), ValueError, r"Guidance\(products=0\)"),
        (lambda: ti.nn.Replacement(operator=Mix(), y=Y), ValueError, r"expected one whose `coisometry` says"),
        (lambda: ti.nn.Replacement(operator=SEES, y=Y, repeats=0), ValueError, r"Replacement\(repeats=0\)"),
        (lambda: model().sample(2, condition=SEES), TypeError, "condition: got .*ti.nn.Guidance"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(abs, Y)), TypeError, r"expected something with A\(x\)"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(SEES, [0.0])), TypeError, r"Guidance\(y=...\): got list"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(SEES, Y.long())), TypeError, "got torch.int64"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(SEES, Y[:, :1])), ValueError, r"expected \(2, 2\) or \(1"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(SEES, Y.expand(3, 2))), ValueError, r"got shape \(3, 2\)"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(SEES, Y / 0)), ValueError, "got NaN or infinity, expected"),
        (lambda: model().sample(2, condition=ti.nn.Guidance(Mix(-1.0), Y)), ValueError, "got an adjoint that is none"),
        (lambda: model().sample(2, ti.nn.Replacement(operator=SEES, y=Y[0])), ValueError, r"Replacement\(y=...\)"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()
