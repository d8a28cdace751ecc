"""Derivatives of stochastic paths that were wrong without a word: they are right, or refused in words."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import func

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, D, drift, rate_and_mix, start
from torchimplicit import sde

UNEVEN = torch.tensor([0.0, 0.33, 0.81, 1.0], dtype=D)
ENDS = torch.tensor([0.0, 1.0], dtype=D)
SOLVERS = [
    (sde.EulerMaruyama(dt=0.1), ti.Direct()), (sde.EulerMaruyama(dt=0.1), ti.Checkpointed(2)),
    (sde.Heun(dt=0.1), ti.Checkpointed()), (sde.Heun(dt=0.1), sde.Reversible()),
    (sde.ReversibleHeun(dt=0.1), sde.Reversible()),
]  # fmt: skip


def end(rate, solver, adjoint=ti.Checkpointed(), **options):
    options = {"brownian": 3} | options
    return ti.sdeint(
        lambda t, y, rate: -rate * y * y, lambda t, y, rate: 0.3 * rate * y, start().abs(), ENDS, rate, solver=solver,
        calculus=solver.calculus, adjoint=adjoint, **options,
    ).value[-1].sum()  # fmt: skip


@pytest.mark.parametrize(("solver", "adjoint"), SOLVERS, ids=repr)
@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_by_times_where_steps_are_shorter_than_gaps(noise, solver, adjoint):
    """Steps begin anew at every output time, and so move with it."""

    def run(ts):
        return ti.sdeint(
            drift, DIFFUSIONS[noise], start(), ts, *rate_and_mix(), noise=noise, solver=solver, adjoint=adjoint,
            calculus=solver.calculus, brownian=3,
        ).value  # fmt: skip

    assert torch.autograd.gradcheck(run, UNEVEN.clone().requires_grad_())


@settings(max_examples=5, deadline=None, derandomize=True)
@given(gaps=st.lists(st.integers(1, 19), min_size=1, max_size=4), paired=st.booleans())
def test_the_gradients_by_times_of_any_path_add_up_to_none(gaps, paired):
    """A path of an autonomous equation does not know what time it is: whichever its gaps and its steps are."""
    ts = torch.tensor([0.0, *gaps], dtype=D).cumsum(0).mul(0.0173).requires_grad_()
    args = (lambda t, y: -y.sin(), start(), ts)
    adjoint = sde.Reversible() if paired else ti.Checkpointed()
    for value in (
        ti.odeint(*args, solver=ti.RK4(dt=0.031), adjoint=adjoint).value,
        ti.sdeint(
            args[0], lambda t, y: 0.3 * y, *args[1:], solver=sde.Heun(dt=0.01), calculus="stratonovich", brownian=3,
            adjoint=adjoint,
        ).value,
    ):  # fmt: skip
        for each in value.sin().flatten(1).sum(1):
            (found,) = torch.autograd.grad(each, ts, retain_graph=True)
            assert abs(found.sum()) < 1e-9 * (1 + found.abs().sum())


@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize(("solver", "adjoint"), SOLVERS, ids=repr)
def test_second_derivatives_by_every_transform(solver, adjoint, steps):
    rate, solver = torch.tensor(0.7, dtype=D), type(solver)(dt=1 / steps)

    def run(rate):
        return end(rate, solver, adjoint)

    def along(function):
        return lambda rate: func.jvp(function, (rate,), (torch.ones_like(rate),))[1]

    first = func.grad(run)
    expected = (first(rate + 1e-5) - first(rate - 1e-5)) / 2e-5
    found = [func.grad(first), func.hessian(run), func.grad(along(run)), along(first), func.jacrev(func.jacrev(run))]
    for second in found:
        assert torch.allclose(second(rate), expected, rtol=1e-7)
    assert torch.allclose(func.vmap(func.grad(first))(rate.expand(2)), expected, rtol=1e-7)
    if isinstance(adjoint, ti.Direct):
        assert torch.allclose(along(along(run))(rate), expected, rtol=1e-7)
        return
    for twice in (along(along(run)), func.jacfwd(func.jacfwd(run))):
        with pytest.raises(RuntimeError, match=r"forward mode inside of forward mode.*torch.func.hessian"):
            twice(rate)


@pytest.mark.parametrize(
    ("solver", "brownian", "named"),
    [
        (sde.Heun(rtol=1e-2), 3, "a solver that chooses its steps"),
        (sde.Heun(rtol=1e-2), sde.Tree(seed=3, span=(0.0, 1.0)), "a Tree"),
        (sde.Heun(dt=0.125), sde.Brownian(seed=3, base=0.125), "base=0.125"),
    ],
    ids=repr,
)
def test_mapped_derivatives_of_noise_that_no_number_tells(solver, brownian, named):
    """They would be made of other noise than the path; what the message names helps."""
    rates = torch.tensor([0.7, 0.9], dtype=D)

    def run(rate, adjoint=ti.Checkpointed()):
        return end(rate, solver, adjoint, brownian=brownian)

    for mapped in (func.grad(run), lambda rate: run(rate, ti.Direct()), func.jacfwd(run)):
        with pytest.raises(RuntimeError, match=rf"torch.vmap over a derivative with .*{named}"):
            func.vmap(mapped)(rates)
    expected = torch.stack([func.grad(run)(rate) for rate in rates])
    leaf = rates.clone().requires_grad_()
    (outside,) = torch.autograd.grad(func.vmap(run)(leaf).sum(), leaf)
    assert torch.allclose(outside, expected, rtol=1e-10)


def test_times_are_not_mapped_and_what_helps():
    ends = torch.tensor([[0.0, 1.0], [0.0, 0.5]], dtype=D)

    def run(ts):
        return ti.sdeint(
            lambda t, y: -y, lambda t, y: 0.3 * y, start(), ts, solver=sde.EulerMaruyama(dt=0.1), brownian=3
        ).value[-1]

    with pytest.raises(ValueError, match=r"ts: got times under torch.vmap.*times \(T, B\)"):
        func.vmap(run)(ends)
    assert torch.equal(run(ends.mT)[1], run(ends[1])[1])


def test_more_steps_than_there_is_room_for():
    """What no memory can hold is not made before `max_steps` is looked at."""
    sol = ti.sdeint(
        lambda t, y: -y, lambda t, y: 0.3 * y, start(), ENDS, solver=sde.EulerMaruyama(dt=1e-12, max_steps=3),
        brownian=3, on_failure="ignore",
    )  # fmt: skip
    assert sol.report.status.tolist() == [ti.Status.MAX_STEPS] * 2
    assert sol.report.steps.tolist() == [3, 3]
