"""The divergence from a prior: exact values, infinite ones, gradients by every adjoint, and what is refused."""

import math

import pytest
import torch
from torch import func
from torch.distributions import Normal

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, TS, D, drift, rate_and_mix, start
from torchimplicit import sde
from torchimplicit.sde.girsanov import control

ADJOINTS = [ti.Direct(), ti.Checkpointed(2)]
EULER, HEUN = sde.EulerMaruyama(dt=0.26), sde.Heun(dt=0.26)
RATIO = 1.5 / 0.7  # of drifts 0.5 y and -y by a diffusion of 0.7
SHAPES = {
    "diagonal": lambda t, y: torch.full_like(y, 0.7),
    "scalar": lambda t, y: torch.full_like(y, 0.7).unsqueeze(-1),
    "additive": lambda t, y: torch.full_like(y, 0.7).unsqueeze(-1),
    "general": lambda t, y: (torch.full_like(y, 0.7) / math.sqrt(2)).unsqueeze(-1).expand(-1, -1, 2),
}


def ornstein_uhlenbeck(noise, solver, batch=2000, **options):
    return ti.sdeint(
        lambda t, y: 0.5 * y, SHAPES[noise], torch.ones(batch, 1, dtype=D), TS[[0, 2]], noise=noise, solver=solver,
        calculus=solver.calculus, brownian=1, prior=lambda t, y: -y, **options,
    )  # fmt: skip


def near(found, expected):
    return abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))


@pytest.mark.parametrize("noise", SHAPES)
def test_ornstein_and_uhlenbeck(noise):
    """Exactly 4.753; by Euler's method what the recursion of its second moment gives."""
    kl = ornstein_uhlenbeck(noise, sde.Heun(dt=0.1)).kl
    assert kl.shape == (2, 2000)
    assert not kl[0].any()
    assert near(kl[1], 4.753)
    moment, expected = 1.0, 0.0
    for _ in range(10):
        expected += 0.05 * RATIO**2 * moment
        moment = moment * 1.05**2 + 0.49 * 0.1
    assert near(ornstein_uhlenbeck(noise, sde.EulerMaruyama(dt=0.1)).kl[1], expected)


@pytest.mark.parametrize("solver", [sde.SRA1(dt=0.1), sde.ShARK(dt=0.1), sde.Heun(rtol=0.1)], ids=repr)
def test_other_methods(solver):
    assert near(ornstein_uhlenbeck("additive", solver).kl[1], 4.753)


def test_the_logarithm_of_the_density():
    """Pathwise, a path of Euler's method has the densities of its normal steps."""
    ts = torch.linspace(0, 1, 11, dtype=D)
    diffusion = lambda t, y: 0.5 + 0.2 * y.roll(1, 1).sin()  # noqa: E731
    sol = ti.sdeint(
        lambda t, y: torch.sin(y + t), diffusion, start(), ts, solver=sde.EulerMaruyama(), brownian=2,
        prior=lambda t, y: -y, kl="pathwise",
    )  # fmt: skip
    y, t = sol.value, ts[:-1, None, None]
    spread = 0.1**0.5 * diffusion(t, y[:-1].flatten(0, 1)).unflatten(0, (10, 2))
    step = lambda f: Normal(y[:-1] + 0.1 * f, spread)  # noqa: E731
    terms = step(torch.sin(y[:-1] + t)).log_prob(y[1:]) - step(-y[:-1]).log_prob(y[1:])
    assert torch.allclose(sol.kl[1:], terms.sum(2).cumsum(0), rtol=1e-12)


@pytest.mark.parametrize("noise", SHAPES)
def test_pathwise_has_the_same_mean(noise):
    kl = ornstein_uhlenbeck(noise, sde.Heun(dt=0.05), kl="pathwise").kl[1]
    assert near(kl, 4.753)


@pytest.mark.parametrize("solver", [EULER, HEUN], ids=repr)
@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_the_path_is_the_same_without_a_prior(noise, solver):
    def run(**options):
        return ti.sdeint(
            drift, DIFFUSIONS[noise], start(), TS, *rate_and_mix(), noise=noise, solver=solver,
            calculus=solver.calculus, brownian=3, **options,
        )  # fmt: skip

    assert run().kl is None
    assert torch.equal(run(prior=drift).value, run().value)
    assert not run(prior=drift).kl.any()


