"""Stochastic paths undone step by step: exact gradients in constant memory, and a word where the states part."""

from typing import Any

import pytest
import torch
from torch import func, nn

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, TS, D, drift, rate_and_mix, start
from torchimplicit import sde

METHODS = [sde.ReversibleHeun(dt=0.04), sde.Heun(dt=0.04), sde.Midpoint(dt=0.04)]  # which does not divide the spacing
methods = pytest.mark.parametrize("solver", METHODS, ids=lambda solver: type(solver).__name__)
noises = pytest.mark.parametrize("noise", DIFFUSIONS)


def solved(solver, y0, rate, mix, ts=TS, noise="diagonal", adjoint=ti.Reversible(), **options):
    return ti.sdeint(
        drift, DIFFUSIONS[noise], y0, ts, rate, mix, noise=noise, solver=solver, calculus="stratonovich",
        adjoint=adjoint, **{"brownian": 3, **options},
    )  # fmt: skip


def leaves():
    return tuple(each.requires_grad_() for each in (start(), *rate_and_mix(), TS.clone()))


def gradient(solver, noise, adjoint=ti.Reversible(), one_graph=False):
    inputs = leaves()
    value = solved(solver, *inputs, noise=noise, adjoint=adjoint).value
    return torch.autograd.grad(value.sin().sum(), inputs, create_graph=one_graph, materialize_grads=True)


@noises
@methods
def test_the_gradient_is_that_of_one_graph(solver, noise):
    references = [gradient(solver, noise, one_graph=True)]
    if isinstance(solver, sde.ReversibleHeun):
        references += [gradient(solver, noise, adjoint) for adjoint in (ti.Direct(), ti.Checkpointed(3))]
    found = gradient(solver, noise)
    for reference in references:
        for one, other in zip(found, reference, strict=True):
            assert torch.allclose(one, other.detach(), rtol=1e-10, atol=1e-12)


@noises
@pytest.mark.parametrize("method", [sde.ReversibleHeun, sde.Heun])
def test_against_differences(method, noise):
    def run(*inputs):
        return solved(method(dt=0.13), *inputs, noise=noise, on_failure="ignore").value

    assert torch.autograd.gradcheck(run, leaves()[:3], check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves()[:3], fast_mode=True)


