"""Adaptive steps: what is rejected is kept, and the law of the path is the right one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sde.law import check_normal, distance
from torchimplicit.sde import Brownian, Stack, joined

D = torch.float64
quick = settings(max_examples=20, derandomize=True)


class Heun:
    """Geometric Brownian motion of volatility 1.5 over [0, 1] by Heun's steps, with their embedded error."""

    def __init__(self, noise, volatility=1.5, redraws=False):
        self.noise, self.volatility, self.redraws = noise, volatility, redraws
        batch = len(noise.seeds)
        self.t, self.y = torch.zeros(batch, dtype=D), torch.ones(batch, 1, dtype=D)
        self.W, self.h = torch.zeros(batch, 1, dtype=D), torch.full((batch,), 0.5, dtype=D)
        self.tried = self.rejected = 0
        self.stops = []

    def run(self, depth=32):
        stack, n = Stack(self.noise, self.t, depth), 0
        while bool((running := self.t < 1).any()):
            stop = torch.minimum(self.t + self.h, torch.ones(()))
            path = stack.propose(self.t, stop, running)
            assert not path.full.any()
            if self.redraws:  # the control: a fresh increment at every attempt
                drawn = self.noise.increment(n, (stop - self.t).clamp_min(1e-300))
                path = path._replace(stop=stop, path=drawn)
            self.attempt(stack, path, running)
            n += 1
        return self

    def attempt(self, stack, tried, running):
        s, W = (tried.stop - self.t).unsqueeze(1), tried.path.W
        slope = lambda y: -0.5 * y * s + self.volatility * y * W  # noqa: E731
        first = slope(self.y)
        second = slope(self.y + first)
        after = self.y + 0.5 * (first + second)
        scale = 0.05 + 0.3 * torch.maximum(self.y.abs(), after.abs())
        ratio = (0.5 * (second - first) / scale).abs().squeeze(1)
        accepted = running & (ratio <= 1)
        stack.settle(accepted)
        self.stops.append(torch.where(running, tried.stop, 0))
        factor = (0.9 * ratio.clamp_min(1e-10) ** -0.5).clamp(0.2, 5)
        self.h = torch.where(running, s.squeeze(1) * factor, self.h)
        moved = accepted.unsqueeze(1)
        self.y, self.W = torch.where(moved, after, self.y), torch.where(moved, self.W + W, self.W)
        self.t = torch.where(accepted, tried.stop, self.t)
        self.tried += running.sum().item()
        self.rejected += (running & ~accepted).sum().item()


def bind(batch, area=False, seed=17):
    return Brownian(seed=seed).bind(torch.empty(batch, 1, dtype=D), area=area)


@pytest.mark.parametrize("area", [False, True])
def test_the_law_of_the_path_is_right_under_heavy_rejection(area):
    heun = Heun(bind(20_000, area)).run()
    assert heun.rejected > 0.15 * heun.tried
    check_normal(heun.W)


def test_what_draws_anew_has_another_law():
    """The control: the test above would notice."""
    heun = Heun(bind(4_000), redraws=True).run()
    assert abs(heun.W.mean().item() - 0.52) < 0.06
    assert abs(heun.W.var().item() - 0.39) < 0.06
    assert distance(heun.W) * 4_000**0.5 > 10


def test_a_sample_takes_the_same_path_with_any_mates():
    """Those of another volatility take other steps, and other numbers of them."""
    volatility = torch.logspace(-1, 0.3, 40, dtype=D).unsqueeze(1)
    noise = bind(40)
    whole = Heun(noise, volatility).run()
    chosen = torch.tensor([30, 2, 17])
    for some in (noise.take(chosen), Brownian(seed=noise.seeds[chosen]).bind(torch.empty(3, 1, dtype=D))):
        part = Heun(some, volatility[chosen]).run()
        assert torch.equal(part.y, whole.y[chosen])
        assert torch.equal(part.W, whole.W[chosen])


