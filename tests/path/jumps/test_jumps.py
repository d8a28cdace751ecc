"""Fields that jump and doses that are given at known times: values, gradients by the times, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti

INF, NAN = math.inf, math.nan
FINE = ti.Tsit5(rtol=1e-10, atol=1e-12)
ONE = torch.ones(1, 1, dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def infusion(t, y, starts, rate, k):
    """Infusions of an hour each: `starts` are `(J,)`, or `(B, J)`."""
    running = ((t >= starts) & (t < starts + 1)).sum(1, keepdim=True)
    return rate * running - k * y


def given_at(t, starts, amounts, rate, k):
    """The exact state at `t` from infusions and from doses of these amounts at their starts, from zero at zero."""
    after = torch.exp(-k * (t - starts).clamp_min(0)) * (t > starts)
    rise = (1 - torch.exp(-k * (t - starts).clamp(0, 1))) * torch.exp(-k * (t - starts - 1).clamp_min(0))
    return (rate / k * rise + amounts * after).sum(-1)


def both(starts):
    return torch.cat((starts, starts + 1))


def test_infusions_that_free_steps_miss():
    starts = double(10, 30, 55).requires_grad_()
    k = double(1.0).requires_grad_()
    ts = double(0, 12, 60)
    args = starts.detach(), 0.05, k
    missed = ti.odeint(infusion, 0 * ONE, ts, *args)
    assert float(missed.value[-1].detach()) == 0  # true: 0.00056
    found = ti.odeint(infusion, 0 * ONE, ts, *args, jumps=both(starts), solver=FINE)
    exact = torch.stack([given_at(t, starts, 0, 0.05, k) for t in ts])
    assert torch.allclose(found.value[:, 0, 0], exact, rtol=0, atol=1e-9)
    found, exact = (torch.autograd.grad(each, (starts, k)) for each in (found.value[-1].sum(), exact[-1]))
    for one, other in zip(found, exact, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-11)


ADJOINTS = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct(), ti.Reversible(), ti.Backsolve(), ti.Backsolve(True)]
SOLVERS = [FINE, ti.Dopri8(rtol=1e-10, atol=1e-12), ti.RK4(dt=0.1), ti.ESDIRK54(rtol=1e-7, atol=1e-9)]


PAIRS = [
    (solver, adjoint)
    for solver in SOLVERS
    for adjoint in ADJOINTS
    if not isinstance(adjoint, ti.Reversible) or isinstance(solver, ti.Tsit5 | ti.RK4)  # the methods of Reversible
]


@pytest.mark.parametrize("forward", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize(("solver", "adjoint"), PAIRS, ids=lambda one: type(one).__name__)
def test_gradients_by_times_and_amounts_are_those_of_the_closed_form(adjoint, solver, forward):
    starts, amounts, k = double(1, 3, 5.5), double(0.3, 0.2, 0.7), double(0.3)
    ts = double(0, 2.5, 7)
    inputs = [each.requires_grad_() for each in (starts, amounts, k, ts)]
    sign = 1 if forward else -1
    doses = torch.cat((amounts, torch.zeros_like(amounts))).view(-1, 1, 1)
    solution = ti.odeint(
        lambda t, y, *args: sign * infusion(sign * t, y, *args), torch.zeros(2, 1, dtype=torch.float64), sign * ts,
        starts.detach(), 0.5, k, jumps=sign * both(starts), doses=doses, solver=solver, adjoint=adjoint,
    )  # fmt: skip
    exact = torch.stack([given_at(t, starts, amounts, 0.5, k) for t in ts])
    atol = 1e-5 if isinstance(solver, ti.RK4 | ti.ESDIRK54) else 1e-8
    assert torch.allclose(solution.value, exact.view(-1, 1, 1), rtol=0, atol=atol)
    weights = double(0, 2, 3)
    found = torch.autograd.grad((weights * solution.value[:, 0, 0]).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((weights * exact).sum(), inputs), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=2 * atol)
    if isinstance(adjoint, ti.Reversible | ti.Backsolve):
        assert solution.backward.converged
        assert solution.backward.reached.tolist() == [0, 0]


def test_the_gradient_is_the_step_of_the_field_times_that_of_the_state():
    jump = double(0.7).requires_grad_()
    y0 = double([1.0, 0.5], [0.2, -0.3]).requires_grad_()

    def field(t, y, side):
        return torch.where(t < 0.7, torch.sin(3 * y) + t, -(y**2) + side)

    ts, side = double(0, 0.7, 2), double(0.3)
    value = ti.odeint(field, y0, ts, side, jumps=jump, solver=FINE).value
    (found,) = torch.autograd.grad(value[2].sum(), jump)
    here = value[1].detach().requires_grad_()
    later = ti.odeint(lambda t, y: -(y**2) + side, here, ts[1:], solver=FINE).value[-1]
    (flow,) = torch.autograd.grad(later.sum(), here)
    left, right = torch.sin(3 * here) + 0.7, -(here**2) + side
    assert torch.allclose(found, ((left - right) * flow).sum(), rtol=1e-8)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct(), ti.Backsolve()], ids=str)
def test_an_output_at_a_jump_belongs_to_the_side_before(adjoint):
    jumps, ts = double(1, 2).requires_grad_(), double(0, 1, 2, 3).requires_grad_()
    y0, amount = ONE.clone().requires_grad_(), double(5.0).requires_grad_()

    def field(t, y):
        return torch.where(t < 1, 2.0, torch.where(t < 2, -1.0, 0.5)) * y

    value = ti.odeint(
        field, y0, ts, jumps=jumps, doses=amount.expand(2, 1, 1), solver=FINE, adjoint=adjoint
    ).value.flatten()
    first = math.exp(2)
    second = (first + 5) * math.exp(-1)
    assert torch.allclose(value, double(1, first, second, (second + 5) * math.exp(0.5)), rtol=1e-9)
    by_ts, by_jumps = torch.autograd.grad(value[1], (ts, jumps), retain_graph=True)
    assert torch.allclose(by_ts, double(-2 * first, 2 * first, 0, 0), rtol=1e-8)
    assert torch.allclose(by_jumps, double(0, 0), atol=1e-8)  # it happens a little later, and nothing changes
    by_ts, by_jumps = torch.autograd.grad(value[2], (ts, jumps), retain_graph=True)
    step = (2 * first + first + 5) * math.exp(-1)
    assert torch.allclose(by_ts, double(-2 * first * math.exp(-1), 0, -second, 0), rtol=1e-7, atol=1e-8)
    assert torch.allclose(by_jumps, double(step, 0), rtol=1e-8, atol=1e-8)
    (by_amount,) = torch.autograd.grad(value[3], amount)
    assert torch.allclose(by_amount, double(math.exp(-0.5) + math.exp(0.5)))


def test_the_derivative_by_the_time_is_seen_at_a_jump():
    """`y' = t` up to the jump, over one step of the trapezoidal rule, which asks at both ends alone."""
    jump = double(1.5).requires_grad_()
    value = ti.odeint(
        lambda t, y: torch.where(t < 1.5, t, 0.0) + 0 * y, 0 * ONE, double(0, 2), jumps=jump, solver=ti.Heun(dt0=2.0)
    ).value[-1]
    assert float(value.detach()) == pytest.approx(1.125)
    (slope,) = torch.autograd.grad(value.sum(), jump)
    assert float(slope) == pytest.approx(1.5)


def test_a_backward_solve_tells_of_all_stretches():
    y0 = ONE.clone().requires_grad_()
    first = ti.odeint(decay, y0, double(0, 1), adjoint=ti.Backsolve())
    torch.autograd.grad(first.value[-1].sum(), y0)
    solution = ti.odeint(decay, y0, double(0, 3), jumps=double(1, 2), adjoint=ti.Backsolve())
    for _ in range(2):  # each time of its own pass
        torch.autograd.grad(solution.value[-1].sum(), y0, retain_graph=True)
        assert 2 * int(first.backward.accepted) < int(solution.backward.accepted) < 4 * int(first.backward.accepted)
        assert 2 * first.backward.nfev < solution.backward.nfev < 4 * first.backward.nfev
        assert float(solution.backward.reached) == 0


def test_the_limits_of_a_field_are_seen_whichever_way_it_compares():
    for dtype in (torch.float32, torch.float64):
        seen = []

        def strictly(t, y, seen=seen):
            seen.append(float(t))
            return torch.where(t < 0.7, 1.0, 3.0) + 0 * y

        def weakly(t, y):
            return torch.where(t <= 0.7, 1.0, 3.0) + 0 * y

        def in_days(t, y):
            return torch.where(t / 24 < 0.7 / 24, 1.0, 3.0) + 0 * y

        ts = torch.tensor([0.0, 2.0], dtype=dtype)
        jumps = torch.tensor([0.7], dtype=torch.float64)
        for field in (strictly, weakly, in_days):
            for solver in (ti.Tsit5(), ti.Kvaerno3(), ti.Dopri8(rtol=1e-5), ti.RK4(), ti.Bosh3(), ti.Heun()):
                solution = ti.odeint(field, torch.zeros(1, 1, dtype=dtype), ts, jumps=jumps, solver=solver)
                assert torch.allclose(solution.value[1], torch.full_like(solution.value[1], 0.7 + 3 * 1.3), rtol=1e-6)
                assert int(solution.report.rejected) == 0
        assert min(seen) > 0
        assert max(seen) < 2


def test_few_steps_where_a_jump_is_known():
    def field(t, y):
        return torch.where(t < 0.5, 1.0, -1.0) * y

    ts = double(0, 1)
    blind = ti.odeint(field, ONE, ts)
    seeing = ti.odeint(field, ONE, ts, jumps=double(0.5))
    assert int(seeing.report.accepted) <= 6
    assert int(blind.report.accepted + blind.report.rejected) > 3 * int(seeing.report.accepted)


def per_sample():
    """Times, jumps and doses of four samples of their own; the last but one has none, the last has them outside."""
    ts = double([0, 0, 0, 1.0], [1, 0.5, 0.7, 0.5], [2, 1.5, NAN, 0.2], [2.5, NAN, NAN, NAN])
    jumps = double([1.7, 0.5, NAN, 2.0], [0.3, INF, NAN, 0.1], [1.0, 0.2, INF, NAN])
    return ts, jumps


def turning(t, y, at):
    """Turns round at every jump of the sample, `at` `(B, J)`."""
    return torch.where((t > at.nan_to_num(INF)).sum(1, keepdim=True) % 2 == 0, torch.cos(y), -0.5 - y)


SAMPLES = [ti.Tsit5(), ti.Dopri8(rtol=1e-7), ti.RK4(dt=0.1), ti.Kvaerno3(rtol=1e-3)]


@pytest.mark.parametrize("solver", SAMPLES, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct(), ti.Backsolve()], ids=str)
def test_every_sample_is_as_alone(solver, adjoint):
    ts, jumps = per_sample()
    y0, doses = torch.randn(4, 2, dtype=torch.float64), torch.rand(3, 4, 2, dtype=torch.float64)
    inputs = [each.requires_grad_() for each in (y0, ts, jumps, doses)]

    def solve(y0, ts, jumps, doses):
        at = jumps.detach().T
        return ti.odeint(turning, y0, ts, at, jumps=jumps, doses=doses, solver=solver, adjoint=adjoint)

    solution = solve(*inputs)
    assert solution.report.converged
    weights = torch.randn(4, 4, 2, dtype=torch.float64) * solution.mask.unsqueeze(2)
    found = torch.autograd.grad((solution.value * weights).sum(), inputs)
    atol = 1e-3 if isinstance(solver, ti.Kvaerno3) else 1e-9
    for i in range(4):
        own = ~ts[:, i].isnan()
        inputs = [y0[i : i + 1], ts[own, i], jumps[:, i : i + 1], doses[:, i : i + 1]]
        inputs = [each.detach().requires_grad_() for each in inputs]
        alone = solve(*inputs)
        assert torch.allclose(alone.value[:, 0], solution.value[own, i], rtol=0, atol=atol)
        each = torch.autograd.grad((alone.value[:, 0] * weights[own, i]).sum(), inputs)
        assert torch.allclose(found[0][i], each[0][0], rtol=0, atol=atol)
        assert torch.allclose(found[1][own, i], each[1], rtol=0, atol=atol)
        assert torch.allclose(found[2][:, i], each[2][:, 0], rtol=0, atol=atol)
        assert torch.allclose(found[3][:, i], each[3][:, 0], rtol=0, atol=atol)


def in_pieces(field, y, ts, jumps, doses, **options):
    """The same by a call for each piece: the outputs `(T, n)` of one sample."""
    values, inside = [y], (jumps >= ts[0]) & (jumps < ts[-1])
    order = torch.argsort(jumps[inside])
    jumps, doses = jumps[inside][order], doses[inside][order]
    now = ts[0]
    for i, stop in enumerate((*jumps, ts[-1])):
        times = ts[(ts > now) & (ts < stop)]
        ends = ti.odeint(field, y[None], torch.cat((now[None], times, stop[None])), **options).value[1:, 0]
        values += [*(ends if bool((ts == stop).any()) and stop > now else ends[: len(times)])]
        now, y = stop, ends[-1] + (doses[i] if i < len(doses) else 0)
    return torch.stack(values)


@settings(max_examples=30)
@given(
    jumps=st.lists(st.integers(-2, 12), max_size=5),
    ts=st.lists(st.integers(1, 10), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 99),
)
def test_jumps_are_a_call_for_each_piece(jumps, ts, seed):
    draw = torch.Generator().manual_seed(seed)
    ts, jumps = double(0, *sorted(ts)) / 10, double(*jumps) / 10
    doses = torch.rand(len(jumps), 1, 2, dtype=torch.float64, generator=draw)
    y0 = torch.rand(1, 2, dtype=torch.float64, generator=draw)

    def field(t, y):
        return torch.sin(4 * y) * torch.cos(t)

    whole = ti.odeint(field, y0, ts, jumps=jumps, doses=doses, solver=FINE)
    assert whole.report.converged
    pieces = in_pieces(field, y0[0], ts, jumps, doses[:, 0], solver=FINE)
    assert torch.allclose(whole.value[:, 0], pieces, rtol=0, atol=1e-8)


def decay(t, y):
    return -y


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_what_lies_at_the_ends_or_outside(order):
    ts = double(0, 1, 2)
    for at, after in {-1.0: 0.0, 0.0: math.exp(-2), 1.0: math.exp(-1), 2.0: 0.0, 3.0: 0.0}.items():
        jumps, doses = double(0.5, at, 1.5)[order], double(1, 10, 100)[order].view(-1, 1, 1)
        value = ti.odeint(decay, ONE, ts, jumps=jumps, doses=doses, solver=FINE).value
        want = math.exp(-2) + math.exp(-1.5) + 10 * after + 100 * math.exp(-0.5)
        assert float(value[0]) == 1.0
        assert float(value[2]) == pytest.approx(want, rel=1e-8)


def test_two_jumps_at_a_time_add_up_and_their_gradients_are_refused():
    ts, jumps, doses = double(0, 1), double(0.5, 0.5), double(1, 2).view(-1, 1, 1)
    value = ti.odeint(decay, ONE, ts, jumps=jumps, doses=doses, solver=FINE).value[-1]
    assert float(value) == pytest.approx(math.exp(-1) + 3 * math.exp(-0.5), rel=1e-8)
    with pytest.raises(ValueError, match=r"the same time twice(.|\n)*Try one jump there"):
        ti.odeint(decay, ONE, ts, jumps=jumps.requires_grad_(), doses=doses)
    jump = double(0.5).requires_grad_()  # what it says to try
    value = ti.odeint(decay, ONE, ts, jumps=jump, doses=doses.sum(0, keepdim=True), solver=FINE).value[-1]
    (slope,) = torch.autograd.grad(value.sum(), jump)
    assert float(slope) == pytest.approx(3 * math.exp(-0.5), rel=1e-7)


def test_a_dose_at_the_start_can_only_be_later():
    jump = double(0, 0.5).requires_grad_()
    ts = double(0, 1)
    value = ti.odeint(decay, ONE, ts, jumps=jump, doses=double(1, 2).view(-1, 1, 1), solver=FINE).value[-1]
    (slope,) = torch.autograd.grad(value.sum(), jump)
    assert torch.allclose(slope, double(math.exp(-1), 2 * math.exp(-0.5)), rtol=1e-7)


def test_a_single_time_is_its_start():
    value = ti.odeint(decay, ONE.clone().requires_grad_(), double(1), jumps=double(0, 1, 2), doses=ONE.expand(3, 1, 1))
    assert value.value.flatten().tolist() == [1.0]
    assert value.report.converged


def test_joint_steps_nested_and_complex_states():
    ts, jumps = double(0, 1), double(0.25)
    state = {"a": ONE.expand(3, 2), "b": (torch.ones(3, dtype=torch.complex128),)}
    doses = {"a": double(1, 2), "b": (torch.full((1, 3), 2j, dtype=torch.complex128),)}
    for stepping in ("per-sample", "joint"):
        solution = ti.odeint(
            lambda t, y: {"a": -y["a"], "b": (1j * y["b"][0],)}, state, ts, jumps=jumps, doses=doses, stepping=stepping,
            solver=FINE,
        )  # fmt: skip
        a, b = solution.value["a"][-1], solution.value["b"][0][-1]
        assert torch.allclose(a, math.exp(-1) + double(1, 2) * math.exp(-0.75), rtol=1e-8)
        turned = torch.polar(double(1, 2), double(1, 0.75 + math.pi / 2)).sum()
        assert torch.allclose(b, turned.expand(3), rtol=1e-8)


def test_a_sample_that_fails_stays_where_it_was():
    y0 = double([1.5], [2.0], [0.1]).requires_grad_()
    rate = double(1.0).requires_grad_()

    def blows_up(t, y, rate):
        return torch.where(t < 0.6, rate * y**2, -y)

    solution = ti.odeint(
        blows_up, y0, double(0, 0.55, 0.8, 1), rate, jumps=double(0.3, 0.6, 0.9), doses=ONE.expand(3, 1, 1),
        on_failure="ignore",
    )  # fmt: skip
    assert [ti.Status(int(status)).name for status in solution.status] == ["STEP_TOO_SMALL"] * 2 + ["CONVERGED"]
    assert 0.3 < float(solution.report.reached[1]) < float(solution.report.reached[0]) < 0.6
    assert torch.equal(solution.value[2, :2], solution.value[3, :2])
    alone = ti.odeint(
        blows_up, y0[2:], double(0, 0.55, 0.8, 1), rate, jumps=double(0.3, 0.6, 0.9), doses=ONE.expand(3, 1, 1)
    )
    assert torch.allclose(solution.value[:, 2], alone.value[:, 0])


def test_a_sample_that_is_not_finite_stays_out_of_every_gradient():
    scale = double(1.0).requires_grad_()
    y0 = double([1.0], [2.0]).requires_grad_()
    jumps, doses = double(0.5).requires_grad_(), double(1.0).view(1, 1, 1).requires_grad_()

    def invalid(t, y, x, scale):
        return torch.where(t < 0.5, -scale * y, scale * x * y)

    x = double([-1.0], [NAN])
    inputs = y0, scale, jumps, doses
    solution = ti.odeint(invalid, y0, double(0, 1), x, scale, jumps=jumps, doses=doses, on_failure="ignore")
    assert solution.status.tolist() == [0, int(ti.Status.NON_FINITE)]
    found = torch.autograd.grad(solution.value[-1].sum(), inputs)
    alone = ti.odeint(invalid, y0[:1], double(0, 1), x[:1], scale, jumps=jumps, doses=doses)
    each = torch.autograd.grad(alone.value[-1].sum(), inputs)
    assert float(found[0][1]) == 0
    for one, other in zip(found[1:], each[1:], strict=True):
        assert torch.allclose(one, other)


def test_dense_output_is_right_on_both_sides():
    jumps = double([0.5, 1.2], [1.5, NAN]).T.clone().requires_grad_()
    doses = double(2.0).expand(2, 2, 1).clone().requires_grad_()
    at = jumps.detach().T

    def field(t, y, at):
        return torch.where((t > at.nan_to_num(INF)).any(1, keepdim=True), 1.0, -1.0) * y

    y0 = torch.ones(2, 1, dtype=torch.float64)
    solution = ti.odeint(field, y0, double(0, 2), at, jumps=jumps, doses=doses, solver=FINE, dense=True)
    tiny = 1e-9
    for sample, jump in ((0, 0.5), (1, 1.5)):
        before, after = (solution.path(t)[sample].detach() for t in (jump, jump + tiny))
        slopes = [float(solution.path.derivative(t)[sample].detach()) for t in (jump, jump + tiny)]
        assert float(before) == pytest.approx(math.exp(-jump), rel=1e-7)
        assert float(after - before) == pytest.approx(2, rel=1e-7)
        assert slopes == pytest.approx([-math.exp(-jump), math.exp(-jump) + 2], rel=1e-5)
    (slope,) = torch.autograd.grad(solution.path(2.0)[0].sum(), jumps, retain_graph=True)
    exact = torch.func.grad(
        lambda one, other: ((torch.exp(-one) + 2) * torch.exp(other - one) + 2) * torch.exp(2 - other), argnums=(0, 1)
    )(*jumps[:, 0].detach())
    assert torch.allclose(slope[:, 0], torch.stack(exact), rtol=1e-6)
    several = solution.path(double(0.1, 0.7, 1.9))
    again = [solution.path(t) for t in (0.1, 0.7, 1.9)]
    assert torch.equal(several, torch.stack(again))


def test_events_between_jumps():
    """A tank that is filled and drained by turns; when it holds three."""
    switch = double([1, 2, 4], [1, 1.5, 3]).T.clone().requires_grad_()
    at = switch.detach().T

    def tank(t, y, at):
        return torch.where((t >= at).sum(1, keepdim=True) % 2 == 0, 2.0, -1.0) + 0 * y

    full = ti.Event(lambda t, y, at: y[:, 0] - 4)
    solution = ti.odeint(
        tank, torch.zeros(2, 1, dtype=torch.float64), double(0, 3, 6), at, jumps=switch, event=full, solver=FINE
    )
    # 2, 1, 5 and 2, 1.5, 4.5
    assert torch.allclose(solution.event_time, double(3.5, 2.75), rtol=1e-9)
    assert torch.allclose(solution.event_state, torch.full((2, 1), 4.0, dtype=torch.float64))
    assert solution.fired.tolist() == [True, True]
    assert torch.allclose(solution.value[:, :, 0], double([0, 0], [3, 4], [4, 4]))
    (slope,) = torch.autograd.grad(solution.event_time.sum(), switch)
    assert torch.allclose(slope.T, double([-1.5, 1.5, 0], [-1.5, 1.5, 0]), atol=1e-8)


def test_an_event_at_the_time_of_a_jump_ends_the_solve_there():
    at = double(2.0).requires_grad_()
    moment = ti.Event(lambda t, y, at: t[:, 0] - at[0])
    solution = ti.odeint(
        lambda t, y, at: -y, ONE, double(0, 1, 3), at, jumps=at.detach(), doses=ONE[None], event=moment, solver=FINE
    )
    assert solution.event_time.tolist() == [2.0]
    assert torch.allclose(solution.value.flatten(), torch.exp(-double(0, 1, 2)))
    (slope,) = torch.autograd.grad(solution.event_time.sum(), at)
    assert slope.tolist() == [1.0]


def test_crossings_of_all_stretches_stand_in_a_row_and_callbacks_see_them():
    """The state grows by one a unit of time, and by a dose; it is noted at whole numbers and stops at 3.25."""
    y0, times = double([0.1], [0.5]), []
    level = ti.Event(lambda t, y: torch.sin(math.pi * y[:, 0]), terminal=False)
    top = ti.Event(lambda t, y: y[:, 0] - 3.25)
    jumps, doses = double([1.2, NAN], [8.0, 0.3]).requires_grad_(), double(0.4).expand(2, 2, 1)
    solution = ti.odeint(
        lambda t, y: torch.ones_like(y), y0, double(0, 4), jumps=jumps, doses=doses, event=[level, top], solver=FINE,
        dt_max=0.2, callback=lambda t, y, moved: times.append(t),
    )  # fmt: skip
    met = solution.crossings[0]
    assert torch.allclose(met.time.T, double([0.9, 1.5, 2.5], [0.3, 1.1, 2.1]))  # the dose at 0.3 brings 0.8 to 1.2
    assert torch.allclose(met.state[..., 0].T, double([1, 2, 3], [1.2, 2, 3]))
    assert solution.event_index.tolist() == [1, 1]
    assert torch.allclose(solution.event_time, double(2.75, 2.35))
    seen = torch.stack(times)
    assert bool((seen.diff(dim=0) >= 0).all())
    assert torch.equal(seen[-1], solution.event_time.detach())


def test_an_event_that_a_dose_carries_the_path_past_happens_at_the_dose():
    jump, amount = double(1.0).requires_grad_(), double(3.0).requires_grad_()
    high = ti.Event(lambda t, y: y[:, 0] - 2)

    def solve(event, **options):
        doses = amount.view(1, 1, 1)
        ts = double(0, 1, 1.1, 4)
        return ti.odeint(decay, ONE, ts, jumps=jump, doses=doses, event=event, solver=FINE, **options)

    solution = solve(high, dense=True)
    assert solution.event_time.tolist() == [1.0]
    assert solution.event_index.tolist() == [0]
    e = math.exp(-1)
    assert torch.allclose(solution.value.flatten(), double(1, e, e + 3, e + 3), rtol=1e-9)
    assert torch.allclose(solution.event_state, double([e + 3]), rtol=1e-9)
    assert solution.crossings[0].time.tolist() == [[1.0]]
    sides = [float(solution.path(t).detach()) for t in (1.0, 1 + 1e-9)]
    assert sides == pytest.approx([e, e + 3], rel=1e-9)
    by = torch.autograd.grad(solution.event_time.sum(), (jump, amount), retain_graph=True, materialize_grads=True)
    assert torch.cat(by).tolist() == [1.0, 0.0]
    by = torch.autograd.grad(solution.event_state.sum(), (jump, amount))
    assert torch.allclose(torch.cat(by), double(-e, 1), rtol=1e-8)

    down = solve(ti.Event(high.condition, direction=-1))
    assert float(down.event_time.detach()) == pytest.approx(1 + math.log((e + 3) / 2), rel=1e-8)
    noted = solve([ti.Event(high.condition, terminal=False), ti.Event(high.condition, direction=-1)])
    assert torch.allclose(noted.crossings[0].time.flatten(), torch.cat((double(1), down.event_time)), rtol=1e-9)
    with torch.no_grad():
        assert torch.equal(solve(high).event_time, solution.event_time)


def test_several_events_at_a_jump_end_with_the_first_in_the_list():
    levels = [
        ti.Event(lambda t, y, at=at: y[:, 0] - at, terminal=ends) for at, ends in ((3, True), (2, True), (1, False))
    ]
    solution = ti.odeint(decay, 0.1 * ONE, double(0, 2), jumps=double(1), doses=5 * ONE[None], event=levels)
    assert solution.event_index.tolist() == [0]
    assert [each.time.flatten().tolist() for each in solution.crossings] == [[1.0], [], [1.0]]


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.RK4(dt=0.03), ti.Kvaerno3()], ids=lambda one: type(one).__name__)
def test_an_event_that_is_met_just_at_a_jump_is_met_once(solver):
    """By a rounding before it, at it or behind it; and a field that turns there does not take it back."""
    jumps = double(*torch.linspace(0.1, 0.9, 33).tolist())
    start = torch.zeros(33, 1, dtype=torch.float64)
    for slope in (1.0, 0.3, 7.0):
        for terminal in (True, False):
            event = ti.Event(lambda t, y, at, slope=slope: y[:, 0] - slope * at[:, 0], terminal=terminal)
            solution = ti.odeint(
                lambda t, y, at, slope=slope: slope * (1 + (t >= at) + 0 * y), start, double(0, 1),
                jumps[:, None], jumps=jumps[None], event=event, solver=solver,
            )  # fmt: skip
            assert solution.crossings[0].mask.sum(0).tolist() == [1] * 33
            assert torch.allclose(solution.crossings[0].time[0], jumps, rtol=0, atol=1e-12)


def crossings_of_a_ramp(start, level, doses):
    """When a path of slope one, with these doses at whole times 0, 1, 2, ... passes a level, up to time 3.7."""
    y, side, found = start, 0 if start == level else (1 if start > level else -1), []
    for t in range(4):
        y += doses.get(t, 0)
        if side and (y - level) * side <= 0:
            found.append(t)
            side = -side if y != level else 0
        side = side if y == level else (1 if y > level else -1)
        if y < level <= y + 1 or (y == level and side == -1):
            found.append(t + level - y)
        y += 1
        side = (y > level) - (y < level)
    return [float(t) for t in found if t < 3.7]


@settings(max_examples=40)
@given(
    programs=st.lists(
        st.tuples(st.integers(-3, 2), st.dictionaries(st.integers(0, 3), st.integers(-3, 3))), min_size=1, max_size=3
    ),
    level=st.sampled_from([0.0, 1.0, 0.5, -0.25]),
)
def test_events_of_ramps_with_doses(programs, level):
    """Whatever its mates do, a sample passes a level where its path does, or its dose."""
    start = double(*([float(y)] for y, _ in programs))
    jumps = double(*([float(t)] * len(programs) for t in range(4)))
    doses = double(*([[float(amounts.get(t, 0))] for _, amounts in programs] for t in range(4)))
    event = ti.Event(lambda t, y: y[:, 0] - level, terminal=False)
    solution = ti.odeint(lambda t, y: torch.ones_like(y), start, double(0, 3.7), jumps=jumps, doses=doses, event=event)
    met = solution.crossings[0]
    for i, (y, amounts) in enumerate(programs):
        found = met.time[met.mask[:, i], i]
        assert found.tolist() == pytest.approx(crossings_of_a_ramp(y, level, amounts), abs=1e-12)


def test_doses_of_one_time_are_one_step_past_an_event():
    high = ti.Event(lambda t, y: y[:, 0] - 2)
    jumps = double([1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 3, 3]).T  # the last mate has one at each time
    jumps = torch.cat((jumps[:2], double([0, 1, 3], [0, 1, 3])))
    doses = double(3, -3, 0, 0).view(4, 1, 1)
    alone = ti.odeint(decay, ONE, double(0, 4), jumps=jumps[:, :1], doses=doses, event=high, solver=FINE)
    assert alone.event_time.isnan().all()
    start = ONE.expand(3, 1)
    solution = ti.odeint(decay, start, double(0, 4), jumps=jumps, doses=doses, event=high, solver=FINE)
    assert solution.event_time.isnan().tolist() == [True] * 3


def test_a_dose_at_the_first_time_carries_past_an_event():
    high = ti.Event(lambda t, y: y[:, 0] - 2)
    start = double([1.0], [2.0], [5.0])
    jump, doses = double(0.0).requires_grad_(), 3 * ONE[None]
    solution = ti.odeint(decay, start, double(0, 4), jumps=jump, doses=doses, event=high, solver=FINE)
    # the second one has just been met, the third is past it: both come down to it
    assert torch.allclose(solution.event_time, double(0, math.log(5 / 2), math.log(8 / 2)), rtol=1e-9)
    assert torch.equal(solution.event_state[0].detach(), double(4.0))


def test_transforms():
    starts, ts = double(0.3, 0.9), double(0, 2)

    def last(starts, k):
        amounts = torch.stack((k, 2 * k)).view(-1, 1, 1)
        return ti.odeint(
            lambda t, y, at, k: torch.where(t < 0.3, k, -k) * y**2, ONE, ts, starts, k, jumps=starts, doses=amounts,
            solver=FINE, adjoint=ti.Checkpointed(),
        ).value[-1].sum()  # fmt: skip

    k = double(0.5)[0]
    inputs = [each.clone().requires_grad_() for each in (starts, k)]
    first = torch.autograd.grad(last(*inputs), inputs, create_graph=True)
    again = torch.func.grad(last, argnums=(0, 1))(starts, k)
    assert torch.allclose(first[0], again[0], rtol=1e-6)
    assert torch.allclose(first[1], again[1], rtol=1e-6)
    _, along = torch.func.jvp(last, (starts, k), (double(1, -1), double(0.5)[0]))
    assert torch.allclose(along, first[0][0] - first[0][1] + 0.5 * first[1], rtol=1e-6)
    second = torch.autograd.grad(first[1], inputs)
    step = 1e-4
    above, below = (torch.func.grad(last, argnums=1)(starts, k + each) for each in (step, -step))
    assert torch.allclose(second[1], (above - below) / (2 * step), rtol=1e-4)
    above, below = (torch.func.grad(last, argnums=1)(starts + each, k) for each in (double(0, step), double(0, -step)))
    assert torch.allclose(second[0][1], (above - below) / (2 * step), rtol=1e-4)
    with pytest.raises(RuntimeError, match=r"got torch\.vmap, expected a batch in dimension 0"):
        torch.vmap(last, in_dims=(0, None))(torch.stack((starts, starts)), k)


def test_a_path_that_has_been_large_is_at_zero_to_the_rounding_of_that():
    """It comes from 1e8 to 1, to 1e-8, and a dose takes that away: the event is met there, on whichever side it is."""
    start = torch.linspace(1e8, 3e8, 16, dtype=torch.float64).unsqueeze(1)
    solution = ti.odeint(
        lambda t, y, start: torch.where(t < 1, 1 - start, torch.ones_like(y)), start, double(0, 2), start,
        jumps=double(1), doses=-ONE[None], event=ti.Event(lambda t, y, start: y[:, 0]),
    )  # fmt: skip
    assert solution.event_time.tolist() == [1.0] * 16
    assert bool((solution.event_state > 0).any())


def test_in_inference_mode_and_without_gradients():
    jumps, doses = double(0.5), double(2.0).view(1, 1, 1)
    with torch.inference_mode():
        inside = ti.odeint(decay, ONE * 1, double(0, 1) * 1, jumps=jumps * 1, doses=doses * 1).value
    with torch.no_grad():
        value = ti.odeint(decay, ONE, double(0, 1), jumps=jumps.requires_grad_(), doses=doses).value
    assert not value.requires_grad
    assert torch.equal(inside, value)
    assert torch.equal(value, ti.odeint(decay, ONE, double(0, 1), jumps=jumps, doses=doses).value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"jumps": [0.5]}, TypeError, r"jumps: got a list, expected a floating tensor"),
        ({"jumps": torch.tensor([1])}, TypeError, r"jumps: got a torch.int64 tensor"),
        ({"jumps": double([0.1, 0.2], [0.3, 0.4], [0.5, 0.6])}, ValueError, r"expected \(J,\)(.|\n)*; try jumps\.T"),
        ({"jumps": torch.zeros(1, 1, 1)}, ValueError, r"got shape \(1, 1, 1\)"),
        ({"doses": ONE}, ValueError, r"doses without jumps"),
        ({"jumps": double(0.5), "doses": [ONE]}, ValueError, r"doses: got the structure"),
        ({"jumps": double(0.5), "doses": torch.ones(2, 3, 1)}, ValueError, r"expected \(1, 3, 1\)"),
        ({"jumps": double(0.5), "doses": torch.ones(1, dtype=torch.int64)}, TypeError, r"doses: got a torch.int64"),
        ({"jumps": double(0.5), "doses": 1.0}, TypeError, r"doses: got a float"),
        ({"jumps": double(0.5), "doses": double(NAN)}, ValueError, r"doses: got NaN or infinity"),
        ({"jumps": double(0.5), "compile": True}, ValueError, r"compile: got True"),
    ],
    ids=str,
)
def test_refused(options, error, words):
    with pytest.raises(error, match=words):
        ti.odeint(decay, torch.ones(3, 1, dtype=torch.float64), double(0, 1), **options)


def test_doses_at_padding_may_be_anything():
    jumps, doses = double(0.5, NAN, INF, 7.0), double(1, NAN, INF, NAN).view(-1, 1, 1)
    value = ti.odeint(decay, ONE, double(0, 1), jumps=jumps, doses=doses, solver=FINE).value[-1]
    assert float(value) == pytest.approx(math.exp(-1) + math.exp(-0.5), rel=1e-8)


def test_empty_ones_are_none():
    free = ti.odeint(decay, ONE, double(0, 1))
    assert torch.equal(free.value, ti.odeint(decay, ONE, double(0, 1), jumps=torch.zeros(0)).value)
    assert ti.odeint(decay, ONE[:0], double(0, 1), jumps=double(0.5)).value.shape == (2, 0, 1)
