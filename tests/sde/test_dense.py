"""Paths asked for any time: the law of the noise, errors, gradients, mates."""

import math

import pytest
import torch
from torch import func

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, MATRIX, TS, D, drift, rate_and_mix, start
from tests.sde.law import check_normal, largest_correlation
from torchimplicit import sde
from torchimplicit.core.status import Status

TIMES = torch.tensor([0.0, 0.1, 0.13, 0.35, 0.5, 0.501, 0.9, 1.0], dtype=D)
SOLVERS = [
    sde.EulerMaruyama(dt=0.5), sde.Milstein(dt=0.3), sde.SRID2(dt=0.3), sde.Heun(dt=0.3), sde.Heun(),
]  # fmt: skip
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=lambda each: f"{type(each).__name__}({each.dt})")


def linear(solver, batch, volatility=0.5, source=3, **options):
    """A geometric Brownian motion, and the noise that drives it; with its exact path."""
    half = 0.5 * volatility**2 if solver.calculus == "ito" else 0.0
    sol = ti.sdeint(
        lambda t, y, v: 0 * y,
        lambda t, y, v: torch.cat((v * y[:, :1], torch.ones_like(y[:, 1:])), 1).unsqueeze(2),
        torch.tensor([[1.0, 0.0]], dtype=D).expand(batch, 2), TS, volatility, noise="scalar", solver=solver,
        calculus=solver.calculus, brownian=source, dense=True, **options,
    )  # fmt: skip
    return sol, lambda t: torch.exp(volatility * sol.path(t)[..., 1] - half * t.unsqueeze(1))


@pytest.mark.parametrize("source", [3, sde.Tree(seed=3)], ids=["numbers", "tree"])
@solvers
def test_the_noise_between_steps_has_the_law_of_a_path(solver, source):
    batch = 6000 if source == 3 else 1000
    sol, _ = linear(solver, batch, source=source)
    w = sol.path(TIMES)[..., 1]
    z = w.diff(dim=0) / TIMES.diff().sqrt().unsqueeze(1)
    for each in z:
        check_normal(each)
    assert largest_correlation(z) < 4.5 / math.sqrt(batch)