def test_no_end_of_a_step_is_skipped():
    heun = Heun(bind(300)).run()
    taken = [set() for _ in range(300)]
    t = torch.zeros(300, dtype=D)
    again = Heun(bind(300))
    stack = Stack(again.noise, again.t)
    while bool((running := again.t < 1).any()):
        tried = stack.propose(again.t, torch.minimum(again.t + again.h, torch.ones(())), running)
        again.attempt(stack, tried, running)
        for i in (again.t > t).nonzero().flatten().tolist():
            taken[i].add(again.t[i].item())
        t = again.t
    assert len(again.stops) == len(heun.stops)
    for ends in heun.stops:
        for i in (ends > 0).nonzero().flatten().tolist():
            assert ends[i].item() in taken[i]


@quick
@given(cuts=st.lists(st.tuples(st.floats(0.05, 1.0), st.booleans()), max_size=12), area=st.booleans())
def test_what_is_tried_adds_up_to_what_was_drawn(cuts, area):
    """A step over [0, 1] is drawn and rejected. However it is then cut, the parts are the whole, areas too."""
    noise = Brownian(seed=3).bind(torch.empty(2, 2, dtype=D), area=area)
    t, end, running = torch.zeros(2, dtype=D), torch.ones(2, dtype=D), torch.ones(2, dtype=torch.bool)
    stack, total = Stack(noise, t), None
    whole = stack.propose(t, end, running).path
    for share, accepted in [*cuts, *((1.0, True) for _ in range(14))]:
        if t[0] == 1:
            break
        tried = stack.propose(t, t + share * (end - t), running)
        stack.settle(running & accepted)
        if accepted:
            lengths = (t[0].item(), (tried.stop - t)[0].item())
            total = tried.path if total is None else joined(total, tried.path, *lengths)
            t = tried.stop
    assert torch.equal(t, end)
    assert torch.allclose(total.W, whole.W, rtol=0, atol=1e-13)
    assert not area or torch.allclose(total.H, whole.H, rtol=0, atol=1e-13)


def test_a_rest_that_is_not_worth_a_step_is_tried_with_the_step():
    noise, running = bind(1), torch.ones(1, dtype=torch.bool)
    stack = Stack(noise, torch.zeros(1, dtype=D))
    whole = stack.propose(torch.zeros(1, dtype=D), torch.ones(1, dtype=D), running)
    again = stack.propose(torch.zeros(1, dtype=D), torch.tensor([0.9995], dtype=D), running)
    assert again.stop.item() == 1.0
    assert torch.equal(again.path.W, whole.path.W)


def test_samples_that_do_not_go_on_keep_what_they_have():
    """And nothing is drawn for them."""
    t, both = torch.zeros(2, dtype=D), torch.ones(2, dtype=torch.bool)
    paths = []
    for pauses in (0, 3):
        stack = Stack(bind(2), t)
        stack.propose(t, t + 1, both)
        for _ in range(pauses):
            stack.propose(t, t + 0.1, torch.tensor([True, False]))
        stack.propose(t, t + 0.5, both)
        paths.append(stack.propose(t, t + 0.25, both).path.W[1])
    assert torch.equal(*paths)


def test_a_full_stack_says_so():
    t, running = torch.zeros(2, dtype=D), torch.tensor([True, False])
    stack = Stack(bind(2), t, depth=3)
    stops = [stack.propose(t, t + 0.5**k, running) for k in range(5)]
    assert [tried.full.tolist() for tried in stops] == 3 * [[False, False]] + 2 * [[True, False]]
    assert stops[-1].stop[0].item() == 0.25
    assert torch.equal(stops[-1].path.W[0], stops[2].path.W[0])


def test_what_is_tried_is_the_caller_s():
    t, running = torch.zeros(2, dtype=D), torch.ones(2, dtype=torch.bool)
    stack = Stack(bind(2, area=True), t)
    first = stack.propose(t, t + 1, running)
    kept = [first.stop.clone(), first.path.W.clone(), first.path.H.clone()]
    for k in range(1, 9):
        stack.propose(t, t + 0.5**k, running)
    assert all(torch.equal(a, b) for a, b in zip(kept, (first.stop, *first.path[:2]), strict=True))
