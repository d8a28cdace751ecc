"""Nonlinear control: minima within bounds, their exact derivatives, and samples that have no plan."""

import math

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import Status
from torchimplicit.optim import BoxDDP, ilqr, lqr, qp
from torchimplicit.optim.control.box import minimise

D = torch.float64
TIGHT = BoxDDP(rtol=1e-12, atol=1e-13)
STEP = 0.1


def pendulum(x, u, p):
    """Angle from the top; gravity `p[0]`, push `p[1]`."""
    speed = x[:, 1] + STEP * (p[0] * x[:, 0].sin() + p[1] * u[:, 0])
    return torch.stack((x[:, 0] + STEP * speed, speed), 1)


def effort(x, u, p):
    return STEP * (1 - x[:, 0].cos() + 0.1 * x[:, 1] ** 2 + p[2] * u[:, 0] ** 2)


def rest(x, p):
    return p[3] * (1 - x[:, 0].cos()) + x[:, 1] ** 2


P = torch.tensor([9.81, 1.0, 0.02, 5.0], dtype=D)
X0 = torch.tensor([[2.5, 0.0], [0.4, -0.5], [-1.0, 1.0]], dtype=D)


def swing(x0=X0, p=P, lower=-4.0, upper=4.0, horizon=10, **options):
    return ilqr(
        pendulum, effort, x0, horizon, lower, upper, **{"final_cost": rest, "args": (p,), "solver": TIGHT} | options
    )


def linear(A, B, Q, R, P):
    """Functions of a linear-quadratic problem."""

    def dynamics(x, u):
        return x @ A.T + u @ B.T

    def cost(x, u):
        return 0.5 * ((x @ Q) * x).sum(1) + 0.5 * ((u @ R) * u).sum(1)

    return dynamics, cost, lambda x: 0.5 * ((x @ P) * x).sum(1)


@pytest.mark.parametrize("bounds", [(None, None), (-0.3, 0.4)])
def test_linear_systems_have_the_plan_of_lqr(bounds):
    generator = torch.Generator().manual_seed(0)
    A, B = (0.7 * torch.randn(3, width, generator=generator, dtype=D) for width in (3, 2))
    Q, R, P = torch.eye(3, dtype=D), 0.3 * torch.eye(2, dtype=D), 2 * torch.eye(3, dtype=D)
    x0 = torch.randn(4, 3, generator=generator, dtype=D)
    dynamics, cost, final = linear(A, B, Q, R, P)
    plan = ilqr(dynamics, cost, x0, 12, *bounds, final_cost=final, controls=2, solver=TIGHT)
    exact = lqr(A, B, Q, R, x0, 12, P=P, lower=bounds[0], upper=bounds[1])
    for name in ("value", "states", "cost", "costates"):
        torch.testing.assert_close(getattr(plan, name), getattr(exact, name), rtol=0, atol=1e-10)
    if bounds[0] is None:
        assert plan.steps.max() == 1
        assert (plan.control_duals == 0).all()
    else:
        assert (exact.control_duals != 0).any()
        torch.testing.assert_close(plan.control_duals, exact.control_duals, rtol=0, atol=1e-9)


def test_no_other_plan_within_the_bounds_is_cheaper():
    plan = swing()
    assert (plan.control_duals != 0).any()
    assert (plan.control_duals == 0).any()
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 1e-1):
        u = plan.value + size * torch.randn(plan.value.shape, generator=generator, dtype=D)
        u, x, cost = u.clamp(-4, 4), X0, 0.0
        for t in range(10):
            cost, x = cost + effort(x, u[:, t], P), pendulum(x, u[:, t], P)
        assert (cost + rest(x, P) > plan.cost).all()


def test_states_and_cost_belong_to_the_controls():
    plan = swing()
    x = [X0]
    for t in range(10):
        x.append(pendulum(x[-1], plan.value[:, t], P))
    torch.testing.assert_close(plan.states, torch.stack(x, 1))
    cost = sum(effort(plan.states[:, t], plan.value[:, t], P) for t in range(10)) + rest(plan.states[:, -1], P)
    torch.testing.assert_close(plan.cost, cost)


def test_derivatives_by_everything_of_first_and_second_order():
    lower = torch.full((1,), -4.0, dtype=D)
    inputs = [value.clone().requires_grad_() for value in (X0, P, lower, -lower)]

    def function(x0, p, lower, upper):
        plan = swing(x0, p, lower, upper, horizon=6)
        return plan.value, plan.states, plan.cost

    assert {Status.CONVERGED} == set(swing(horizon=6).status.tolist())
    assert (swing(horizon=6).control_duals != 0).any()
    assert (swing(horizon=6).control_duals == 0).any()
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *all_: function(*all_)[0], inputs, fast_mode=True)


