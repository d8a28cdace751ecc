"""No field is evaluated before the first or after the last time, whoever asks for it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti

ADAPTIVE = [ti.Heun, ti.Bosh3, ti.Dopri5, ti.Tsit5, ti.Dopri8, ti.Kvaerno3, ti.ESDIRK54, ti.KenCarp4]
GIVEN = [ti.Euler, ti.Midpoint, ti.RK4, ti.Leapfrog, ti.Suzuki4]
EXPLICIT = [ti.Euler, ti.RK4, ti.Heun, ti.Dopri5, ti.Tsit5]
KEPT = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()]


def solver_of(method, span):
    return method(rtol=1e-3, atol=1e-4) if method in ADAPTIVE else method(dt=0.3 * span)


class Fenced:
    """An oscillator that knows no time outside of the given ones, per sample; its two parts for a `Split`."""

    def __init__(self, ts):
        self.low, self.high = ts.amin(0).reshape(-1, 1), ts.amax(0).reshape(-1, 1)

    def look(self, t):
        t = t.detach().to(self.low.dtype)
        assert bool(((t >= self.low) & (t <= self.high)).all()), f"evaluated at {t.tolist()}"

    def __call__(self, t, y, w):
        self.look(t)
        return torch.cat((w * y[:, 1:], -w * torch.cos(t) * y[:, :1]), 1)

    def half(self, t, y, w):
        return 0.5 * self(t, y, w)


def follow(method, ts, adjoint, **options):
    """A solve, forward and backward; the fence looks at all of it."""
    fenced = Fenced(ts)
    field = ti.Split(fenced.half, fenced.half) if method is ti.KenCarp4 else fenced
    y0 = torch.tensor([[1.0, 0.0], [0.2, -1.0]], dtype=torch.float64, requires_grad=True)
    w, times = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), ts.clone().requires_grad_()
    solver = solver_of(method, float((ts[-1] - ts[0]).abs().max()))
    solution = ti.odeint(field, y0, times, w, solver=solver, adjoint=adjoint, on_failure="ignore", **options)
    loss = solution.value.sum()
    if solution.path is not None:
        loss = loss + solution.path(ts).sum()
    if solution.event_time is not None:
        loss = loss + solution.event_time.nan_to_num().sum()
    loss.backward()


@pytest.mark.parametrize("method", ADAPTIVE + GIVEN)
@given(
    seed=st.integers(0, 10**6), sign=st.sampled_from([1, -1]), adjoint=st.sampled_from(KEPT),
    dense=st.booleans(), single=st.booleans(),
)  # fmt: skip
@settings(max_examples=4, derandomize=True)
def test_within_the_times(method, seed, sign, adjoint, dense, single):
    """Of times without any pattern, in which roundings are as they come."""
    generator = torch.Generator().manual_seed(seed)
    start, span = 6 * torch.rand(2, dtype=torch.float64, generator=generator) - torch.tensor([3.0, -0.01])
    inner, other = 0.1 + 0.8 * torch.rand(2, dtype=torch.float64, generator=generator)
    parts = torch.tensor([[0.0, 0.0], [inner, inner * other], [1.0, other]], dtype=torch.float64)
    ts = (start + sign * span / 2 * parts).to(torch.float32 if single else torch.float64)
    follow(method, ts, adjoint, dense=dense)


@pytest.mark.parametrize("method", ADAPTIVE + [method for method in GIVEN if not issubclass(method, ti.Leapfrog)])
def test_within_the_times_beside_an_event(method):
    ts = torch.tensor([[0.1, 0.3], [0.7, 0.4], [2.3, 1.7]], dtype=torch.float64)
    follow(method, ts, ti.Checkpointed(), event=ti.Event(lambda t, y, w: y[:, 0] - 0.5))


@pytest.mark.parametrize("method", EXPLICIT)
def test_within_the_times_on_the_way_back(method):
    parts = torch.tensor([[0.0, 0.0], [0.7, 0.3], [1.0, 0.8]], dtype=torch.float64)
    for last in (0.9, 1.7):
        for adjoint in (ti.Reversible(), ti.Backsolve(), ti.Backsolve(seminorm=False, checkpoints=2)):
            follow(method, 0.1 + last * parts, adjoint)


def test_a_step_of_a_stiff_field_that_ends_with_a_root():
    """`-y * sqrt(1 - t)`, whose solution at 1 is `exp(-2/3)`: there is no field beyond."""
    start, ts = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for method in ADAPTIVE:
        halves = ti.Split(*[lambda t, y: -0.5 * y * (1 - t).sqrt()] * 2)
        field = halves if method is ti.KenCarp4 else lambda t, y: -y * (1 - t).sqrt()
        found = ti.odeint(field, start, ts, solver=method(rtol=1e-6, atol=1e-6)).value
        assert abs(found[-1].item() - math.exp(-2 / 3)) < 1e-4
