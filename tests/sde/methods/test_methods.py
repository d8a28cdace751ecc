"""What all methods keep: gradients, samples for themselves, evaluations, and the noise that they are for."""

import pytest
import torch

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, MATRIX, TS, D, drift, rate_and_mix, start
from torchimplicit import sde

METHODS = [sde.EulerMaruyama, sde.Milstein, sde.SRID2, sde.Heun, sde.Midpoint, sde.ReversibleHeun, sde.LogODE]
METHODS += [sde.SRA1, sde.ShARK]
PAIRS = [(method, noise) for method in METHODS for noise in method.kinds]
pairs = pytest.mark.parametrize(("method", "noise"), PAIRS, ids=lambda each: getattr(each, "__name__", each))


def solve(method, noise, y0, ts, rate, mix, dt=0.3, **options):
    options = {"solver": method(dt=dt), "calculus": method.calculus, "noise": noise, "brownian": 3, **options}
    return ti.sdeint(drift, DIFFUSIONS[noise], y0, ts, rate, mix, **options)


@pairs
def test_gradients(method, noise):
    found = []
    for adjoint in (ti.Direct(), ti.Checkpointed(2)):
        inputs = tuple(each.requires_grad_() for each in (start(), *rate_and_mix()))

        def run(y0, rate, mix, adjoint=adjoint):
            return solve(method, noise, y0, TS, rate, mix, adjoint=adjoint).value

        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
        found.append(torch.autograd.grad(run(*inputs).sin().sum(), inputs, materialize_grads=True))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


@pairs
def test_samples_with_times_of_their_own(method, noise):
    """One stands still while others go on: neither values nor gradients notice, those by the times included."""
    ts = torch.stack((TS, torch.tensor([0.0, 0.5, 0.5], dtype=D), TS), 1).requires_grad_()
    inputs = tuple(each.requires_grad_() for each in (start(3), *rate_and_mix()))
    sol = solve(method, noise, inputs[0], ts, *inputs[1:])
    grads = torch.autograd.grad(sol.value[-1].sum(), (*inputs, ts), materialize_grads=True)
    assert all(grad.isfinite().all() for grad in grads)
    seeds = sde.Brownian(seed=3).bind(torch.empty(3, 1)).seeds
    for row in range(3):
        alone = solve(method, noise, start(3)[[row]], ts[:, [row]], 0.5, MATRIX, brownian=seeds[[row]])
        assert torch.allclose(alone.value[:, 0], sol.value[:, row], rtol=1e-14, atol=0)
        assert alone.report.steps == sol.report.steps[row]


def test_evaluations():
    """Of drift and diffusion for every step more."""
    expected = {sde.EulerMaruyama: 2, sde.Milstein: 3, sde.SRID2: 7, sde.Heun: 4, sde.Midpoint: 4}
    expected |= {sde.LogODE: 7, sde.SRA1: 4, sde.ShARK: 4, sde.ReversibleHeun: 2}  # of three Brownian motions
    for method, count in expected.items():
        noise = "additive" if method.kinds == ("additive",) else "diagonal"
        one, two = (solve(method, noise, start(), TS[[0, 2]], 0.5, MATRIX, dt).nfev for dt in (1.0, 0.5))
        assert two - one == count, method


def test_noise_of_another_kind_is_refused():
    for method in METHODS:
        for noise in set(DIFFUSIONS) - set(method.kinds):
            with pytest.raises(ValueError, match=f"noise: got '{noise}' with {method.__name__}, expected one of"):
                solve(method, noise, start(), TS, 0.5, MATRIX)