def test_gradients_know_that_the_dynamics_bend():
    """By finite differences; those of the last linear-quadratic step, or of a Gauss-Newton Hessian, are others."""
    p = P.clone().requires_grad_()
    plan = swing(p=p, solver=BoxDDP(rtol=1e-12, atol=1e-13, curvature=False, max_steps=500))
    (grad,) = torch.autograd.grad(plan.value[:, 0].sum(), p)
    for i in range(len(P)):
        step = 1e-5 * torch.eye(len(P), dtype=D)[i]
        difference = (swing(p=P + step).value - swing(p=P - step).value)[:, 0].sum() / 2e-5
        torch.testing.assert_close(grad[i], difference, rtol=1e-6, atol=1e-8)


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, x, u):
        return x + 0.3 * self.net(torch.cat((x, u), 1))

    def step(self, x, u):
        return self(x, u)


def quadratic(x, u):
    return x.square().sum(1) + 0.1 * u.square().sum(1)


@pytest.mark.parametrize("bound", [False, True])
def test_parameters_of_modules_get_gradients(bound):
    torch.manual_seed(0)
    model = Learned()
    dynamics = model.step if bound else model

    def loss():
        return ilqr(dynamics, quadratic, X0, 5, -0.5, 0.5, solver=TIGHT).value.square().sum()

    loss().backward()
    weight = model.net[0].weight
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-5 * direction
        above = loss()
        weight -= 2e-5 * direction
        below = loss()
    torch.testing.assert_close((weight.grad * direction).sum(), (above - below) / 2e-5, rtol=1e-6, atol=1e-8)


def test_the_backward_solve_reports():
    p = P.clone().requires_grad_()
    plan = swing(p=p)
    plan.value.sum().backward()
    assert plan.backward.converged
    assert plan.backward.residual.max() < 1e-9


def test_function_transforms():
    def first(x0):
        return swing(x0).value[:, 0]

    by_state = torch.func.jacrev(first)(X0)
    _, along = torch.func.jvp(first, (X0,), (torch.ones_like(X0),))
    torch.testing.assert_close(by_state.sum((2, 3)), along, rtol=1e-7, atol=1e-8)
    with pytest.raises(NotImplementedError, match="dimension 0"):
        torch.vmap(first)(X0.unsqueeze(1))
    with torch.inference_mode():
        assert torch.equal(swing().value, swing().value)


def test_what_did_not_converge_is_reported_and_raises():
    with pytest.raises(ti.ConvergenceError, match="max_steps") as caught:
        swing(solver=BoxDDP(max_steps=2))
    assert caught.value.report.status[1] == Status.MAX_STEPS
    assert caught.value.solution.value.shape == (3, 10, 1)
    with pytest.warns(ti.ConvergenceWarning, match="sample 1"):
        plan = swing(solver=BoxDDP(max_steps=2), on_failure="warn")
    assert plan.report.failed.tolist() == [1]


def test_a_start_that_symmetry_holds_in_place_is_no_minimum():
    hanging = torch.tensor([[math.pi, 0.0], [0.4, 0.0]], dtype=D)
    plan = swing(hanging, horizon=20, on_failure="ignore")
    assert plan.status.tolist() == [Status.SADDLE, Status.CONVERGED]
    assert plan.value[0].abs().max() < 1e-9
    with pytest.raises(ti.ConvergenceError, match="another u0"):
        swing(hanging, horizon=20)
    start = torch.full((2, 20, 1), 0.1, dtype=D)
    assert swing(hanging, horizon=20, u0=start).cost[0] < plan.cost[0] - 0.1


def test_where_a_plan_is_no_minimum_its_derivative_is_not_vouched_for():
    hanging = torch.tensor([[math.pi, 0.0], [0.4, 0.0]], dtype=D, requires_grad=True)
    plan = swing(hanging, horizon=20, on_failure="ignore")
    plan.value.sum().backward()
    assert plan.backward.status.tolist() == [Status.STAGNATED, Status.CONVERGED]


@pytest.mark.parametrize("place", ["x0", "args"])
def test_a_sample_with_nan_touches_no_other(place):
    p = P.clone().requires_grad_()

    def shifted(x, u, p, goal):
        return pendulum(x, u, p) - goal

    def solve(value):
        x0, goal = X0.clone(), torch.zeros(3, 2, dtype=D)
        (x0 if place == "x0" else goal)[1, 0] = value
        options = {"final_cost": lambda x, p, goal: rest(x, p), "args": (p, goal), "solver": TIGHT}
        plan = ilqr(shifted, lambda x, u, p, goal: effort(x, u, p), x0, 8, -4.0, 4.0, **options, on_failure="ignore")
        loss = plan.value.sum((1, 2)) + plan.states.sum((1, 2)) + plan.cost
        return plan, torch.autograd.grad(loss.sum() if value != value else loss[[0, 2]].sum(), p)[0]

    (plan, grad), (benign, expected) = solve(torch.nan), solve(0.1)
    assert plan.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert torch.equal(plan.value[[0, 2]], benign.value[[0, 2]])
    assert torch.equal(plan.steps[[0, 2]], benign.steps[[0, 2]])
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)