@solvers
def test_a_time_has_one_value_and_outputs_are_themselves(solver):
    sol, _ = linear(solver, 4)
    whole = sol.path(TIMES)
    assert torch.equal(whole[[0, 4, 7]], sol.value)
    for place, t in enumerate(TIMES.tolist()):
        assert torch.equal(sol.path(t), whole[place])
    assert torch.equal(sol.path(TIMES.flip(0)), whole.flip(0))
    own = torch.tensor([[0.13, 0.9, 0.1, 0.5]], dtype=D)
    assert torch.equal(sol.path(own)[0], torch.stack([sol.path(float(t))[i] for i, t in enumerate(own[0])]))
    again, _ = linear(solver, 4, source=sol.report.seed)
    assert torch.equal(again.path(TIMES), whole)
    seeds = sde.Brownian(seed=3).bind(torch.empty(4, 1)).seeds
    alone, _ = linear(solver, 1, source=seeds[[2]])
    assert torch.allclose(alone.path(TIMES)[:, 0], whole[:, 2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", [sde.EulerMaruyama, sde.Milstein, sde.SRID2, sde.Heun], ids=lambda m: m.__name__)
def test_errors_between_steps_are_those_of_the_solve(method):
    at, errors = torch.tensor([0.123, 0.77], dtype=D), []
    for dt in (1 / 8, 1 / 32):
        sol, exact = linear(method(dt=dt), 400, 0.8)
        errors.append((sol.path(at)[..., 0] - exact(at)).square().mean(1).sqrt())
        assert (errors[-1] < 1.6 * (sol.value[-1, :, 0] - exact(TS)[-1]).square().mean().sqrt()).all()
    assert (errors[1] < 0.75 * errors[0]).all()


@pytest.mark.parametrize("noise", [*DIFFUSIONS])
@pytest.mark.parametrize("solver", [sde.Heun(dt=0.3), sde.Heun(rtol=0.1, atol=0.05)], ids=["fixed", "adaptive"])
def test_gradients(noise, solver):
    def run(y0, rate, mix, adjoint=ti.Checkpointed(2), at=TIMES[[1, 4, 6]]):
        options = {"noise": noise, "calculus": "stratonovich", "solver": solver, "brownian": 3, "adjoint": adjoint}
        sol = ti.sdeint(drift, DIFFUSIONS[noise], y0, TS, rate, mix, dense=True, **options)
        return sol.path(at)

    found = []
    for adjoint in (ti.Direct(), ti.Checkpointed(2), ti.Checkpointed()):
        inputs = tuple(each.requires_grad_() for each in (start(3), *rate_and_mix()))
        value = run(*inputs, adjoint)
        found.append([value, *torch.autograd.grad(value.sin().sum(), inputs, materialize_grads=True)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    if not solver.adapts:  # else differences see other steps
        inputs = tuple(each.requires_grad_() for each in (start(2), *rate_and_mix()))
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    rest = rate_and_mix()
    by_rate = func.grad(lambda rate: run(start(3), rate, rest[1]).sin().sum())(rest[0])
    assert torch.allclose(by_rate, found[0][2])


def test_outputs_have_the_same_gradients_with_a_path():
    found = []
    for dense in (False, True):
        inputs = tuple(each.requires_grad_() for each in (start(3), *rate_and_mix()))
        options = {"solver": sde.SRID2(dt=0.2), "brownian": 3, "dense": dense}
        sol = ti.sdeint(drift, DIFFUSIONS["diagonal"], inputs[0], TS, *inputs[1:], **options)
        found.append((sol.value, *torch.autograd.grad(sol.value.sin().sum(), inputs)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kl", ["quadratic", "pathwise"])
def test_beside_a_prior(kl):
    options = {"solver": sde.EulerMaruyama(dt=0.1), "brownian": 1, "dense": True}
    args = (lambda t, y: -y, lambda t, y: 0.3 * torch.ones_like(y), {"x": start()}, TS)
    nested = [lambda t, y, f=f: {"x": f(t, y["x"])} for f in args[:2]]
    plain = ti.sdeint(*nested, *args[2:], **options)
    sol = ti.sdeint(*nested, *args[2:], prior=lambda t, y: {"x": 0 * y["x"]}, kl=kl, **options)
    assert torch.allclose(sol.path(TIMES)["x"], plain.path(TIMES)["x"], rtol=1e-13)


def test_those_that_fail_hold_their_last_state():
    def spoilt(t, y):
        return torch.where((y > 1) & (t > 0.25), torch.nan, -y)

    y0 = torch.tensor([[0.1], [3.0]], dtype=D)
    sol = ti.sdeint(
        spoilt, lambda t, y: 0.1 * y, y0, TS, solver=sde.EulerMaruyama(dt=0.1), brownian=1, on_failure="ignore",
        dense=True,
    )  # fmt: skip
    assert sol.status.tolist() == [0, int(Status.NON_FINITE)]
    found = sol.path(TIMES)
    assert found.isfinite().all()
    assert (found[3:, 1] == found[3, 1]).all()
    assert sol.path.reached[1] < 0.31


def test_what_a_path_cannot_do():
    y0, options = start(), {"solver": sde.EulerMaruyama(dt=0.1), "brownian": 1, "dense": True}
    sol = ti.sdeint(drift, DIFFUSIONS["diagonal"], y0, TS, 0.5, MATRIX, **options)
    at = torch.tensor(0.3, dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match=r"no derivative by time; try t.detach\(\)"):
        sol.path(at)
    sol.path(at.detach())
    for transform in (func.grad, lambda f: lambda t: func.jvp(f, (t,), (t,))):
        with pytest.raises(ValueError, match="no derivative by time"):
            transform(lambda t: sol.path(t).sum())(at.detach())
    with pytest.raises(ValueError, match="expected a time within"):
        sol.path(1.5)
    with pytest.raises(ValueError, match=r"ts: got times that want a gradient with dense=True.*ts.detach\(\)"):
        ti.sdeint(drift, DIFFUSIONS["diagonal"], y0, TS.clone().requires_grad_(), 0.5, MATRIX, **options)
    options |= {"solver": sde.LogODE(dt=0.1), "noise": "general", "calculus": "stratonovich"}
    with pytest.raises(ValueError, match=r"dense: got True with LogODE.*more output times, or Heun\(dt=...\)"):
        ti.sdeint(drift, DIFFUSIONS["general"], y0, TS, 0.5, MATRIX, **options)
    options["solver"] = sde.Heun(dt=0.1)
    assert ti.sdeint(drift, DIFFUSIONS["general"], y0, TS, 0.5, MATRIX, **options).path(0.3).isfinite().all()
    with pytest.raises(RuntimeError, match=r"dense=.*got torch.vmap"):
        func.vmap(lambda y0: ti.sdeint(drift, DIFFUSIONS["general"], y0, TS, 0.5, MATRIX, **options).value)(y0[None])