PLANE = {
    "diagonal": lambda t, y: torch.tensor([[1.0, 0.0]], dtype=y.dtype).expand_as(y),
    "scalar": lambda t, y: torch.tensor([[[1.0], [0.0]]], dtype=y.dtype).expand(len(y), 2, 1),
    "additive": lambda t, y: torch.tensor([[[1.0, 0.5], [0.0, 0.0]]], dtype=y.dtype).expand(len(y), 2, 2),
    "general": lambda t, y: torch.tensor([[[1.0, 0.5], [2.0, 1.0]]], dtype=y.dtype).expand(len(y), 2, 2),
}


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("kl", ["quadratic", "pathwise"])
@pytest.mark.parametrize("noise", PLANE)
def test_infinite_where_noise_does_not_reach(noise, kl, adjoint):
    """Of one sample and from half-time on; the path goes on, its mate's divergence is its own, gradients are finite."""
    shift = torch.tensor([[0.0, 0.0], [0.0, 1e-3]], dtype=D, requires_grad=True)

    later = lambda t: (t > 0.5).to(t.dtype)  # noqa: E731
    sol = ti.sdeint(
        lambda t, y, a: -y, lambda t, y, a: PLANE[noise](t, y), torch.ones(2, 2, dtype=D), TS, shift, noise=noise,
        solver=HEUN, calculus="stratonovich", brownian=3, prior=lambda t, y, a: -y + later(t) * a, kl=kl,
        adjoint=adjoint,
    )  # fmt: skip
    assert sol.report.converged
    assert sol.value.isfinite().all()
    assert torch.equal(sol.kl.detach(), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, math.inf]], dtype=D))
    (found,) = torch.autograd.grad(sol.value.sum() + sol.kl[sol.kl.isfinite()].sum(), shift)
    assert found.isfinite().all()


def test_no_noise_and_no_difference():
    """Nothing, neither infinite nor NaN, with its gradient; with a difference by the least roundings it is infinite."""
    g, f = torch.zeros(1, 2, dtype=D, requires_grad=True), torch.ones(1, 2, dtype=D, requires_grad=True)
    for noise, shaped in (("diagonal", g), ("scalar", g), ("general", torch.stack((g, g), 2))):
        same = control(f, f, shaped, noise).rates()
        assert not same.any()
        assert all(not each.any() for each in torch.autograd.grad(same.sum(), (f, g), materialize_grads=True))
        assert control(f, f * (1 + 1e-14), shaped, noise).outside.all()


def test_a_divergence_beyond_the_dtype_is_infinite():
    g = torch.full((2, 1), 1e-30)
    found = control(torch.ones(2, 1), torch.zeros(2, 1), g, "diagonal").rates()
    assert not found[:, 0].any()
    assert (found[:, 1] > 0).all()


@pytest.mark.parametrize(("n", "m"), [(2, 3), (3, 3), (3, 2)])
def test_least_squares_finds_what_there_is(n, m):
    g = torch.randn(4, n, m, dtype=D, generator=torch.Generator().manual_seed(0))
    u = torch.linspace(-1, 1, 4 * m, dtype=D).reshape(4, m)
    d = (g @ u.unsqueeze(2)).squeeze(2)
    found = control(d, torch.zeros_like(d), g, "general")
    assert not found.outside.any()
    assert torch.allclose((g @ found.u.unsqueeze(2)).squeeze(2), d, rtol=1e-12, atol=1e-12)
    assert (found.u.norm(dim=1) <= u.norm(dim=1) * (1 + 1e-12)).all()


def test_a_broken_prior_breaks_its_sample_alone():
    def run(bad):
        broken = torch.tensor([[0.0], [bad], [0.0]], dtype=D)
        return ti.sdeint(
            lambda t, y, a: -y, lambda t, y, a: torch.ones(3, 3, 2, dtype=D) + y.unsqueeze(2), start(3), TS, broken,
            noise="general", solver=EULER, brownian=3, prior=lambda t, y, a: y + a, on_failure="ignore",
        )  # fmt: skip

    whole, part = run(0.0), run(math.nan)
    assert part.report.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
    assert torch.equal(whole.kl[:, ::2], part.kl[:, ::2])
    assert torch.equal(whole.value[:, ::2], part.value[:, ::2])


REGULAR = {  # diffusions that reach every unknown
    "diagonal": lambda t, y, rate, mix: 2 + rate * y.sin(),
    "scalar": lambda t, y, rate, mix: (1.5 + rate * y.sin()).unsqueeze(-1),
    "additive": lambda t, y, rate, mix: (rate * t.unsqueeze(-1) + mix @ mix.T + torch.eye(3, dtype=D)).expand(
        len(y), 3, 3
    ),
    "general": lambda t, y, rate, mix: torch.diag_embed(2 + y.sin()) + 0.1 * rate,
}


def path(noise, adjoint, kl):
    calculus, g = ("stratonovich" if noise in ("scalar", "additive") else "ito"), REGULAR[noise]
    solver = sde.EulerMaruyama(dt=0.5) if calculus == "ito" else sde.Heun(dt=0.5)

    def prior(t, y, rate, mix):
        apart = rate + y.roll(1, 1) * mix[:, 0]
        return drift(t, y, rate, mix) - (apart[:, :1] * g(t, y, rate, mix)[..., 0] if noise == "scalar" else apart)

    def run(y0, rate, mix):
        sol = ti.sdeint(
            drift, g, y0, TS, rate, mix, noise=noise, solver=solver, calculus=calculus, adjoint=adjoint, brownian=3,
            prior=prior, kl=kl,
        )  # fmt: skip
        return sol.value, sol.kl

    return run


