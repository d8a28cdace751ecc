"""Input that odeint cannot use: an error before the solve, or a status that says where and what to try."""

import math

import pytest
import torch

import torchimplicit as ti

ONE = torch.ones(1, 1, dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def decay(t, y):
    return -y


def fails(field, start, ts, text, **options):
    """The solution that the error carries."""
    with pytest.raises(ti.ConvergenceError, match=text) as caught:
        ti.odeint(field, start, ts, **options)
    assert caught.value.solution is not None
    assert bool(caught.value.solution.value.isfinite().all())
    return caught.value.solution


@pytest.mark.parametrize(
    ("ts", "error", "text"),
    [
        (double(0, 2, 1), ValueError, r"got 2 followed by 1 at position 1, expected times that strictly"),
        (double(0, 1, 1, 2), ValueError, r"got 1 followed by 1 at position 1.*try without the repeated ones"),
        (double(0, 1, 0), ValueError, r"got 0 followed by 1 at position 0"),
        (double(2, 1, 1, 2), ValueError, r"got 2 followed by 1 at position 0"),
        (double(), ValueError, r"got no times, expected at least the one of y0"),
        (double(0, math.nan), ValueError, r"got NaN or infinity, expected finite times"),
        (double(0, math.inf), ValueError, r"got NaN or infinity.*SteadyState\(\)"),
        (torch.tensor([0, 1]), TypeError, r"got a torch.int64 tensor, expected a floating tensor"),
        ([0.0, 1.0], TypeError, r"got a list, expected a floating tensor.*torch.tensor\(\[0.0, 1.0\]\)"),
        (torch.zeros(2, 3), ValueError, r"got shape \(2, 3\), expected \(T,\).*\(T, 1\)"),
        (torch.zeros(2, device="meta"), ValueError, r"got times on meta, expected cpu.*ts.to\(y0.device\)"),
    ],
)
def test_times(ts, error, text):
    with pytest.raises(error, match=text):
        ti.odeint(decay, ONE, ts)


@pytest.mark.parametrize(
    "other", [(0, math.nan, 1), (math.nan, 0, 1), (math.nan,) * 3, (0, math.inf, math.nan)], ids=str
)
def test_padding_stands_behind_the_last_time(other):
    ts = torch.stack((double(0, 1, 2), double(*other)), 1)
    with pytest.raises(ValueError, match=r"got NaN or infinity.*NaN as padding behind the last time of a sample"):
        ti.odeint(decay, torch.ones(2, 1, dtype=torch.float64), ts)


def test_times_of_another_precision_than_the_state():
    fine = ti.odeint(decay, ONE, torch.tensor([0.0, 1.0]), solver=ti.Tsit5(rtol=1e-9, atol=1e-9))
    assert fine.value.dtype == torch.float64
    assert fine.value[-1].item() == pytest.approx(math.exp(-1), rel=1e-8)
    seen = []
    coarse = ti.odeint(lambda t, y: seen.append(t.dtype) or -y, ONE.float(), double(0, 1))
    assert coarse.value.dtype == torch.float32
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.RK4(dt=0.1)], ids=str)
def test_nan_from_the_start(solver):
    bad = double([1.0], [math.nan])
    with pytest.raises(ti.ConvergenceError, match=r"non_finite: sample 1 \(reached t = 0 in") as caught:
        ti.odeint(lambda t, y, bad: bad * y, torch.ones(2, 1).double(), double(0, 1), bad, solver=solver)
    solution = caught.value.solution
    assert solution.status.tolist() == [0, int(ti.Status.NON_FINITE)]
    assert solution.value[:, 1].flatten().tolist() == [1.0, 1.0]
    assert solution.value[-1, 0].item() == pytest.approx(math.e, rel=1e-4)


@pytest.mark.parametrize("invalid", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("solver", "step"), [(ti.Tsit5(), "however small the step"), (ti.RK4(dt=0.01), "on a step of the size")], ids=str
)
def test_nan_or_infinity_midway(solver, step, invalid):
    def field(t, y):
        return torch.where(t > 0.505, invalid, -y)

    text = rf"non_finite: sample 0 \(reached t = 0\.5.*\n.*NaN or infinity {step}"
    solution = fails(field, ONE, double(0, 0.25, 0.5, 1), text, solver=solver)
    assert solution.report.reached.item() == pytest.approx(0.505, abs=0.011)
    assert torch.allclose(solution.value[:3].flatten(), torch.exp(-double(0, 0.25, 0.5)), rtol=1e-5)


