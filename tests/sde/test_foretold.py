"""Noise made some steps at a time is that of steps asked for one by one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit.sde import Brownian
from torchimplicit.sde.foretold import TOGETHER, Foretold

D = torch.float64
quick = settings(max_examples=40, derandomize=True)


def noise(area=False, most=10):
    made = Brownian(seed=5).bind(torch.empty(3, 2, dtype=D), area=area)
    made._steps.count = most
    return made


@quick
@given(
    steps=st.integers(1, 40), keep=st.integers(0, 40), area=st.booleans(), graph=st.booleans(),
    asked=st.lists(st.tuples(st.integers(0, 39), st.booleans()), max_size=12),
)  # fmt: skip
def test_a_step_is_the_same_whoever_was_asked_for_before(steps, keep, area, graph, asked):
    h, one = torch.linspace(0.1, 0.5, steps, dtype=D).unsqueeze(1), noise(area)
    found = Foretold(noise(area), h, min(keep, steps))
    expected = [one.increment(number, h[number]) for number in range(steps)]
    held = []
    with torch.set_grad_enabled(graph):
        for number, path in enumerate(found):
            assert torch.equal(path.W, expected[number].W)
            assert not area or torch.equal(path.H, expected[number].H)
            held += [(path, expected[number])] if graph else []
    for number, graph_here in asked:
        with torch.set_grad_enabled(graph_here):
            path = found[number % steps]
        assert torch.equal(path.W, expected[number % steps].W)
        held += [(path, expected[number % steps])] if graph_here else []
    assert all(torch.equal(path.W, other.W) for path, other in held)  # a graph keeps what it was given


def test_noise_of_the_last_steps_is_kept_once_and_no_more():
    h, asked = torch.full((40, 1), 0.1, dtype=D), []
    source = noise()
    made = source.increments
    source.increments = lambda first, *args: asked.append(first) or made(first, *args)
    with torch.no_grad():
        found = Foretold(source, h, 30)
        for _ in found:
            pass
        forward = list(asked)
        assert all(first % TOGETHER == 0 for first in forward)
        for number in reversed(range(40)):
            found[number]
    assert asked[len(forward) :] == [first for first in reversed(forward[:-1]) if first < 10]
