"""Linear-quadratic control: the recursion, its bounds, its derivatives, and samples that have no plan."""

import copy
import importlib
import pickle

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit import Status
from torchimplicit.optim import lqr, qp

D = torch.float64


def problem(batch=3, horizon=5, nx=3, nu=2, seed=0):
    """Everything varies: costs and dynamics in time, from sample to sample, or not at all."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=D)

    def definite(*shape):
        root = draw(*shape, shape[-1])
        return root @ root.mT + torch.eye(shape[-1], dtype=D)

    return {
        "A": 0.6 * draw(horizon, nx, nx), "B": draw(batch, 1, nx, nu), "Q": definite(nx), "R": definite(batch, 1, nu),
        "x0": draw(batch, nx), "c": draw(nx), "S": 0.1 * draw(nx, nu), "q": draw(batch, horizon, nx),
        "r": draw(horizon, nu), "P": definite(batch, nx), "p": draw(nx),
    }  # fmt: skip


BOUNDS = {"lower": -0.4, "upper": torch.tensor([0.3, 0.6], dtype=D), "state_upper": 1.0, "state_lower": -3.0}


def expanded(A, B, Q, R, x0, c, S, q, r, P, p, horizon=5):
    """All of a problem in full shape, time and batch first."""
    batch, nx, nu = len(x0), B.shape[-2], B.shape[-1]
    matrices = [m.expand(batch, horizon, *m.shape[-2:]) for m in (A, B, Q, R, S)]
    vectors = [v.expand(batch, horizon, n) for v, n in ((c, nx), (q, nx), (r, nu))]
    return *matrices, *vectors, P.expand(batch, nx, nx), p.expand(batch, nx)


def times(matrix, vector):
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def optimality(plan, lower, upper, state_lower, state_upper, **given):
    """The largest violation of a condition of optimality, from the definitions alone."""
    A, B, Q, R, S, c, q, r, P, p = expanded(**given)
    x, u, push = plan.states, plan.value, plan.costates
    parts = [x[:, 1:] - times(A, x[:, :-1]) - times(B, u) - c, x[:, 0] - given["x0"]]
    parts.append(times(R, u) + times(S.mT, x[:, :-1]) + r + times(B.mT, push) + plan.control_duals)
    by_state = times(Q, x[:, :-1]) + times(S, u) + q + times(A.mT, push)
    parts.append(by_state[:, 1:] + plan.state_duals[:, :-1] - push[:, :-1])
    parts.append(times(P, x[:, -1]) + p + plan.state_duals[:, -1] - push[:, -1])
    for values, duals, low, high in (
        (u, plan.control_duals, lower, upper),
        (x[:, 1:], plan.state_duals, state_lower, state_upper),
    ):
        parts += [(values - high).clamp_min(0), (low - values).clamp_min(0)]
        parts += [duals.clamp_min(0) * (high - values), duals.clamp_max(0) * (values - low)]
    return max(part.abs().max().item() for part in parts)


def test_without_bounds_it_is_the_solution_of_one_linear_system():
    given = problem()
    A, B, Q, R, S, c, q, r, P, p = expanded(**given)
    plan = lqr(**given)
    batch, horizon, nx, nu = B.shape
    n = nx + nu
    for b in range(batch):  # unknowns x_0, u_0, ..., x_T; equations for x_0 and the dynamics
        H, g = torch.zeros(horizon * n + nx, horizon * n + nx, dtype=D), torch.zeros(horizon * n + nx, dtype=D)
        E, e = torch.zeros((horizon + 1) * nx, len(g), dtype=D), torch.zeros((horizon + 1) * nx, dtype=D)
        E[:nx, :nx], e[:nx] = torch.eye(nx, dtype=D), given["x0"][b]
        for t in range(horizon):
            at, row = slice(t * n, (t + 1) * n), slice((t + 1) * nx, (t + 2) * nx)
            H[at, at] = torch.cat((torch.cat((Q[b, t], S[b, t]), 1), torch.cat((S[b, t].T, R[b, t]), 1)))
            g[at] = torch.cat((q[b, t], r[b, t]))
            E[row, at], e[row] = -torch.cat((A[b, t], B[b, t]), 1), c[b, t]
            E[row, (t + 1) * n : (t + 1) * n + nx] = torch.eye(nx, dtype=D)
        H[-nx:, -nx:], g[-nx:] = P[b], p[b]
        system = torch.cat((torch.cat((H, E.T), 1), torch.cat((E, torch.zeros(len(e), len(e), dtype=D)), 1)))
        z = torch.linalg.solve(system, torch.cat((-g, e)))[: len(g)]
        controls = torch.stack([z[t * n + nx : (t + 1) * n] for t in range(horizon)])
        torch.testing.assert_close(plan.value[b], controls, rtol=0, atol=1e-11)
        torch.testing.assert_close(plan.cost[b], z @ (0.5 * H @ z + g), rtol=1e-11, atol=1e-11)
    assert plan.control_duals is None
    assert plan.state_duals is None
    assert plan.report.converged


def test_a_long_horizon_has_the_gain_of_the_algebraic_riccati_equation():
    linalg = pytest.importorskip("scipy.linalg")
    A = torch.tensor([[1.1, 0.2], [0.0, 0.95]], dtype=D)
    B = torch.tensor([[0.0], [0.5]], dtype=D)
    Q, R = torch.diag(torch.tensor([1.0, 0.1], dtype=D)), torch.tensor([[0.3]], dtype=D)
    P = torch.from_numpy(linalg.solve_discrete_are(A.numpy(), B.numpy(), Q.numpy(), R.numpy()))
    gain = torch.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    x0 = torch.eye(2, dtype=D)
    plan = lqr(A, B, Q, R, x0, 150)
    torch.testing.assert_close(plan.value[:, 0], -x0 @ gain.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(2 * plan.cost, torch.diagonal(P), rtol=1e-10, atol=1e-10)


def test_with_bounds_the_conditions_of_optimality_hold():
    given = problem()
    plan = lqr(**given, **BOUNDS)
    assert optimality(plan, **BOUNDS, **given) < 1e-10
    assert (plan.control_duals != 0).any()
    assert (plan.state_duals != 0).any()


def test_with_bounds_it_is_the_dense_program_in_states_and_controls():
    given = problem()
    A, B, Q, R, S, c, q, r, P, p = expanded(**given)
    plan = lqr(**given, **BOUNDS)
    batch, horizon, nx, nu = B.shape
    n = nx + nu
    H, g = torch.zeros(batch, horizon * n, horizon * n, dtype=D), torch.zeros(batch, horizon * n, dtype=D)
    E, e = torch.zeros(batch, horizon * nx, horizon * n, dtype=D), torch.zeros(batch, horizon * nx, dtype=D)
    x0 = given["x0"]
    for t in range(horizon):  # unknowns u_0, x_1, u_1, ..., x_T
        at, row = t * n, slice(t * nx, (t + 1) * nx)
        H[:, at : at + nu, at : at + nu], g[:, at : at + nu] = R[:, t], r[:, t]
        E[:, row, at : at + nu], E[:, row, at + nu : at + n], e[:, row] = -B[:, t], torch.eye(nx, dtype=D), c[:, t]
        last = t == horizon - 1
        H[:, at + nu : at + n, at + nu : at + n] = P if last else Q[:, t + 1]
        g[:, at + nu : at + n] = p if last else q[:, t + 1]
        if t:
            H[:, at - nx : at, at : at + nu], H[:, at : at + nu, at - nx : at] = S[:, t], S[:, t].mT
            E[:, row, at - nx : at] = -A[:, t]
    g[:, :nu] += times(S[:, 0].mT, x0)
    e[:, :nx] += times(A[:, 0], x0)
    low = torch.cat((torch.full((nu,), -0.4, dtype=D), torch.full((nx,), -3.0, dtype=D))).repeat(horizon)
    high = torch.cat((BOUNDS["upper"], torch.full((nx,), 1.0, dtype=D))).repeat(horizon)
    dense = qp(H, g, A=E, b=e, l=low, u=high).value.view(batch, horizon, n)
    torch.testing.assert_close(plan.value, dense[..., :nu], rtol=0, atol=1e-10)
    torch.testing.assert_close(plan.states[:, 1:], dense[..., nu:], rtol=0, atol=1e-10)


def test_rounding_does_not_grow_along_an_unstable_system():
    A = torch.tensor([[1.3, 0.4], [0.0, 1.2]], dtype=D)
    given = {
        "A": A, "B": torch.tensor([[0.0], [1.0]], dtype=D), "Q": torch.eye(2, dtype=D),
        "R": torch.eye(1, dtype=D), "x0": torch.tensor([[1.0, -0.5]], dtype=D), "c": torch.zeros(2, dtype=D),
        "S": torch.zeros(2, 1, dtype=D), "q": torch.zeros(2, dtype=D), "r": torch.zeros(1, dtype=D),
        "P": torch.eye(2, dtype=D), "p": torch.zeros(2, dtype=D),
    }  # fmt: skip
    bounds = {"lower": -0.3, "upper": 0.3, "state_lower": -2.0, "state_upper": 2.0}
    plan = lqr(**given, **bounds, horizon=80)
    assert (plan.control_duals != 0).any()
    assert optimality(plan, **bounds, **given, horizon=80) < 1e-9  # open loop, the states would round to 1.3**80 eps


@settings(max_examples=15)
@drawn(st.floats(0, 8), st.sampled_from([torch.float32, D]))
def test_a_control_at_its_bound_is_the_bound_to_the_bit(power, dtype):
    given = {name: value.to(dtype) for name, value in problem().items()}
    given["x0"] = given["x0"] * 10**power  # a plan without bounds were as far away, and its rounding as large
    high = torch.tensor([0.3, 0.6], dtype=dtype)
    plan = lqr(**given, lower=-0.4, upper=high)
    above, below = plan.control_duals > 0, plan.control_duals < 0
    assert (above | below).any()
    assert torch.equal(plan.value[above], high.expand_as(plan.value)[above])
    assert (plan.value[below] == torch.tensor(-0.4, dtype=dtype)).all()
    assert (plan.value <= high).all()
    assert (plan.value >= torch.tensor(-0.4, dtype=dtype)).all()


def test_a_control_at_its_bound_goes_with_the_bound_alone():
    given = problem()
    high = torch.tensor([0.3, 0.6], dtype=D).requires_grad_()
    leaves = [value.requires_grad_() for value in given.values()]
    plan = lqr(**given, lower=-0.4, upper=high)
    above = plan.control_duals > 0
    by_high, *others = torch.autograd.grad(plan.value[above].sum(), (high, *leaves), allow_unused=True)
    torch.testing.assert_close(by_high, above.sum((0, 1)).double())
    assert all(other is None or not bool(other.any()) for other in others)


def test_multipliers_are_what_a_push_and_a_wider_bound_are_worth():
    given = problem()
    push = torch.zeros(3, 5, 3, dtype=D, requires_grad=True)
    high = torch.full((3, 5, 2), 0.3, dtype=D, requires_grad=True)
    top = torch.full((3, 5, 3), 0.8, dtype=D, requires_grad=True)
    plan = lqr(**given | {"c": given["c"] + push}, upper=high, state_upper=top)
    by_push, by_high, by_top = torch.autograd.grad(plan.cost.sum(), (push, high, top))
    torch.testing.assert_close(plan.costates, by_push, rtol=0, atol=1e-10)
    torch.testing.assert_close(plan.control_duals, -by_high, rtol=0, atol=1e-10)
    torch.testing.assert_close(plan.state_duals, -by_top, rtol=0, atol=1e-10)
    assert (plan.control_duals > 0.01).any()
    assert (plan.state_duals > 0.01).any()


def everything(*values, bounded):
    names = ["A", "B", "Q", "R", "x0", "c", "S", "q", "r", "P", "p"]
    given = dict(zip(names, values, strict=False))
    for name in ("Q", "R", "P"):
        given[name] = 0.5 * (given[name] + given[name].mT)
    if bounded:
        given |= dict(zip(("upper", "state_upper"), values[len(names) :], strict=True))
    plan = lqr(**given)
    parts = (plan.value, plan.states, plan.cost, plan.costates, plan.control_duals, plan.state_duals)
    return tuple(part for part in parts if part is not None)


@pytest.mark.parametrize("bounded", [False, True])
def test_derivatives_by_everything_of_first_and_second_order(bounded):
    values = list(problem(batch=2, horizon=3).values())
    if bounded:
        values += [torch.tensor([0.1, -0.1], dtype=D), torch.full((3,), 0.4, dtype=D)]
        plan = lqr(**problem(batch=2, horizon=3), upper=values[-2], state_upper=values[-1])
        assert (plan.control_duals != 0).any()
        assert (plan.state_duals != 0).any()
    inputs = [value.clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(lambda *v: everything(*v, bounded=bounded), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *v: everything(*v, bounded=bounded), inputs, fast_mode=True)


def test_function_transforms():
    given = problem()
    x0 = given.pop("x0")

    def first(x0):
        return lqr(x0=x0, **given, **BOUNDS).value[:, 0]

    by_state = torch.func.jacrev(first)(x0)
    _, along = torch.func.jvp(first, (x0,), (torch.ones_like(x0),))
    torch.testing.assert_close(by_state.sum((2, 3)), along, rtol=1e-9, atol=1e-9)
    with pytest.raises(NotImplementedError, match="batch"):
        torch.vmap(first)(x0.unsqueeze(1))
    with torch.inference_mode():
        torch.testing.assert_close(lqr(x0=x0, **given, **BOUNDS).value[:, 0], first(x0))


def test_a_sample_whose_bounds_cannot_be_met_is_flagged_alone():
    A, B = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=D, requires_grad=True), torch.tensor([[0.0], [0.1]], dtype=D)
    Q, R = torch.eye(2, dtype=D), torch.eye(1, dtype=D)
    bounds = {"lower": -1.0, "upper": 1.0, "state_upper": torch.tensor([1.0, torch.inf], dtype=D)}

    def solve(place):
        x0 = torch.tensor([[0.9, 0.3], place, [-1.0, 0.2]], dtype=D)
        plan = lqr(A, B, Q, R, x0, 8, **bounds, on_failure="ignore")
        (grad,) = torch.autograd.grad(plan.value[[0, 2]].sum() + plan.cost[[0, 2]].sum(), A, retain_graph=True)
        return plan, grad

    (plan, grad), (benign, expected) = solve([0.9, 3.0]), solve([0.2, 0.1])
    assert plan.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    torch.testing.assert_close(plan.value[[0, 2]], benign.value[[0, 2]], rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-11)
    (everybody,) = torch.autograd.grad(plan.value.sum() + plan.cost.sum() + plan.states.sum(), A)
    (healthy,) = torch.autograd.grad(
        (benign.value.sum((1, 2)) + benign.cost + benign.states.sum((1, 2)))[[0, 2]].sum(), A
    )
    torch.testing.assert_close(everybody, healthy, rtol=0, atol=1e-11)
    with pytest.raises(ti.ConvergenceError, match=r"sample 1.*\n.*looser state bounds") as caught:
        lqr(A, B, Q, R, torch.tensor([[0.9, 0.3], [0.9, 3.0]], dtype=D), 8, **bounds)
    assert caught.value.solution.value.shape == (2, 8, 1)


@pytest.mark.parametrize("bounds", [{}, {"lower": -0.5, "upper": 0.5}])
@pytest.mark.parametrize("name", ["x0", "q"])
def test_a_sample_with_nan_touches_no_other(name, bounds):
    given = problem()
    given["A"] = given["A"].requires_grad_()

    def solve(value):
        nonfinite = given | {name: given[name].clone()}
        nonfinite[name][1, 0] = value
        plan = lqr(**nonfinite, **bounds, on_failure="ignore")
        loss = plan.value.sum() + plan.states.sum() + plan.cost.sum()
        parts = torch.stack([plan.value.sum((1, 2)), plan.states.sum((1, 2)), plan.cost])[:, [0, 2]].sum()
        return plan, torch.autograd.grad(loss if value != value else parts, given["A"])[0]

    (plan, grad), (benign, expected) = solve(torch.nan), solve(0.0)
    assert plan.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert torch.equal(plan.value[[0, 2]], benign.value[[0, 2]])
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-10)


def test_a_sample_without_a_minimum_is_flagged_alone():
    given = problem()
    R = given["R"].clone()
    R[1] = -100.0 * torch.eye(2, dtype=D)
    plan = lqr(**given | {"R": R}, on_failure="ignore")
    assert plan.status.tolist() == [Status.CONVERGED, Status.NONCONVEX, Status.CONVERGED]
    torch.testing.assert_close(plan.value[[0, 2]], lqr(**given).value[[0, 2]], rtol=0, atol=1e-12)
    bounded = lqr(**given | {"R": R}, lower=-1.0, upper=1.0, on_failure="ignore")
    assert bounded.status.tolist() == [Status.CONVERGED, Status.NONCONVEX, Status.CONVERGED]
    with pytest.raises(ti.ConvergenceError, match="positive definite R"):
        lqr(**given | {"R": R})


def test_bounds_make_up_for_a_cost_that_is_not_strictly_convex():
    one, zero = torch.ones(1, 1, dtype=D), torch.zeros(1, 1, dtype=D)
    x0 = torch.tensor([[5.0], [-1.0]], dtype=D)
    R = torch.stack((zero, one)).unsqueeze(1)  # controls cost nothing in the first sample
    plan = lqr(one, one, zero, R, x0, 3, P=one, lower=-1.0, upper=1.0)
    torch.testing.assert_close(plan.value[0, :, 0], torch.full((3,), -1.0, dtype=D))
    torch.testing.assert_close(plan.value[1, :, 0], torch.full((3,), 0.25, dtype=D))  # u = -(x + 3u)


def test_dtypes_devices_and_copies():
    given = {name: value.float() for name, value in problem().items()}
    plan = lqr(**given, lower=-0.4, upper=0.4)
    assert {part.dtype for part in (plan.value, plan.states, plan.cost, plan.costates)} == {torch.float32}
    torch.testing.assert_close(plan.value.double(), lqr(**problem(), lower=-0.4, upper=0.4).value, rtol=0, atol=1e-5)
    assert plan.controls is plan.value
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert torch.equal(other.states, plan.states)


I2, B2, ONE, X0 = torch.eye(2), torch.ones(2, 1), torch.eye(1), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x0": torch.ones(2)}, ValueError, "unsqueeze"),
        ({"x0": [1.0, 2.0]}, TypeError, "x0: got list"),
        ({"horizon": None}, ValueError, "horizon=T"),
        ({"horizon": 0}, ValueError, "integer >= 1"),
        ({"A": torch.eye(3)}, ValueError, r"A: got shape \(3, 3\), expected one that broadcasts to \(3, 4, 2, 2\)"),
        ({"A": torch.ones(3, 2, 2)}, ValueError, r"unsqueeze\(1\)"),
        ({"A": torch.ones(2)}, ValueError, "A: got shape"),
        ({"B": None}, ValueError, "B: got a NoneType"),
        ({"Q": torch.eye(2).double()}, TypeError, "Q: got torch.float64"),
        (
            {"Q": torch.tensor([[1.0, 1.0], [0.0, 1.0]])},
            ValueError,
            r"Q: got a matrix that is not symmetric for sample 0",
        ),
        ({"P": torch.tensor([[1.0, 1.0], [0.0, 1.0]])}, ValueError, "P: got a matrix that is not symmetric"),
        ({"q": torch.ones(5, 2)}, ValueError, "q: got shape"),
        ({"c": 1.0}, TypeError, "c: got a float"),
        ({"lower": 1.0, "upper": -1.0}, ValueError, "1 > -1 for sample 0 at time 0"),
        ({"state_lower": torch.tensor([0.0, 2.0]), "state_upper": 1.0}, ValueError, "entry 1; expected state_lower"),
        ({"upper": torch.ones(3)}, ValueError, "upper: got shape"),
        ({"on_failure": "explode"}, ValueError, "'raise', 'warn' or 'ignore'"),
    ],
)
def test_bad_input(change, error, message):
    given = {"A": I2, "B": B2, "Q": I2, "R": ONE, "x0": X0, "horizon": 4}
    with pytest.raises(error, match=message):
        lqr(**given | change)


def test_a_plan_whose_slope_is_not_zero_is_not_vouched_for(monkeypatch):
    control = importlib.import_module("torchimplicit.optim.control.lqr")
    eye = torch.eye(1, dtype=torch.float64)
    arguments = (eye, eye, eye, eye, torch.ones(2, 1, dtype=torch.float64), 4)
    assert control.lqr(*arguments).report.converged
    monkeypatch.setattr(control, "ACCURATE", -1.0)
    assert control.lqr(*arguments, on_failure="ignore").status.tolist() == [ti.Status.STAGNATED] * 2