def test_a_blow_up_in_finite_time():
    ts = double(0, 0.5, 0.9, 2)
    solution = fails(lambda t, y: y**2, ONE, ts, r"odeint: 1 of 1 samples did not reach the last time")
    assert solution.report.reached.item() == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(solution.value[:3].flatten(), 1 / (1 - ts[:3]), rtol=1e-3)
    assert solution.status.item() in (ti.Status.STEP_TOO_SMALL, ti.Status.NON_FINITE)
    benign = ti.odeint(lambda t, y: y**2, double([1.0], [-1.0]), ts, on_failure="ignore")
    assert benign.status[1].item() == 0
    assert benign.value[-1, 1].item() == pytest.approx(-1 / 3, rel=1e-4)


def test_stiffness_under_an_explicit_solver():
    text = r"max_steps: sample 0 \(reached t = .* in 300 steps\)(.|\n)*stiff field under an explicit solver"
    solution = fails(
        lambda t, y: -1e5 * (y - torch.cos(t)), ONE, double(0, 1e-3, 1), text, solver=ti.Tsit5(max_steps=300)
    )
    assert solution.value[1].item() == pytest.approx(1.0, abs=1e-4)


def test_a_step_that_would_be_too_small():
    jump = lambda t, y: torch.where(t > 0.5, 1e3, -1.0) * y  # noqa: E731
    solution = fails(
        jump, ONE, double(0, 0.25, 1), r"step_too_small: sample 0(.|\n)*dt_min may be too large",
        solver=ti.Tsit5(dt_min=0.05),
    )  # fmt: skip
    assert 0.25 < solution.report.reached.item() <= 0.5
    assert solution.value[1].item() == pytest.approx(math.exp(-0.25), rel=1e-5)


