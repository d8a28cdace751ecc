"""Claims of convergence wait for each other: fewer looks, and what comes of every sample is the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit.solve.claims import Claims

FIELDS = ("value", "status", "steps", "residual")


def wells(z):
    """Not convex: samples arrive one after another, and some of their claims are refused."""
    return torch.cosh(z).sum(1) + 0.3 * (z[:, 1:] * z[:, :-1]).sin().sum(1) + z.sum(1)


def starts(batch, seed, scale=1.0):
    return scale * torch.randn(batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def at_once(monkeypatch):
    """Runs something with every claim looked at where it is made."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(ti.LBFGS, "waits", 0)
            return function()

    return run


@pytest.fixture
def looks(monkeypatch):
    """How many samples asked at every look, and how many were refused."""
    asked, decide = [], Claims._decide

    def counted(self, problem, claim, asks, gives_up):
        stops = decide(self, problem, claim, asks, gives_up)
        asked.append((int(asks.sum()), int((asks & ~stops).sum())))
        return stops

    monkeypatch.setattr(Claims, "_decide", counted)
    return asked


@pytest.mark.parametrize("batch", [12, 64])
def test_fewer_looks_and_the_same_steps_claims_and_answers(batch, at_once, looks):
    start = starts(batch, 0)
    soon = at_once(lambda: ti.argmin(wells, start, trace=True))
    before, looks[:] = list(looks), []
    together = ti.argmin(wells, start, trace=True)
    assert len(looks) < len(before)
    assert sum(refused for _, refused in looks) == sum(refused for _, refused in before) > 0
    assert sum(asked for asked, _ in looks) == sum(asked for asked, _ in before)
    assert together.nfev < soon.nfev
    for name in FIELDS:
        assert torch.equal(getattr(together, name), getattr(soon, name)), name
    assert torch.equal(together.trace.nan_to_num(), soon.trace.nan_to_num())


@settings(max_examples=8, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([1e-2, 1e-4, 1e-6]))
def test_a_sample_is_not_kept_from_its_answer_by_company(seed, scale, rtol):
    start, solver = starts(4, seed, scale), ti.LBFGS(rtol=rtol)
    together = ti.argmin(wells, start, solver=solver, on_failure="ignore")
    alone = [ti.argmin(wells, row[None], solver=solver, on_failure="ignore") for row in start]
    assert together.status.tolist() == [int(one.status) for one in alone]
    assert together.steps.tolist() == [int(one.steps) for one in alone]
    torch.testing.assert_close(together.value, torch.cat([one.value for one in alone]), rtol=1e-9, atol=1e-12)


def test_where_the_batch_goes_on_without_some_the_others_claims_go_along():
    start = torch.zeros(4200, 4, dtype=torch.float64)
    start[::3] = starts(1400, 1)
    few = ti.argmin(lambda z, c: wells(z - c), start, 0 * start, batched_args=(0,))
    whole = ti.argmin(lambda z, c: wells(z - c), start, 0 * start)
    assert torch.equal(few.steps, whole.steps)
    torch.testing.assert_close(few.value, whole.value, rtol=1e-9, atol=1e-12)


def test_steps_that_are_asked_for_are_those_of_every_sample():
    start = starts(12, 0)
    plain = ti.argmin(wells, start)
    last = int(plain.steps.max())
    saved = ti.argmin(wells, start, save_steps=tuple(range(last + 1)))
    assert torch.equal(saved.value, plain.value)
    for step, z in enumerate(saved.trajectory):
        over = plain.steps <= step
        assert torch.equal(z[over], plain.value[over])