def test_all_samples_may_be_lost():
    p = P.clone().requires_grad_()
    plan = swing(torch.full((2, 2), torch.nan, dtype=D), p=p, on_failure="ignore")
    assert (plan.status == Status.NON_FINITE).all()
    (grad,) = torch.autograd.grad(plan.value.sum(), p)
    assert (grad == 0).all()


def test_options_change_the_run():
    exact, plain = swing(), swing(solver=BoxDDP(rtol=1e-12, atol=1e-13, curvature=False, max_steps=500))
    torch.testing.assert_close(exact.cost, plain.cost, rtol=1e-8, atol=1e-8)
    assert plain.steps.sum() > exact.steps.sum()
    loose = swing(solver=BoxDDP(rtol=1e-2, atol=0.0))
    assert loose.steps.sum() < exact.steps.sum()
    assert loose.residual.max() > exact.residual.max()
    again = swing(warm_start=exact)
    assert (again.steps == 0).all()
    assert swing(u0=exact.value + 0.01).steps.sum() < exact.steps.sum()


def test_convergence_is_quadratic():
    """Digits double from step to step; with the cost's curvature alone, each step adds about the same number."""
    near = swing(lower=None, upper=None)
    start = near.value + 0.02
    errors = []
    for steps in range(4):
        plan = swing(
            lower=None, upper=None, u0=start, solver=BoxDDP(rtol=0.0, atol=0.0, max_steps=steps), on_failure="ignore"
        )
        errors.append((plan.value - near.value).abs().max().item())
    assert errors[2] < errors[1] ** 1.5
    assert errors[3] < 1e-9


def test_costs_do_not_matter_by_their_unit():
    scaled = ilqr(
        pendulum, lambda x, u, p: 1e6 * effort(x, u, p), X0, 10, -4.0, 4.0,
        final_cost=lambda x, p: 1e6 * rest(x, p), args=(P,), solver=TIGHT,
    )  # fmt: skip
    torch.testing.assert_close(scaled.value, swing().value, rtol=0, atol=1e-9)
    assert torch.equal(scaled.steps, swing().steps)


def test_a_cost_that_is_not_convex_is_damped():
    plan = ilqr(
        lambda x, u: x + 0.5 * u, lambda x, u: (x - 1).square().sum(1) - torch.exp(-u.square()).sum(1),
        torch.tensor([[-2.0], [3.0]], dtype=D), 6, -2.0, 2.0, u0=torch.full((2, 6, 1), 1.5, dtype=D),
    )  # fmt: skip
    assert plan.report.converged


def test_sequences_are_dealt_out_in_time():
    goals = torch.linspace(0, 1, 6, dtype=D)
    plan = ilqr(
        lambda x, u, goal: x + u, lambda x, u, goal: (x[:, 0] + u[:, 0] - goal).square() + 1e-6 * u[:, 0] ** 2,
        torch.zeros(2, 1, dtype=D), 6, sequences=(goals,),
    )  # fmt: skip
    torch.testing.assert_close(plan.states[0, 1:, 0], goals, rtol=0, atol=1e-4)


def test_several_controls_keep_to_their_own_bounds():
    low, high = torch.tensor([-0.2, -1.0], dtype=D), torch.tensor([0.1, 0.05], dtype=D)
    mix = torch.tensor([[1.0, 0.6], [-0.4, 0.8]], dtype=D)
    plan = ilqr(
        lambda x, u: x + 0.3 * torch.tanh(u @ mix) - 0.05 * x**3, quadratic, X0, 8, low, high, solver=TIGHT
    )  # fmt: skip
    assert ((plan.value >= low) & (plan.value <= high)).all()
    duals = plan.control_duals.flatten(0, 1)
    assert (duals > 1e-6).any(0).all()  # each at its upper bound
    assert (duals < -1e-6).any()


