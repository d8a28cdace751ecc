"""Controlled equations: paths through series, closed forms, what is known when, independence, bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.nn.latent.stays import D, rows, stays
from torchimplicit.nn import NeuralCDE, Series
from torchimplicit.nn.latent.control import channels_of, hermite, on_clock, rectilinear

TIGHT = ti.Tsit5(rtol=1e-9, atol=1e-10)
KINDS = pytest.mark.parametrize("kind", ["hermite", "rectilinear"])


class Linear(nn.Module):
    """A field `f(z) dX = sum_c A_c z dX_c`."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = nn.Parameter(matrices)

    def forward(self, z):
        return torch.einsum("chk,bk->bhc", self.matrices, z)


def model(kind="hermite", channels=4, hidden=3, **options):
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(hidden, hidden * channels), nn.Tanh(), nn.Unflatten(1, (hidden, channels)))
    options = {"solver": ti.Tsit5(rtol=1e-4, atol=1e-5)} | options
    return NeuralCDE(field, nn.Linear(channels, hidden), nn.Linear(hidden, 2), kind, **options).double()


def test_channels_are_held_and_counted():
    nan = math.nan
    series = Series.of([(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[nan, 5.0], [7.0, nan], [nan, 6.0]]))])
    plain = [[1.0, 0.0, 5.0], [2.0, 7.0, 5.0], [4.0, 7.0, 6.0]]
    assert channels_of(series, counts=False)[0].tolist() == plain
    assert channels_of(series, counts=True)[0, :, 3:].tolist() == [[0.0, 1.0], [1.0, 1.0], [1.0, 2.0]]


@pytest.mark.parametrize("make", [hermite, rectilinear])
def test_paths_go_through_their_values_and_have_their_slopes(make):
    path = make(stays([5]), counts=True)
    for number in range(path.values.shape[1]):
        t = torch.tensor([[float(number)]], dtype=D)
        assert torch.allclose(path.value(t)[0], path.values[0, number])
        assert torch.allclose(path.derivative(t)[0], path.slopes[0, number])
    t = (torch.rand(1, 1, dtype=D) + 2).requires_grad_()
    for channel in range(path.values.shape[2]):
        (slope,) = torch.autograd.grad(path.value(t)[0, channel], t)
        assert torch.allclose(slope[0, 0], path.derivative(t)[0, channel])


def test_the_slope_at_a_time_is_the_way_from_the_one_before():
    series = stays([4])
    path, x = hermite(series, counts=False), channels_of(series, counts=False)
    assert torch.allclose(path.slopes[0, 1:], x[0].diff(dim=0))
    assert torch.allclose(path.slopes[0, 0], x[0, 1] - x[0, 0])


def test_rectilinear_paths_wait_for_what_is_observed():
    series = stays([3])
    path, x = rectilinear(series, counts=False), channels_of(series, counts=False)[0]
    assert torch.equal(path.values[0, ::2], x)
    assert torch.equal(path.values[0, 1], torch.cat((x[1, :1], x[0, 1:])))
    t0, t1, t2 = series.times[0].tolist()
    ts = torch.tensor([[t0, 0.25 * t0 + 0.75 * t1, t1, 0.5 * (t1 + t2), t2]], dtype=D)
    clock = on_clock("rectilinear", series, ts)
    assert torch.equal(clock[0, ::2], torch.tensor([0.0, 2.0, 4.0], dtype=D))
    found = torch.stack([path.value(clock[:, k : k + 1])[0] for k in range(5)])
    assert torch.allclose(found[:, 0], ts[0])
    assert torch.allclose(found[1, 1:], x[0, 1:])
    assert torch.allclose(found[3, 1:], x[1, 1:])