def leaves():
    return tuple(each.requires_grad_() for each in (start(), *rate_and_mix()))


@pytest.mark.parametrize("kl", ["quadratic", "pathwise"])
@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_gradients(noise, kl):
    """Of every adjoint as of `Direct`, which agrees with differences."""

    def gradient(adjoint):
        inputs = leaves()
        y, divergence = path(noise, adjoint, kl)(*inputs)
        assert divergence[1:].isfinite().all()
        assert (divergence[-1] != 0).all()
        return torch.autograd.grad(y.sin().sum() + divergence.sin().sum(), inputs, materialize_grads=True)

    for one, other in zip(gradient(ti.Checkpointed(2)), gradient(ti.Direct()), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    run = path(noise, ti.Checkpointed(2), kl)
    assert torch.autograd.gradcheck(run, leaves(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves())


@pytest.mark.parametrize("kl", ["quadratic", "pathwise"])
@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_transforms(noise, kl):
    run, (y0, rate, mix) = path(noise, ti.Checkpointed(2), kl), (each.detach() for each in leaves())
    loss = lambda rate: run(y0, rate, mix)[1].sum()  # noqa: E731
    assert torch.allclose(func.jacfwd(loss)(rate), func.grad(loss)(rate))
    starts = torch.stack((y0, 2 * y0))
    looped = torch.stack([run(y, rate, mix)[1] for y in starts])
    assert torch.allclose(func.vmap(lambda y: run(y, rate, mix)[1])(starts), looped, rtol=1e-12)


def test_states_of_any_kind():
    """Nested and complex ones, one number a sample, and half precision."""
    z = torch.tensor([1.0 + 0.5j, -0.2 + 1j], dtype=torch.complex64)
    y0 = {"a": torch.ones(2, 3, dtype=torch.float16), "z": z}
    prior = lambda t, y: {"a": -y["a"], "z": y["z"]}  # noqa: E731
    diffusion = lambda t, y: {"a": torch.ones_like(y["a"]), "z": (1 + 1j) * torch.ones_like(y["z"])}  # noqa: E731
    sol = ti.sdeint(lambda t, y: y, diffusion, y0, TS.float(), solver=EULER, brownian=1, prior=prior)
    assert sol.value["z"].shape == (3, 2)
    assert sol.kl.dtype == torch.float32
    assert (sol.kl[1:] > 0).all()
    flat = ti.sdeint(
        lambda t, y: y, lambda t, y: 1 + 0 * y, torch.ones(2, dtype=D), TS, solver=EULER, prior=lambda t, y: -y
    )
    assert flat.value.shape == flat.kl.shape == (3, 2)


class Prior(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.0, dtype=D))

    def forward(self, t, y):
        return -self.rate * y


def test_what_a_prior_owns():
    """Its parameters have a gradient, its captured tensors are refused, and its evaluations are counted."""
    prior, captured = Prior(), torch.ones((), dtype=D, requires_grad=True)

    def run(prior):
        return ti.sdeint(lambda t, y: y, lambda t, y: 1 + 0 * y, start(), TS, solver=EULER, brownian=1, prior=prior)

    sol = run(prior)
    sol.kl[-1].sum().backward()
    assert prior.rate.grad > 0
    assert sol.report.nfev == run(lambda t, y: y).report.nfev
    with pytest.raises(ti.CaptureError):
        run(lambda t, y: captured * y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prior": lambda t, y: y[:, :1]}, ValueError, r"the prior returned shape \(2, 1\)"),
        ({"prior": lambda t, y: y.float()}, TypeError, r"the prior returned torch.float32"),
        ({"prior": 1.0}, TypeError, r"prior: got a float, expected a callable prior"),
        ({"prior": lambda t, y: y, "kl": "exact"}, ValueError, r"kl: got 'exact', expected one of 'quadratic'"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        ti.sdeint(lambda t, y: y, lambda t, y: y, start(), TS, solver=EULER, **options)


def test_errors_speak_of_the_users_state():
    def broken(t, y):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError) as caught:
        ti.sdeint(
            broken, lambda t, y: 0.1 * y, torch.ones(2, 3), torch.tensor([0.0, 1.0]), prior=lambda t, y: 0 * y,
            solver=ti.sde.EulerMaruyama(dt=0.1),
        )  # fmt: skip
    assert caught.value.__notes__[0].endswith("at a state of (2, 3) torch.float32)")


def test_pathwise_is_refused_where_noise_chooses_steps():
    """Its limit is another one there: 0.37 in place of 0.47, the more the smaller the tolerance."""
    with pytest.raises(ValueError, match=r"kl: got 'pathwise' with Heun\(rtol=...\).*try that, or Heun\(dt=...\)"):
        ornstein_uhlenbeck("additive", sde.Heun(), kl="pathwise")
    assert ornstein_uhlenbeck("additive", sde.Heun(), kl="quadratic").report.converged