def test_mates_change_no_bit():
    mix = torch.tensor([[1.0, 0.6], [-0.4, 0.8]], dtype=D)

    def solve(*mates):
        x0 = torch.tensor([[0.5, -0.4], *mates], dtype=D)
        plan = ilqr(lambda x, u: x + 0.3 * torch.tanh(u @ mix) - 0.05 * x**3, quadratic, x0, 8, -0.3, 0.1, controls=2)
        return plan.value[0], plan.steps[0], plan.costates[0]

    for one, other in zip(solve([0.1, 0.1], [2.0, -1.0]), solve([-3.0, 1.5], [0.0, 0.3]), strict=True):
        assert torch.equal(one, other)


def test_functions_that_cannot_be_mapped_say_so():
    with pytest.raises(RuntimeError) as caught:
        ilqr(lambda x, u: x + (u if x.sum().item() > 0 else -u), quadratic, X0[:, :1], 3)
    assert "maps over times" in caught.value.__notes__[0]


def test_small_boxes_are_minimised_exactly():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 4, 4, generator=generator, dtype=D)
    Q, q = root @ root.mT + 0.1 * torch.eye(4, dtype=D), 3 * torch.randn(50, 4, generator=generator, dtype=D)
    low, high = torch.full((50, 4), -0.5, dtype=D), torch.full((50, 4), 0.7, dtype=D)
    u, free = minimise(Q, q, low, high, torch.zeros(50, 4, dtype=D))
    exact = qp(Q, q, l=low, u=high)
    torch.testing.assert_close(u, exact.value, rtol=0, atol=1e-10)
    assert torch.equal(free, exact.active.bounds == 0)


def test_float32():
    plan = swing(X0.float(), P.float(), solver=BoxDDP())
    assert plan.value.dtype == torch.float32
    torch.testing.assert_close(plan.value.double(), swing().value, rtol=1e-2, atol=1e-2)


def test_a_captured_tensor_is_refused():
    weight = torch.ones((), dtype=D, requires_grad=True)
    with pytest.raises(ti.CaptureError):
        ilqr(lambda x, u: x + u, lambda x, u: weight * quadratic(x, u), X0[:, :1], 3)


def move(x, u):
    return x + u


ONE = torch.ones(2, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dynamics": 3}, TypeError, "dynamics: got a int"),
        ({"cost": None}, TypeError, "cost: got a NoneType"),
        ({"final_cost": 1.0}, TypeError, "final_cost"),
        ({"x0": torch.ones(2)}, ValueError, "unsqueeze"),
        ({"x0": torch.ones(2, 1, dtype=torch.int64)}, TypeError, "floating"),
        ({"horizon": 0}, ValueError, "integer >= 1"),
        ({"horizon": 2.0}, ValueError, "integer >= 1"),
        ({"lower": 1.0, "upper": 0.0}, ValueError, "1 > 0 for sample 0 at time 0, entry 0"),
        ({"lower": torch.zeros(4, 2), "upper": None}, ValueError, "lower: got shape"),
        ({"lower": torch.zeros(1).double()}, TypeError, "float64"),
        ({"u0": torch.zeros(2, 4, 1)}, ValueError, r"expected controls \(2, 3, 1\)"),
        ({"warm_start": torch.zeros(2, 3, 1)}, TypeError, "expected a Solution"),
        ({"args": ONE}, TypeError, r"args=\(value,\)"),
        ({"sequences": (torch.zeros(2),)}, ValueError, "time first"),
        ({"solver": BoxDDP}, TypeError, r"try BoxDDP\(\)"),
        ({"on_failure": "nan"}, ValueError, "on_failure"),
    ],
)
def test_bad_input(change, error, message):
    given = {"dynamics": move, "cost": quadratic, "x0": ONE, "horizon": 3, "lower": -1.0, "upper": 1.0}
    with pytest.raises(error, match=message):
        ilqr(**given | change)


def test_what_functions_return_is_checked():
    with pytest.raises(ValueError, match=r"dynamics returned shape \(2, 3\), expected \(2, 1\)"):
        ilqr(lambda x, u: x.expand(2, 3), quadratic, ONE, 3)
    with pytest.raises(ValueError, match=r"cost returned shape \(2, 1\), expected \(2,\).*sum"):
        ilqr(move, lambda x, u: x + u, ONE, 3)
    with pytest.raises(ValueError, match=r"final_cost returned shape \(\)"):
        ilqr(move, quadratic, ONE, 3, final_cost=lambda x: x.sum())
    with pytest.raises(TypeError, match=r"dynamics returned torch.float64, expected torch.float32"):
        ilqr(lambda x, u: (x + u).double(), quadratic, ONE, 3)


@pytest.mark.parametrize("change", [{"rtol": -1.0}, {"atol": torch.inf}, {"max_steps": 1.5}, {"curvature": 1}])
def test_impossible_options(change):
    with pytest.raises(ValueError, match="BoxDDP"):
        BoxDDP(**change)