@KINDS
def test_a_linear_control_has_a_closed_form(kind):
    """Along a straight line the solution is a matrix exponential; along two, one after the other, a product of two."""
    torch.manual_seed(0)
    matrices = 0.5 * torch.randn(2, 3, 3, dtype=D)
    own = NeuralCDE(Linear(matrices), nn.Linear(2, 3).double(), nn.Identity(), kind, solver=TIGHT)
    times = torch.tensor([0.5, 0.6, 1.5, 1.6, 3.5], dtype=D)  # gaps of two sizes
    series = Series.of([(times, 2 - 0.7 * times.unsqueeze(1)), (times[:2], 3 * times[:2].unsqueeze(1))])
    z = own(series)
    x = channels_of(series, counts=False)
    for row, (count, speed) in enumerate(((5, -0.7), (2, 3.0))):
        expected = own.initial(x[row, 0])
        steps = [times[-1] - times[0]] if kind == "hermite" else times[:count].diff()
        steps = [times[1] - times[0]] if kind == "hermite" and count == 2 else steps
        for step in steps:
            parts = (matrices[0] + speed * matrices[1],) if kind == "hermite" else (matrices[0], speed * matrices[1])
            for part in parts:
                expected = torch.linalg.matrix_exp(step * part) @ expected
        assert torch.allclose(z[row], expected, atol=1e-7)


@KINDS
@pytest.mark.parametrize("counts", [False, True])
def test_later_observations_change_no_earlier_state(kind, counts):
    own, base = model(kind, channels=7 if counts else 4, counts=counts, solver=TIGHT), rows([8])[0]
    times, values, mask = base
    series = Series.of([base])
    ts = times[:4]
    early = own.states(series, ts)
    changed = torch.arange(8) >= 4
    other = Series.of([(torch.where(changed, times + 1, times), values + changed[:, None], mask ^ changed[:, None])])
    cut = Series.of([tuple(part[:4] for part in base)])
    for series in (other, cut):
        assert torch.allclose(own.states(series, ts), early, atol=1e-8)
    if kind == "rectilinear":  # also between times
        between = 0.5 * (times[:3] + times[1:4])
        changed = torch.arange(8) >= 3
        other = Series.of([(times, values + changed[:, None], mask)])
        assert torch.allclose(own.states(other, between), own.states(Series.of([base]), between), atol=1e-8)


@KINDS
@pytest.mark.parametrize("solver", [ti.RK4(dt=0.5), ti.Tsit5(rtol=1e-3, atol=1e-4)])
def test_later_observations_change_no_earlier_bit(kind, solver):
    own, (times, values, mask) = model(kind, solver=solver), rows([8])[0]
    changed = torch.arange(8) >= 4
    one, other = Series.of([(times, values, mask)]), Series.of([(times, values + changed[:, None], mask)])
    assert torch.equal(own.states(one, times)[0, :4], own.states(other, times)[0, :4])
    assert not torch.equal(own.states(one, times)[0, 4], own.states(other, times)[0, 4])


@KINDS
@pytest.mark.parametrize("solver", [ti.Tsit5, ti.Bosh3, ti.Kvaerno3])
@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
def test_the_tolerance_is_kept_across_pieces(kind, solver, rtol):
    """Where pieces meet the path bends, and a step across that is off by more than any estimate says."""
    torch.manual_seed(0)
    times = torch.rand(2, 15, dtype=D).sort(1).values
    series = Series.of([(t, torch.randn(15, 3, dtype=D).cumsum(0) * 0.3) for t in times])
    own = model(kind, solver=solver(rtol=rtol, atol=0.1 * rtol))
    found, pieces = own(series).detach(), 14 if kind == "hermite" else 28
    exact = model(kind, solver=TIGHT)(series).detach()
    assert float((found - exact).norm() / exact.norm()) < 5 * rtol
    assert int(own.report.steps.min()) >= pieces


def test_a_piece_is_a_step_where_the_tolerance_allows_one():
    own, series = model(solver=ti.Tsit5(rtol=0.1, atol=0.1)), stays([9, 5, 2])
    own(series)
    assert own.report.steps.tolist() == [8, 4, 1]
    assert own.report.nfev <= 8 * 9


