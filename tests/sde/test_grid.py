"""Times of steps of one size."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit.sde.grid import Grid

quick = settings(max_examples=50, derandomize=True, deadline=None)
gaps = st.lists(st.floats(0.05, 3.0), min_size=1, max_size=5)


@quick
@given(gaps=gaps, dt=st.floats(0.02, 2.0), single=st.booleans(), first=st.floats(-5, 5))
def test_steps_end_at_every_output_and_are_as_long_as_they_should(gaps, dt, single, first):
    dtype = torch.float32 if single else torch.float64
    ts = torch.tensor([first, *gaps], dtype=torch.float64).cumsum(0).to(dtype).unsqueeze(1)
    grid = Grid(ts, dt)
    total = int(grid.counts[-1])
    stops = grid.stops(0, total).flatten()
    lengths = torch.diff(stops, prepend=ts[0])
    assert torch.isin(ts[1:], stops).all()
    assert stops[-1] == ts[-1]
    rounding = 8 * torch.finfo(dtype).eps * 20
    assert (lengths > 0).all()
    assert (lengths < dt * (1 + 1e-5) + rounding).all()
    assert total <= sum(gap / dt + 1 for gap in gaps)
    counts = grid.counts.flatten().tolist()
    for number, stop in enumerate(stops.tolist(), start=1):  # a product, not a sum
        before = max(place for place, count in enumerate(counts) if count < number)
        exact = float(ts[before, 0]) + (number - counts[before]) * dt
        assert number in counts or abs(stop - exact) <= rounding
    pieces = torch.cat([grid.stops(k, 1) for k in range(total)]).flatten()
    assert torch.equal(pieces, stops)


def test_no_sliver_of_a_step():
    for dtype in (torch.float32, torch.float64):
        for count, dt in ((10, 0.01), (100, 0.01), (7, 1 / 3), (1000, 1e-3)):
            ts = torch.linspace(0, count * dt, 11, dtype=dtype).unsqueeze(1)
            assert int(Grid(ts[[0, -1]], dt).counts[-1]) == count
            whole = Grid(ts, dt / 10).counts[-1]
            assert int(whole) == 10 * count


def test_samples_with_times_of_their_own():
    ts = torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, 0.5]])
    grid = Grid(ts, 0.25)
    assert grid.counts.tolist() == [[0, 0], [4, 2], [8, 2]]
    stops = grid.stops(0, 9)
    assert torch.allclose(stops[:, 0], torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.0]))
    assert stops[:, 1].tolist() == [0.25, 0.5, *[0.5] * 7]


def test_from_output_to_output():
    assert Grid(torch.tensor([[0.0], [0.3], [2.0]]), None).stops(0, 2).flatten().tolist() == [
        torch.tensor(0.3).item(),
        2.0,
    ]
