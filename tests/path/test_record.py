"""The record of a solve: which states it keeps, and how it finds the others again."""

import pytest
import torch

from torchimplicit.path.record import Path, Phase, Step


def recorded(steps, limit):
    """A phase whose state before step `k` is `k`."""
    phase = Phase(None, limit)
    for number in range(steps):
        time = torch.tensor([float(number)])
        phase.add(Step(time, time + 1, True), torch.tensor([[float(number)]]))
    return phase


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 256])
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 100])
def test_states_are_thinned_evenly(steps, limit):
    phase = recorded(steps, limit)
    places = sorted(phase.states)
    assert places[0] == 0
    assert len(places) <= limit
    assert len(places) >= min(steps, (limit + 1) // 2)
    assert places == list(range(0, steps, phase.stride))
    assert all(float(state) == place for place, state in phase.states.items())


@pytest.mark.parametrize("limit", [2, 3, 8, 256])
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 100])
def test_every_step_comes_once_last_first_with_its_state(steps, limit):
    phase, advances = recorded(steps, limit), 0

    def advance(step, y):
        nonlocal advances
        assert float(y) == float(step.start)  # a step is made again from the state before it
        advances += 1
        return y + 1

    found = [(number, float(y)) for number, y in phase.backwards(advance)]
    assert found == [(number, float(number)) for number in reversed(range(steps))]
    if steps <= limit:
        assert advances == 0
    elif steps <= limit**2 // 4:
        assert advances < steps


def test_as_many_states_as_promised_are_alive():
    phase, alive, most = recorded(200, 6), set(), 0

    class State(torch.Tensor):
        def __del__(self):
            alive.discard(id(self))

    def advance(step, y):
        nonlocal most
        after = (y.as_subclass(torch.Tensor) + 1).as_subclass(State)
        alive.add(id(after))
        most = max(most, len(alive))
        return after

    for _ in phase.backwards(advance):
        pass
    assert 0 < most <= 4 * 6  # levels of a recursion, each with half as many


@pytest.mark.parametrize("numbers", [[], [0], [9], [2, 3], [1, 5, 9]])
def test_no_step_is_made_to_come_by_others_that_is_not_needed(numbers):
    phase, y, made = recorded(10, 5), None, []  # keeps the states before 0, 4 and 8, or more
    for number, kept in phase.forwards(numbers):
        y = kept if kept is not None else y
        assert float(y) == number
        made.append(number)
        y = y + 1
    assert set(numbers) <= set(made)
    near = [max(place for place in phase.states if place <= number) for number in numbers]
    assert sorted(set(made)) == made == sorted({k for a, b in zip(near, numbers, strict=True) for k in range(a, b + 1)})


def test_a_path_is_parted_from_its_states_and_joined_again():
    path = Path([recorded(10, 3), recorded(5, 3)])
    path.phases[1].end = torch.ones(1, 1)
    bare, states = path.part()
    assert all(state.numel() == 0 for phase in bare.phases for state in phase.states.values())
    assert len(states) == sum(len(phase.states) for phase in path.phases) + 1
    joined = bare.joined(states)
    for one, other in zip(joined.phases, path.phases, strict=True):
        assert one.steps is other.steps
        assert one.states.keys() == other.states.keys()
        assert all(one.states[number] is other.states[number] for number in other.states)
        assert one.end is other.end
    assert bare.joined(states).phases[0].states  # as often as wanted
