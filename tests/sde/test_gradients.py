"""Gradients of stochastic paths: the adjoints agree with each other, with differences, and under every transform."""

import pytest
import torch
from torch import func

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, TS, D, drift, rate_and_mix, start
from torchimplicit import sde

ADJOINTS = [ti.Direct(), ti.Checkpointed(2)]
SOLVERS = [sde.EulerMaruyama(dt=0.26), sde.Heun(dt=0.26)]


def path(noise, solver, adjoint):
    def run(y0, rate, mix, ts=TS):
        return ti.sdeint(
            drift, DIFFUSIONS[noise], y0, ts, rate, mix, noise=noise, solver=solver, calculus=solver.calculus,
            adjoint=adjoint, brownian=3,
        ).value  # fmt: skip

    return run


def leaves():
    return tuple(each.requires_grad_() for each in (start(), *rate_and_mix()))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_every_adjoint_has_the_same_gradient(noise, solver):
    def gradient(adjoint):
        inputs = leaves()
        return torch.autograd.grad(path(noise, solver, adjoint)(*inputs).sin().sum(), inputs, materialize_grads=True)

    reference = gradient(ti.Direct())
    for adjoint in (ti.Checkpointed(), ti.Checkpointed(2), ti.Checkpointed(3)):
        for one, other in zip(gradient(adjoint), reference, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_against_differences(noise, adjoint):
    run = path(noise, SOLVERS[0] if noise in ("general", "diagonal") else SOLVERS[1], adjoint)
    assert torch.autograd.gradcheck(run, leaves(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves())


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_by_times(adjoint):
    ts = TS.clone().requires_grad_()
    run = path("diagonal", sde.EulerMaruyama(), adjoint)
    assert torch.autograd.gradcheck(lambda ts: run(*leaves(), ts), ts)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_transforms(noise, adjoint):
    run, (y0, rate, mix) = path(noise, SOLVERS[0], adjoint), (each.detach() for each in leaves())

    def loss(y0, rate):
        return run(y0, rate, mix).sin().sum()

    expected = func.grad(loss, argnums=(0, 1))(y0, rate)
    forward, backward = func.jacfwd(loss, argnums=1)(y0, rate), func.jacrev(loss, argnums=1)(y0, rate)
    assert torch.allclose(forward, expected[1])
    assert torch.allclose(backward, expected[1])
    starts = torch.stack((y0, 2 * y0, -y0))
    for function in (lambda y: run(y, rate, mix), lambda y: func.grad(loss)(y, rate)):
        looped = torch.stack([function(y) for y in starts])  # copies of a sample share its noise
        assert torch.allclose(func.vmap(function)(starts), looped, rtol=1e-12)


def test_seeds_are_not_mapped():
    def run(seeds):
        return ti.sdeint(lambda t, y: y, lambda t, y: y, start(), TS, solver=SOLVERS[0], brownian=seeds).value

    with pytest.raises(ValueError, match=r"brownian: got seeds under torch.vmap"):
        func.vmap(run)(torch.arange(6).reshape(3, 2))


def test_seeds_that_are_drawn_are_not_mapped_and_what_helps():
    def run(y, **options):
        return ti.sdeint(lambda t, y: y, lambda t, y: y, y, TS, solver=SOLVERS[0], **options).value[-1]

    copies = start()[None].expand(4, 2, 3)
    with pytest.raises(ValueError, match=r"torch.vmap\(randomness='different'\).*or randomness='same'"):
        func.vmap(run, randomness="different")(copies)
    for found in (func.vmap(run, randomness="same")(copies), func.vmap(lambda y: run(y, brownian=3))(copies)):
        assert torch.equal(found[0], found[1])
    batch = run(copies[:, 0])
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("checkpoints", [2, 5, 64])
def test_noise_is_found_again_by_its_number(checkpoints):
    """In steps that are made again from few states, forward, in any order."""
    inputs = leaves()
    solver = sde.EulerMaruyama(dt=0.013)
    one, other = (
        torch.autograd.grad(path("general", solver, adjoint)(*inputs)[-1].sum(), inputs)
        for adjoint in (ti.Checkpointed(checkpoints), ti.Direct())
    )
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_one_graph_without_a_solve_before_it():
    """Evaluations are those of the steps, and few to look; values are those of other adjoints to the bit."""
    found = {}
    for adjoint in (ti.Direct(), ti.Checkpointed()):
        counts = [0]

        def counted(t, y, rate, mix, counts=counts):
            counts[0] += 1
            return drift(t, y, rate, mix)

        found[adjoint] = ti.sdeint(
            counted, DIFFUSIONS["general"], leaves()[0], TS, *rate_and_mix(), noise="general", brownian=3,
            solver=sde.EulerMaruyama(dt=0.013), adjoint=adjoint,
        ), counts[0]  # fmt: skip
    (one, evaluations), (other, others) = found.values()
    assert torch.equal(one.value, other.value)
    assert evaluations <= others + 1
    for name in ("status", "steps", "accepted", "rejected", "reached"):
        assert torch.equal(getattr(one.report, name), getattr(other.report, name))
    assert one.report.strong_order == other.report.strong_order


def test_one_graph_keeps_samples_apart():
    """A sample that blows up changes no bit of the others' values and gradients, and is told."""

    def run(scale):
        y0 = torch.tensor([[0.1], [scale], [0.2]], dtype=torch.float64, requires_grad=True)
        sol = ti.sdeint(
            lambda t, y: y**3, lambda t, y: y, y0, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64),
            solver=sde.EulerMaruyama(dt=0.1), adjoint=ti.Direct(), brownian=1, on_failure="ignore",
        )  # fmt: skip
        (grad,) = torch.autograd.grad(sol.value.sum(), y0)
        return sol, grad

    (well, healthy), (ill, grad) = run(0.1), run(50.0)
    assert well.report.converged
    assert ill.report.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
    assert torch.equal(ill.value[:, ::2], well.value[:, ::2])
    assert torch.equal(grad[::2], healthy[::2])


def test_ornstein_and_uhlenbeck_by_the_rate():
    """E y(1)^2 = v + (1 - v) e^(-2 r), v = s^2 / (2 r), of Euler's method by its own recursion."""
    rate = torch.tensor(0.8, dtype=D, requires_grad=True)
    y0 = torch.ones(40_000, 1, dtype=D)
    sol = ti.sdeint(
        lambda t, y, r: -r * y, lambda t, y, r: torch.full_like(y, 0.5), y0, TS[[0, 2]], rate, noise="additive",
        solver=sde.EulerMaruyama(dt=0.125), brownian=0,
    )  # fmt: skip
    moment = torch.ones((), dtype=D)
    for _ in range(8):
        moment = moment * (1 - rate * 0.125) ** 2 + 0.25 * 0.125
    found, expected = (torch.autograd.grad(each, rate)[0] for each in (sol.value[-1].square().mean(), moment))
    assert abs(found - expected) < 0.02


def test_a_sample_whose_gradient_is_not_finite_is_kept_apart_on_the_steps_that_samples_chose():
    def solved(strength, rows):
        y0 = torch.linspace(0.5, 1.5, 4, dtype=torch.float64).view(4, 1)[rows].requires_grad_()
        strength = torch.tensor(strength, dtype=torch.float64).unsqueeze(1).requires_grad_()
        rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        solution = ti.sdeint(
            lambda t, y, s, rate: -rate * y + 0 * s.sqrt(), lambda t, y, s, rate: 0.6 * y, y0,
            torch.tensor([0.0, 1.0], dtype=torch.float64), strength, rate, solver=ti.sde.Heun(rtol=1e-2),
            calculus="stratonovich", brownian=torch.tensor([1, 2, 3, 4])[rows], on_failure="ignore",
        )  # fmt: skip
        return solution, torch.autograd.grad(solution.value[-1].sum(), (y0, rate))

    solution, (by_y0, by_rate) = solved([1.0, 0.0, 1.0, 1.0], [0, 1, 2, 3])
    _, (expected, expected_rate) = solved([1.0, 1.0, 1.0], [0, 2, 3])
    assert torch.allclose(by_y0[[0, 2, 3]], expected, rtol=1e-10)
    assert torch.allclose(by_rate, expected_rate, rtol=1e-10)
    assert solution.report.backward is not None
    assert (solution.report.backward.status != 0).tolist() == [False, True, False, False]
