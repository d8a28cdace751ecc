"""Steps that are made again for a gradient lead where they led, or the report says that they do not."""

import pytest
import torch

import torchimplicit as ti

D = torch.float64
TS = torch.tensor([0.0, 0.4, 1.0], dtype=D)


def solved(field, ts=TS, **options):
    y0 = torch.tensor([[1.0, 0.5], [2.0, -1.0], [0.3, 0.2]], dtype=D, requires_grad=True)
    solution = ti.odeint(field, y0, ts, on_failure="ignore", **options)
    solution.value.sum().backward()
    return solution


def dropping(t, y):
    return -torch.nn.functional.dropout(y, 0.5)


ONE_STEP = torch.tensor([0.0, 0.1], dtype=D)
ADJOINTS = [ti.Checkpointed(2, graphs=0), ti.Checkpointed(graphs=0), ti.Direct()]
SOLVERS = [ti.RK4(dt=0.1), ti.RK4(dt=1e-3), ti.Tsit5(rtol=1e-3, atol=1e-3, dt_min=1e-3)]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("ts", [TS, ONE_STEP], ids=["steps", "one"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_field_that_draws_is_told(solver, ts, adjoint):
    torch.manual_seed(0)
    solution = solved(dropping, ts, solver=solver, adjoint=adjoint)
    assert solution.backward is not None
    drifted = solution.backward.status == ti.Status.DRIFTED
    assert bool(drifted.any())
    assert "drawn before" in solution.backward.remedies[ti.Status.DRIFTED]


@pytest.mark.parametrize("graphs", [0, 1])  # bytes, into which no step's graph goes
def test_a_field_that_draws_in_the_only_step_is_told_where_graphs_have_no_room(graphs):
    torch.manual_seed(0)
    solver = ti.Tsit5(rtol=1e3, atol=1e3, dt0=1.0)
    solution = solved(dropping, ONE_STEP, solver=solver, adjoint=ti.Checkpointed(graphs=graphs))
    assert int(solution.report.accepted.max()) == 1
    assert solution.report.kept == 0
    assert solution.backward is not None
    assert bool((solution.backward.status == ti.Status.DRIFTED).any())


def test_the_failure_is_raised():
    torch.manual_seed(0)
    y0 = torch.ones(2, 3, dtype=D, requires_grad=True)
    value = ti.odeint(dropping, y0, TS, solver=ti.RK4(dt=0.1), adjoint=ti.Checkpointed(graphs=0)).value
    with pytest.raises(ti.ConvergenceError, match=r"made again leads elsewhere.*random numbers drawn before"):
        value.sum().backward()


STEADY = [ti.Tsit5(), ti.Tsit5(rtol=1e-2, atol=1e-2), ti.RK4(dt=0.05), ti.Kvaerno3(rtol=1e-2, atol=1e-2), ti.ESDIRK54()]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("solver", STEADY, ids=repr)
@pytest.mark.parametrize("rate", [0.0, 1e-8, 1.0, 30.0])
def test_a_field_that_is_the_same_is_not(solver, adjoint, rate):
    """Neither where it hardly moves, nor where it is stiff, nor where samples stop early."""
    for ts in (TS, ONE_STEP, TS.to(torch.float32)):
        found = solved(lambda t, y: rate * (torch.cos(t) - y), ts, solver=solver, adjoint=adjoint)
        assert found.backward is None


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=repr)
@pytest.mark.parametrize("ts", [TS, ONE_STEP], ids=["steps", "one"])
def test_kernels_are_looked_at_too(monkeypatch, ts, adjoint):
    monkeypatch.setattr("torchimplicit.core.compiled.kernel.BACKEND", "aot_eager")
    torch.manual_seed(0)
    solver = ti.Tsit5(rtol=1e-1, atol=1e-1, dt_min=1e-2)
    drawn = solved(dropping, ts, solver=solver, adjoint=adjoint, compile=True)
    assert bool((drawn.backward.status == ti.Status.DRIFTED).any())
    assert solved(lambda t, y: torch.cos(t) - y, ts, solver=solver, adjoint=adjoint, compile=True).backward is None


def test_one_step_of_samples_with_times_of_their_own():
    ts = torch.tensor([[0.0, 0.0, 0.1], [0.1, 0.2, 0.3]], dtype=D)
    torch.manual_seed(0)
    for field, told in ((dropping, True), (lambda t, y: -y, False)):
        found = solved(field, ts, solver=ti.RK4(dt=0.3), batched_args=(), adjoint=ti.Checkpointed(graphs=0))
        assert (found.backward is not None) is told


def test_samples_that_meet_events_stop_where_they_did():
    solution = solved(
        lambda t, y: -y, event=ti.Event(lambda t, y: y[:, 0] - 0.8), adjoint=ti.Checkpointed(), batched_args=()
    )
    assert solution.report.fired.tolist() == [True, True, False]
    assert solution.backward is None