@pytest.mark.parametrize("solver", [sde.ReversibleHeun(), sde.Midpoint()], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_by_times(solver, noise):
    ts = torch.linspace(0, 1, 9, dtype=D, requires_grad=True)
    inputs = leaves()[:3]
    assert torch.autograd.gradcheck(lambda ts: solved(solver, *inputs, ts, noise).value, ts)


@methods
def test_transforms(solver):
    y0, rate, mix = start(), *rate_and_mix()

    def loss(y0, rate):
        return solved(solver, y0, rate, mix).value.sin().sum()

    expected = func.grad(loss, argnums=(0, 1))(y0, rate)
    for jacobian in (func.jacfwd, func.jacrev):
        assert torch.allclose(jacobian(loss, argnums=1)(y0, rate), expected[1])
    starts = torch.stack((y0, 2 * y0, -y0))
    looped = torch.stack([func.grad(loss)(y, rate) for y in starts])
    assert torch.allclose(func.vmap(lambda y: func.grad(loss)(y, rate))(starts), looped, rtol=1e-12)


def test_reversible_heun_has_the_same_values_with_every_adjoint():
    values = [
        solved(METHODS[0], start(), *rate_and_mix(), adjoint=adjoint).value
        for adjoint in (ti.Reversible(), ti.Checkpointed(), ti.Direct(), ti.Reversible(0.5))
    ]
    with torch.no_grad():
        values.append(solved(METHODS[0], start(), *rate_and_mix()).value)
    assert all(torch.equal(values[0], value) for value in values[1:])


@pytest.mark.parametrize(("method", "forward", "backward"), [(sde.ReversibleHeun, 1, 1), (sde.Heun, 4, 4)])
def test_evaluations(method, forward, backward):
    """Of drift and of diffusion, for every step more: the graph of the way back to a state gives the gradient, too."""
    there, back = [], []
    for dt in (0.1, 0.05):
        counts = [0]

        def counted(t, y, rate, mix, counts=counts):
            counts[0] += 1
            return drift(t, y, rate, mix)

        inputs = leaves()[:3]
        sol = ti.sdeint(
            counted, DIFFUSIONS["diagonal"], inputs[0], TS[[0, 2]], *inputs[1:], solver=method(dt=dt),
            calculus="stratonovich", adjoint=ti.Reversible(), brownian=3,
        )  # fmt: skip
        there.append(counts[0])
        sol.value.sum().backward()
        back.append(counts[0] - there[-1])
    assert there[1] - there[0] == 10 * forward
    assert back[1] - back[0] == 10 * backward


@methods
def test_memory_does_not_grow_with_the_steps(solver):
    """No number of a state but those of the ends is kept; of a step, its times, once where they are all samples'."""
    kept = []
    for steps in (20, 40):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.untyped_storage().nbytes() // tensor.itemsize)
            return tensor

        y0 = torch.ones(3, 50, dtype=D, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = ti.sdeint(
                lambda t, y: -0.1 * y, lambda t, y: 0.1 * y, y0, TS[[0, 2]], solver=type(solver)(dt=1 / steps),
                calculus="stratonovich", adjoint=ti.Reversible(), brownian=3,
            ).value  # fmt: skip
        value.sum().backward()
        kept.append(sum(sizes))
    assert kept[1] - kept[0] == 2 * 20  # start and stop of every step


def contracting(solver, adjoint, rate=5.0, until=4.0, **options):
    """Two samples, of which one has a drift that contracts."""
    rates = torch.tensor([[0.1], [rate]], dtype=D, requires_grad=True)
    sol = ti.sdeint(
        lambda t, y, rate: -rate * y, lambda t, y, rate: torch.full_like(y, 0.3), torch.ones(2, 1, dtype=D),
        torch.tensor([0.0, until], dtype=D), rates, solver=solver, noise="additive", calculus="stratonovich",
        adjoint=adjoint, brownian=1, **{"on_failure": "ignore", **options},
    )  # fmt: skip
    return sol, rates


@pytest.mark.parametrize("adjoint", [ti.Reversible(), ti.Checkpointed(), ti.Direct()], ids=repr)
def test_states_that_have_parted(adjoint):
    """However short the steps; whichever adjoint carries them; the other sample does not feel it."""
    solver = sde.ReversibleHeun(dt=0.02)
    sol, rates = contracting(solver, adjoint)
    assert sol.report.status.tolist() == [0, int(ti.Status.DRIFTED)]
    assert float(sol.value[-1, 1].detach().abs()) > 1.5  # of a process whose deviation is 0.1
    (grad,) = torch.autograd.grad(sol.value[:, 0].sum(), rates)
    assert bool(grad.isfinite().all())
    with pytest.raises(ti.ConvergenceError, match=r"have parted, for the drift contracts"):
        contracting(solver, adjoint, on_failure="raise")
    with torch.no_grad():
        assert contracting(solver, adjoint)[0].report.status.tolist() == sol.report.status.tolist()


def test_steps_far_too_long_for_the_drift():
    for solver in METHODS:
        sol, rates = contracting(solver, ti.Reversible(), rate=60.0)
        assert sol.report.status[0] == 0
        assert sol.report.status[1] != 0
        (grad,) = torch.autograd.grad(sol.value.sum(), rates)
        assert bool(grad[0].isfinite().all())


def test_a_small_coupling_rounds_on_the_way_back():
    sol, rates = contracting(sde.Heun(dt=0.02), ti.Reversible(0.6))
    assert sol.report.converged
    torch.autograd.grad(sol.value.sum(), rates)
    assert sol.backward is not None
    assert int(ti.Status.DRIFTED) in sol.backward.status.tolist()
    assert bool((sol.backward.drift > 10).any())  # type: ignore[attr-defined]
    assert "Heun() with Checkpointed()" in sol.backward.remedies[ti.Status.DRIFTED]
    assert not any("Backsolve" in remedy for remedy in sol.backward.remedies.values())


@methods
def test_a_sample_of_nan_is_kept_apart(solver):
    found = []
    for value in (0.5, torch.nan):
        y0 = start(3)
        y0[1] = value
        rate, mix = (each.requires_grad_() for each in rate_and_mix())
        y0.requires_grad_()
        sol = solved(solver, y0, rate, mix, on_failure="ignore")
        found.append((sol.value[:, ::2], torch.autograd.grad(sol.value[:, ::2].sum(), (y0, rate))))
    (value, (one, rate)), (other, (two, same)) = found
    assert torch.equal(value, other)
    assert torch.equal(one[::2], two[::2])
    assert torch.equal(rate, same)


@methods
def test_samples_with_times_of_their_own(solver):
    """One stands still while others go on."""
    ts = torch.stack((TS, torch.tensor([0.0, 0.5, 0.5], dtype=D), TS), 1)
    for adjoint in (ti.Reversible(),):
        inputs = (start(3).requires_grad_(), *(each.requires_grad_() for each in rate_and_mix()), ts.requires_grad_())
        one, other = (
            torch.autograd.grad(solved(solver, *inputs, adjoint=adjoint).value.sin().sum(), inputs, create_graph=graph)
            for graph in (False, True)
        )
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(one, other, strict=True))


@methods
@pytest.mark.parametrize("spare", [1, 2])
def test_samples_that_stand_still_are_undone_as_if_alone(solver, spare):
    """Through steps of length zero in which nobody arrives, an odd and an even number of them."""
    y0, (rate, mix) = start(4), rate_and_mix()
    ends = torch.tensor([1.0, 1.0, 0.8 - 0.04 * spare, 0.2], dtype=D)
    ts = torch.stack((torch.zeros(4, dtype=D), ends))

    def slopes(rows):
        own = y0[rows].requires_grad_()
        solution = solved(solver, own, rate, mix, ts[:, rows], brownian=torch.tensor(rows))
        slope = torch.autograd.grad(solution.value[-1].sin().sum(), own)[0]
        assert solution.backward.converged
        return slope

    together = slopes([0, 1, 2, 3])
    for row in range(4):
        assert torch.allclose(together[row], slopes([row])[0], rtol=1e-10, atol=1e-12)


@methods
def test_states_of_any_shape(solver):
    """Nested and complex, with an argument a sample: the same as flat ones, in the solve and back."""

    def run(y0, rate):
        return ti.sdeint(
            lambda t, y, rate: {"a": -rate.view(-1, 1, 1) * y["a"], "b": 1j * y["b"]},
            lambda t, y, rate: {"a": 0.3 * y["a"], "b": 0.1 * y["b"].real * (1 + 0j)},
            y0, TS, rate, solver=solver, calculus="stratonovich", adjoint=ti.Reversible(), batched_args=[0], brownian=2,
        ).value  # fmt: skip

    y0 = {"a": torch.ones(2, 2, 2, dtype=D), "b": torch.ones(2, 3, dtype=torch.complex128)}
    inputs = (y0["a"].requires_grad_(), y0["b"].requires_grad_(), torch.tensor([0.5, 0.7], dtype=D).requires_grad_())

    def flat(a, b, rate):
        value = run({"a": a, "b": b}, rate)
        return value["a"], torch.view_as_real(value["b"])

    assert torch.autograd.gradcheck(flat, inputs, fast_mode=True)
    together = run(y0, inputs[2])["a"]
    assert bool(together.isfinite().all())


@methods
def test_divergence_from_a_prior(solver):
    found = {}
    for adjoint in (ti.Reversible(), ti.Checkpointed()):
        inputs = tuple(each.requires_grad_() for each in (start(), *rate_and_mix()))
        sol = ti.sdeint(
            drift, lambda t, y, rate, mix: 0.5 + 0.1 * rate * y.sin(), inputs[0], TS, *inputs[1:],
            solver=type(solver)(dt=0.01), calculus="stratonovich", adjoint=adjoint, brownian=3,
            prior=lambda t, y, rate, mix: -0.1 * y,
        )  # fmt: skip
        assert sol.kl is not None
        assert bool(sol.kl.isfinite().all())
        found[adjoint] = sol.kl.detach(), *torch.autograd.grad(sol.kl.sum(), inputs[:2])
    tolerance = 1e-10 if isinstance(solver, sde.ReversibleHeun) else 0.02  # a pair of Heun's is another method
    assert all(torch.allclose(a, b, rtol=tolerance) for a, b in zip(*found.values(), strict=True))


def test_what_is_refused():
    y0, (rate, mix) = start(), rate_and_mix()

    def run(solver, calculus="stratonovich", **options):
        options = {"adjoint": ti.Reversible(), "noise": "additive", **options}
        ti.sdeint(drift, DIFFUSIONS[options["noise"]], y0, TS, rate, mix, solver=solver, calculus=calculus, **options)

    for solver in (sde.EulerMaruyama(dt=0.1), sde.SRA1(dt=0.1), sde.ShARK(dt=0.1)):
        with pytest.raises(ValueError, match=r"expected a method that leads back along .*try .*ReversibleHeun"):
            run(solver, "ito")
    with pytest.raises(ValueError, match=r"got steps that are chosen.*try Heun\(dt=\.\.\.\), or adjoint=Checkpointed"):
        run(sde.Heun())
    with pytest.raises(ValueError, match=r"kl: got 'pathwise' with states in pairs, .* expected 'quadratic'"):
        run(sde.ReversibleHeun(dt=0.1), kl="pathwise", prior=drift)
    with pytest.raises(ValueError, match=r"adjoint: got Backsolve.*, expected Checkpointed\(\), Direct\(\) or Rev"):
        run(sde.Heun(dt=0.1), adjoint=ti.Backsolve())


def test_parameters_of_modules():
    class Field(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = nn.Linear(width, 3, dtype=D)

        def forward(self, t, y):
            return torch.tanh(self.inner(y))

    torch.manual_seed(0)
    f, g = Field(3), Field(3)
    parameters = [*f.parameters(), *g.parameters()]
    found = []
    for adjoint in (ti.Reversible(), ti.Direct()):
        value = ti.sdeint(
            f, g, start(), TS, solver=METHODS[0], calculus="stratonovich", adjoint=adjoint, brownian=1
        ).value
        found.append(torch.autograd.grad(value.square().sum(), parameters))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*found, strict=True))