@pytest.mark.parametrize(
    ("field", "error", "text"),
    [
        (lambda t, y: y[:, :1], ValueError, r"returned shape \(2, 1\), expected the state's shape \(2, 3\)"),
        (lambda t, y: y.double(), TypeError, r"returned torch.float64, expected the state's torch.float32"),
        (lambda t, y: (y, y), ValueError, r"returned the structure"),
        (lambda t, y: 1.0, TypeError, r"returned a float, expected a tensor"),
        (lambda t, y: y.add_(1), ValueError, r"writes into its state"),
        (3, TypeError, r"f: got a int, expected a callable f\(t, y, \*args\)"),
    ],
)
def test_fields(field, error, text):
    with pytest.raises(error, match=text):
        ti.odeint(field, torch.ones(2, 3), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("start", "error", "text"),
    [
        (torch.ones(2, 3, dtype=torch.int64), TypeError, r"the state is torch.int64, expected a floating or complex"),
        (torch.tensor(1.0), ValueError, r"the state is a scalar, expected dimension 0 to be the batch"),
        ({"a": torch.ones(2, 1), "b": torch.ones(3, 1)}, ValueError, r"expected one batch size"),
        ([1.0], TypeError, r"the state holds a float, expected tensors only"),
    ],
)
def test_states(start, error, text):
    with pytest.raises(error, match=text):
        ti.odeint(decay, start, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"solver": "tsit5"}, TypeError, r"solver: got 'tsit5', expected an instance of PathSolver; try Tsit5\(\)"),
        ({"solver": ti.Tsit5}, TypeError, r"solver: got <class .*; try Tsit5\(\)"),
        ({"adjoint": None}, TypeError, r"adjoint: got None, expected an instance of PathAdjoint"),
        ({"stepping": "each"}, ValueError, r"stepping: got 'each', expected 'per-sample' or 'joint'"),
        ({"on_failure": "log"}, ValueError, r"on_failure: got 'log'"),
        ({"method": "dopri5"}, TypeError, r"odeint\(method='dopri5'\): no such option"),
        ({"batched_args": (1,)}, ValueError, r"batched_args: got \(1,\)"),
    ],
)
def test_options(options, error, text):
    with pytest.raises(error, match=text):
        ti.odeint(decay, ONE, double(0, 1), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_states(dtype):
    start, ts, seen = torch.ones(2, 3, dtype=dtype), torch.tensor([0.0, 1.0]), set()

    def field(t, y):
        seen.add(y.dtype)
        return -y

    eps = torch.finfo(dtype).eps
    with pytest.raises(ValueError, match=rf"below the rounding of the state, {dtype}, which is .*y0.float\(\)"):
        ti.odeint(field, start, ts)
    solution = ti.odeint(field, start.requires_grad_(), ts, solver=ti.Tsit5(rtol=4 * eps, atol=4 * eps))
    assert seen == {dtype}
    assert solution.value.dtype == dtype
    assert solution.value[-1].float().sub(math.exp(-1)).abs().max() < 8 * eps
    solution.value[-1].sum().backward()
    assert start.grad.dtype == dtype
    assert start.grad.float().sub(math.exp(-1)).abs().max() < 8 * eps


def test_tolerances_below_the_rounding():
    text = r"Tsit5\(rtol=1e-10, atol=1e-12\): got tolerances below the rounding of the state, torch.float32.*y0.double"
    with pytest.raises(ValueError, match=text):
        ti.odeint(decay, ONE.float(), double(0, 1), solver=ti.Tsit5(rtol=1e-10, atol=1e-12))
    assert ti.odeint(decay, ONE.float(), double(0, 1), solver=ti.Tsit5(rtol=1e-10, atol=1e-4)).report.converged
    assert ti.odeint(decay, ONE, double(0, 1), solver=ti.Tsit5(rtol=1e-10, atol=1e-12)).report.converged


def test_complex_and_nested_states_with_gradients():
    start = {"z": torch.ones(2, 1, dtype=torch.complex128), "x": torch.ones(2, 2, 3, dtype=torch.float64)}
    w, ts = double(2.0)[0].requires_grad_(), double(0, 0.5, 1.0)
    leaves = [start["z"].requires_grad_(), start["x"].requires_grad_()]
    solver = ti.Tsit5(rtol=1e-10, atol=1e-12)
    value = ti.odeint(lambda t, y, w: {"z": 1j * w * y["z"], "x": -w * y["x"]}, start, ts, w, solver=solver).value
    assert torch.allclose(value["z"].squeeze(2), torch.exp(2j * ts).unsqueeze(1).expand(3, 2), atol=1e-9)
    assert torch.allclose(value["x"][2], math.exp(-2) * torch.ones(2, 2, 3).double(), atol=1e-9)
    by_z, by_x, by_w = torch.autograd.grad(value["z"][2].imag.sum() + value["x"][2].sum(), [*leaves, w])
    assert by_w.item() == pytest.approx(2 * math.cos(2) - 12 * math.exp(-2), rel=1e-8)
    assert torch.allclose(by_x, torch.full_like(by_x, math.exp(-2)), atol=1e-9)
    # z(1) = e^{2i} z(0): the imaginary part has the gradient i e^{-2i} in torch's convention
    assert torch.allclose(by_z, torch.full_like(by_z, 1j) * torch.exp(double(2.0) * -1j), atol=1e-8)


def test_an_event_or_a_path_needs_a_record_of_the_steps():
    backsolve = getattr(ti.ode, "Backsolve", None)
    other = ti.ode.PathAdjoint() if backsolve is None else backsolve()
    with pytest.raises(ValueError, match=r"expected Checkpointed\(\) or Direct\(\) with event"):
        ti.odeint(decay, ONE, double(0, 1), adjoint=other, dense=True)


def test_a_failure_before_the_event_keeps_the_path_so_far():
    event = ti.ode.Event(lambda t, y: y[:, 0] - 1e30)
    with pytest.raises(ti.ConvergenceError) as caught:
        ti.odeint(lambda t, y: y**2, ONE, double(0, 0.5, 2), event=event, dense=True)
    solution = caught.value.solution
    assert solution.value[1].item() == pytest.approx(2.0, rel=1e-4)
    assert solution.event_time.isnan().all()
    assert solution.path(0.75).item() == pytest.approx(4.0, rel=1e-3)