@KINDS
def test_neither_mates_nor_padding_change_a_bit(kind):
    own = model(kind)
    few, other, long = (rows([n], seed=n)[0] for n in (5, 3, 12))
    value = own(Series.of([few, other, other]))
    assert torch.equal(own(Series.of([few, long, other]))[0], value[0])
    assert torch.equal(own(Series.of([few, other, rows([1])[0]]))[0], value[0])
    assert torch.allclose(own(Series.of([other, few]))[1], value[0], rtol=1e-12)


@KINDS
def test_the_clock_is_not_felt(kind):
    """A point more on the same path changes nothing."""
    times = torch.tensor([0.0, 2.0], dtype=D)
    values = torch.tensor([[1.0, 2.0, 0.0], [3.0, -1.0, 0.0]], dtype=D)
    own, plain = model(kind, solver=TIGHT), Series.of([(times, values)])
    nothing = values[0] if kind == "rectilinear" else values.mean(0)
    more = Series.of([(torch.tensor([0.0, 1.0, 2.0], dtype=D), torch.stack((values[0], nothing, values[1])))])
    assert torch.allclose(own(more), own(plain), atol=1e-7)


@KINDS
def test_one_observation_and_states_at_times(kind):
    own, series = model(kind, solver=ti.RK4(dt=0.5)), stays([1, 4])
    assert torch.allclose(own(series)[0], own.readout(own.initial(channels_of(series, counts=False)[0, 0])))
    states = own.states(series, series.times)
    assert states.shape == (2, 4, 3)
    assert torch.allclose(own(series), own.readout(states[:, -1]))
    assert torch.allclose(own(series, series.times)[1, -1], own(series)[1])


@KINDS
def test_gradients_agree_with_differences(kind):
    own, series = model(kind, solver=ti.RK4(dt=0.5)), stays([4, 2])
    own(series).square().sum().backward()
    assert all(bool(p.grad.isfinite().all() and p.grad.any()) for p in own.parameters())
    slope, weight, h = own.field[0].weight.grad[0, 0], own.field[0].weight.detach(), 1e-6
    weight[0, 0] += h
    above = own(series).square().sum()
    weight[0, 0] -= 2 * h
    below = own(series).square().sum()
    assert float(slope) == pytest.approx(float(((above - below) / (2 * h)).detach()), rel=1e-4)


def test_options_change_the_answer():
    series = stays([5])
    value = model()(series)
    assert not torch.allclose(model("rectilinear")(series), value)
    assert not torch.equal(model(solver=ti.RK4(dt=1.0))(series), value)
    assert "control='hermite', counts=False" in repr(model())
    for other in (copy.deepcopy(model()), pickle.loads(pickle.dumps(model()))):
        assert torch.equal(other(series), value)
    assert model().report is None


def test_bad_input():
    own, series = model(), stays([4, 2])
    with pytest.raises(ValueError, match="got times behind the last one of series 0"):
        own(series, torch.tensor([1.5], dtype=D))
    with pytest.raises(ValueError, match="expected no time before its first one"):
        own(series, series.times - 1)
    with pytest.raises(ValueError, match="series 0 has no observations"):
        own(series.before(0.0))
    with pytest.raises(TypeError, match="NeuralCDE: got a list, expected a Series"):
        own([1.0])
    wrong = model()
    wrong.counts, wrong.initial = True, nn.Linear(7, 3).double()
    with pytest.raises(ValueError, match=r"field: got shape \(2, 3, 4\), expected \(2, 3, 7\).*Unflatten\(1, \(3, 7"):
        wrong(series)
    with pytest.raises(ValueError, match=r"NeuralCDE\(control='linear'\): expected 'hermite' or 'rectilinear'"):
        model("linear")
    with pytest.raises(TypeError, match=r"NeuralCDE\(initial=...\): got a int"):
        NeuralCDE(nn.Identity(), 3, nn.Identity())