def test_a_diffusion_of_parameters_alone():
    """Diagonal noise with a learned scale that no state has a part in."""
    scale = torch.tensor([0.3, 0.2, 0.1], dtype=D, requires_grad=True)
    sol = ti.sdeint(
        lambda t, y, s: -y, lambda t, y, s: s.expand_as(y), start(), TS, scale, solver=METHODS[0],
        calculus="stratonovich", adjoint=ti.Reversible(), brownian=1,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(sol.value.sum(), scale)
    assert sol.report.strong_order == 1.0
    assert bool((grad != 0).all())


def against_heun(drift, until, count=200):
    """The values of `ReversibleHeun` and how wrong they are, over the way that a sample goes; on one noise."""
    options: Any = {"noise": "additive", "calculus": "stratonovich", "brownian": sde.Brownian(seed=torch.arange(count))}
    y0, ts = torch.ones(count, 1, dtype=D), torch.tensor([0.0, until], dtype=D)

    def solve(solver):
        return ti.sdeint(
            drift, lambda t, y: torch.full_like(y, 0.5), y0, ts, solver=solver, on_failure="ignore", **options
        )

    pair, right = solve(sde.ReversibleHeun(dt=0.01)), solve(sde.Heun(dt=0.01)).value
    wrong = (pair.value[-1] - right[-1]).abs().squeeze(1) / (1 + 0.5 * until**0.5)
    return pair, wrong


def test_linear_drift_is_right_long_after_the_two_states_have_parted():
    pair, wrong = against_heun(lambda t, y: -y, 10.0)
    assert pair.report.converged
    assert wrong.max() < 0.01
    assert pair.value[-1].var().item() == pytest.approx(0.125, rel=0.25)  # of the stationary law, by 200 samples


@pytest.mark.parametrize("until", [3.0, 5.0])
@pytest.mark.parametrize(
    "drift",
    [lambda t, y: -2 * torch.tanh(y), lambda t, y: -(y**3) - y, lambda t, y: -3 * y],
    ids=["tanh", "cubic", "linear"],
)
def test_no_sample_that_is_wrong_for_the_other_state_has_arrived(drift, until):
    pair, wrong = against_heun(drift, until)
    assert not (pair.report.status == 0)[~(wrong < 0.25)].any()
