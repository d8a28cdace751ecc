"""A callback a step: told of every step, and no part of the solve."""

import pytest
import torch

import torchimplicit as ti

D = torch.float64
TS = torch.tensor([0.0, 1.0, 2.0], dtype=D)


def decay(t, y, rate):
    return -rate * y


def run(callback=None, ts=TS, **options):
    rate = torch.tensor([[1.0], [30.0]], dtype=D)
    return ti.odeint(decay, torch.ones(2, 1, dtype=D), ts, rate, callback=callback, **options)


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.ESDIRK54(), ti.RK4(dt=0.02)], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("end", [2.0, -0.2])
def test_it_is_told_of_every_accepted_step(solver, end):
    seen = []
    ts = torch.tensor([0.0, end], dtype=D)
    found = run(lambda *told: seen.append(told), ts, solver=solver)
    moved = torch.stack([moved for _, _, moved in seen])
    assert torch.equal(moved.sum(0), found.report.accepted)
    assert torch.equal(seen[-1][0], found.report.reached)
    assert torch.equal(seen[-1][1], found.value[-1])
    times = torch.stack([torch.zeros(2, dtype=D), *(t for t, _, _ in seen)])
    assert torch.equal(times.diff(dim=0) != 0, moved)
    assert bool((times.diff(dim=0).sign() * end >= 0).all())


def test_what_it_does_changes_nothing():
    def meddles(t, y, moved):
        assert not torch.is_grad_enabled()
        t.zero_(), y.zero_(), moved.zero_()
        return True  # as a progress bar's update may

    for options in ({}, {"event": ti.Event(lambda t, y, rate: y[:, 0] - 0.5)}, {"adjoint": ti.Backsolve()}):
        assert torch.equal(run(meddles, **options).value, run(**options).value)


def test_it_is_told_of_the_forward_solve_alone_and_once():
    """Not of the backward pass, nor of the second solve that keeps an invalid sample out of the gradients."""
    seen, rate = [], torch.tensor([[1.0], [torch.nan]], dtype=D, requires_grad=True)
    found = ti.odeint(
        decay, torch.ones(2, 1, dtype=D), TS, rate, on_failure="ignore", callback=lambda *told: seen.append(told)
    )
    count = len(seen)
    assert count == int(found.report.accepted.max()) > 0
    found.value.sum().backward()
    assert len(seen) == count


def test_its_exception_comes_out():
    def stops(t, y, moved):
        if bool((t > 0.5).any()):
            raise StopIteration

    with pytest.raises(StopIteration):
        run(stops)


def test_narrowed_batches_and_other_forms():
    rate, seen = torch.linspace(0.5, 50, 9000, dtype=D).reshape(-1, 1), []
    found = ti.odeint(
        decay, torch.ones(9000, 2, dtype=D), TS, rate, batched_args=(0,), callback=lambda *told: seen.append(told)
    )
    assert torch.equal(torch.stack([moved for _, _, moved in seen]).sum(0), found.report.accepted)
    assert torch.equal(seen[-1][1], found.value[-1])
    times = []
    run(lambda t, y, moved: times.append((t.shape, y.shape, moved.shape)), stepping="joint")
    assert set(times) == {((), (2, 1), ())}
    nested = []
    ti.odeint(
        lambda t, y: {"a": -y["a"]}, {"a": torch.ones(3, 2)}, torch.tensor([0.0, 1.0]),
        callback=lambda t, y, moved: nested.append(y["a"].shape),
    )  # fmt: skip
    assert set(nested) == {(3, 2)}


def test_inference_mode_tells_too():
    seen = []
    with torch.inference_mode():
        run(lambda *told: seen.append(told))
    assert seen


def test_what_is_no_callback():
    with pytest.raises(TypeError, match=r"callback: got 3, expected a callable callback\(t, y, moved\)"):
        run(3)
    with pytest.raises(ValueError, match="a callback, expected output times alone; try compile=False"):
        run(print, compile=True)
