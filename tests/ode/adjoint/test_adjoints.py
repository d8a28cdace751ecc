"""All adjoints of paths side by side: what is exact, what holds to tolerance, what says that it does not."""

import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import torchimplicit as ti
from tests.ode.cases import double, problem, swirl
from torchimplicit.ode import Backsolve, Midpoint, Reversible

EXACT = [ti.Checkpointed(2), ti.Checkpointed(256), ti.Direct(), Reversible()]
ALL = [*EXACT, Backsolve()]


def relative(found, expected):
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))


def van_der_pol(t, y, mu):
    x, v = y[:, :1], y[:, 1:]
    return torch.cat((v, mu * (1 - x**2) * v - x), 1)


@pytest.mark.parametrize("adjoint", EXACT, ids=str)
def test_exact_ones_agree_with_finite_differences_of_the_same_steps(adjoint):
    y0, ts, W = problem(batch=2, times=4)
    inputs = [each.requires_grad_() for each in (y0, ts, W)]

    def run(y0, ts, W):
        return ti.odeint(swirl, y0, ts, W, solver=ti.RK4(), adjoint=adjoint).value

    assert torch.autograd.gradcheck(run, inputs, atol=1e-8, rtol=1e-7)
    adaptive = ti.Tsit5(control=ti.Fixed(0.31))  # finite differences must not change the steps

    def run_adaptively(y0, W):
        return ti.odeint(swirl, y0, ts.detach(), W, solver=adaptive, adjoint=adjoint).value

    assert torch.autograd.gradcheck(run_adaptively, [y0, W], atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
@pytest.mark.parametrize(
    ("stepping", "direction"),
    [(one, way) for one in ("per-sample", "joint") for way in ("forward", "backward")] + [("per-sample", "own")],
)
def test_backsolve_is_right_to_ten_tolerances(tolerance, stepping, direction):
    y0, ts, W = problem()
    if direction != "forward":
        ts = ts.flip(0) if direction == "backward" else torch.stack([ts, -ts, 2 * ts, ts / 2 + 1], 1)

    def gradients(adjoint, tolerance):
        inputs = [each.clone().requires_grad_() for each in (y0, ts, W)]
        solver = ti.Tsit5(rtol=tolerance, atol=tolerance)
        solution = ti.odeint(swirl, *inputs, solver=solver, adjoint=adjoint, stepping=stepping)
        return torch.autograd.grad(solution.value.square().sum(), inputs), solution

    exact, _ = gradients(ti.Checkpointed(), 1e-12)
    other = ti.Dopri5(rtol=tolerance, atol=tolerance)
    for adjoint in (Backsolve(), Backsolve(seminorm=False), Backsolve(solver=other), Backsolve(checkpoints=3)):
        found, solution = gradients(adjoint, tolerance)
        assert relative(found, exact) < 10 * tolerance
        assert solution.backward is not None
        assert solution.backward.converged
        assert 0 < float(solution.backward.drift.max()) < 10  # type: ignore[attr-defined]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 3).double()
        self.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, t, state, rate):
        real, phase = state["real"], state["phase"]
        return {"real": torch.tanh(self.net(real)) * t, "phase": phase * rate * 1j + real[:, :1]}


@pytest.mark.parametrize("adjoint", ALL, ids=str)
def test_nested_states_arguments_and_modules(adjoint):
    field, ts = Mixed(), torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64)

    def gradients(adjoint):
        inputs = [double(2, 3).requires_grad_(), double(2, 1, seed=2).to(torch.complex128).requires_grad_()]
        rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        solver = ti.Tsit5(rtol=1e-9, atol=1e-9)
        start = dict(zip(("real", "phase"), inputs, strict=True))
        value = ti.odeint(field, start, ts, rate, solver=solver, adjoint=adjoint).value
        loss = value["real"].square().sum() + value["phase"].abs().square().sum()
        return torch.autograd.grad(loss, [*inputs, rate, *field.net.parameters()])

    assert relative(gradients(adjoint), gradients(ti.Direct())) < 1e-7


@pytest.mark.parametrize(
    "solver", [ti.RK4(dt=0.02), ti.Midpoint(dt=0.005), ti.Bosh3(rtol=1e-7), ti.Heun(rtol=1e-5), ti.Kvaerno3(rtol=1e-7)]
)
def test_backsolve_with_every_kind_of_solver(solver):
    y0, ts, W = problem()
    W.requires_grad_()
    value = ti.odeint(swirl, y0, ts, W, solver=solver, adjoint=Backsolve()).value
    exact = ti.odeint(swirl, y0, ts, W, solver=ti.Tsit5(rtol=1e-11, atol=1e-11)).value
    found, expected = (torch.autograd.grad(each.square().sum(), W) for each in (value, exact))
    assert relative(found, expected) < 1e-4


def test_backsolve_of_a_field_that_looks_at_nothing_but_the_time():
    rate = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    start = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    value = ti.odeint(lambda t, y, rate: rate * t**2 + torch.zeros_like(y), start, ts, rate, adjoint=Backsolve()).value
    value.sum().backward()
    assert rate.grad is not None
    assert start.grad is not None
    assert torch.allclose(rate.grad, torch.full((2,), 1 / 3 + 8 / 3, dtype=torch.float64), atol=1e-12)
    assert torch.equal(start.grad, torch.full((1, 2), 3.0, dtype=torch.float64))


def test_backward_is_one_solve_within_the_times():
    y0, _, W = problem()
    W.requires_grad_()
    seen = []

    def field(t, y, W):
        seen.append(t.detach().flatten())
        return swirl(t, y, W)

    work = []
    for times in (2, 101):
        ts = torch.linspace(0.5, 2.5, times, dtype=torch.float64)
        solution = ti.odeint(field, y0, ts, W, adjoint=Backsolve(solver=ti.Tsit5(rtol=1e-9, atol=1e-9)))
        solution.value.sum().backward()
        report = solution.backward
        assert report is not None
        work.append(int(report.steps.max()))
    asked = torch.cat(seen)
    assert 0.5 <= float(asked.min()) <= float(asked.max()) <= 2.5
    assert work[0] < 40
    assert work[1] <= 101 + 10  # a step for each output, and hardly any more: sizes are carried on


def test_the_size_of_the_loss_does_not_matter():
    y0, ts, W = problem()
    W.requires_grad_()
    found = []
    for size in (1.0, 2.0**-40):
        loss = ti.odeint(swirl, y0, ts, W, adjoint=Backsolve()).value.square().sum() * size
        found.append(torch.autograd.grad(loss, W)[0] / size)
    assert torch.equal(*found)


def test_the_error_of_the_parameters_gradient_can_steer_the_steps():
    y0, ts, W = problem()
    W.requires_grad_()
    work, errors = [], []
    loose = ti.Tsit5(rtol=1e-5, atol=1e-5)
    (exact,) = torch.autograd.grad(ti.odeint(wavy, y0, ts, W, solver=ti.Tsit5(rtol=1e-12, atol=1e-12)).value.sum(), W)
    for seminorm in (True, False):
        solution = ti.odeint(wavy, y0, ts, W, solver=loose, adjoint=Backsolve(seminorm=seminorm))
        (found,) = torch.autograd.grad(solution.value.sum(), W)
        assert solution.backward is not None
        work.append(int(solution.backward.steps.max()))
        errors.append(relative([found], [exact]))
    assert work[1] > work[0]
    assert errors[1] < 10 * 1e-5 < errors[0]


def wavy(t, y, W):
    return 1e-2 * torch.sin(20 * t * W.sum(0)) + 0 * y  # the state hardly moves, its derivative by W does


def limit_cycle(adjoint, on_failure: Any = "raise", tolerance=1e-4):
    y0 = torch.linspace(0.5, 2, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
    mu = torch.full((4, 1), 2.0, dtype=torch.float64, requires_grad=True)
    ts, solver = torch.tensor([0.0, 10.0], dtype=torch.float64), ti.Tsit5(rtol=tolerance, atol=tolerance)
    solution = ti.odeint(van_der_pol, y0, ts, mu, solver=solver, adjoint=adjoint, on_failure=on_failure)
    return torch.autograd.grad(solution.value[1].sum(), (y0, mu)), solution.backward


def test_backsolve_says_that_it_drifted():
    with pytest.raises(
        ti.ConvergenceError, match=r"drifted: sample 0 \(drifted by .* tolerances[\s\S]*Checkpointed\(\)"
    ):
        limit_cycle(Backsolve())
    with pytest.warns(ti.ConvergenceWarning, match="drifted"):
        limit_cycle(Backsolve(), on_failure="warn")
    found, report = limit_cycle(Backsolve(), on_failure="ignore")
    assert report is not None
    assert report.status.tolist() == [int(ti.Status.DRIFTED)] * 4
    assert all(bool(each.isfinite().all()) for each in found)


def turning(t, y, w):
    return torch.stack((w * y[:, 1], -w * y[:, 0]), 1)


def cubic(t, y, w):
    return w * y**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=y.dtype)


@pytest.mark.parametrize(
    ("field", "start", "last"), [(cubic, 2.0, 1.0), (turning, 1.0, 2 * torch.pi), (turning, 1e6, 100.0)]
)
@pytest.mark.parametrize("adjoint", [ti.Backsolve(), ti.Reversible()], ids=str)
@pytest.mark.parametrize("rtol", [1e-5, 1e-8])
def test_an_unknown_that_is_zero_at_an_output_has_not_drifted(field, start, last, adjoint, rtol):
    """What it comes to on the way is its size; the gradient is right, and the report says so."""
    y0 = torch.tensor([[start, 0.0]], dtype=torch.float64)
    ts, w = torch.tensor([0.0, last], dtype=torch.float64), torch.ones((), dtype=torch.float64, requires_grad=True)
    solver = ti.Tsit5(rtol=rtol, atol=1e-2 * rtol * start)
    found = [ti.odeint(field, y0, ts, w, solver=solver, adjoint=each).value for each in (adjoint, ti.Checkpointed())]
    one, other = [torch.autograd.grad(value[-1].sum(), w)[0] for value in found]  # a failure would raise
    assert torch.allclose(one, other, rtol=30 * rtol * last)


def test_states_on_the_way_keep_backsolve_from_drifting():
    exact, _ = limit_cycle(ti.Checkpointed(), tolerance=1e-12)
    found, report = limit_cycle(Backsolve(checkpoints=64))
    assert report is not None
    assert report.converged
    best, _ = limit_cycle(ti.Checkpointed())
    assert relative(found, exact) < 2 * relative(best, exact)


@pytest.mark.parametrize("adjoint", ALL, ids=str)
def test_a_sample_that_runs_out_of_steps_is_differentiated_up_to_there(adjoint):
    start = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor([[0.1], [40.0]], dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    solver = ti.Tsit5(rtol=1e-9, atol=1e-9, max_steps=45)
    solution = ti.odeint(
        lambda t, y, rate: torch.cos(rate * t) + 0 * y, start, ts, rate, solver=solver, adjoint=adjoint,
        on_failure="ignore",
    )  # fmt: skip
    assert solution.status.tolist() == [0, int(ti.Status.MAX_STEPS)]
    reached = solution.report.reached[1]  # type: ignore[attr-defined]
    assert 0 < float(reached) < 1
    (found,) = torch.autograd.grad(solution.value[-1].sum(), rate)
    t = torch.stack([ts[-1], reached]).unsqueeze(1)
    expected = t * torch.cos(rate * t) / rate - torch.sin(rate * t) / rate**2
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("adjoint", [*ALL, Backsolve(checkpoints=4), Backsolve(seminorm=False)], ids=str)
@pytest.mark.parametrize("cause", ["argument", "start", "blow-up"])
def test_a_non_finite_sample_adds_nothing_to_the_gradients(adjoint, cause):
    start, scale = double(4, 2), torch.tensor([1.0, 0.7], dtype=torch.float64, requires_grad=True)
    weight = double(4, 1, seed=3)
    if cause == "start":
        start[1, 0] = torch.nan
    else:
        weight[1] = torch.nan if cause == "argument" else 1e4
    ts = torch.linspace(0, 1, 4, dtype=torch.float64)

    def gradients(rows):
        inputs = [start[rows].requires_grad_(), weight[rows].requires_grad_(), ts.clone().requires_grad_(), scale]

        def field(t, y, weight, scale):
            return torch.sin(t + y * scale) * weight + torch.where(weight > 1e3, torch.nan * (t > 0.5), 0.0)

        solution = ti.odeint(
            field, inputs[0], inputs[2], *inputs[1::2], adjoint=adjoint, on_failure="ignore",
            solver=ti.Tsit5(rtol=1e-7, atol=1e-7),
        )  # fmt: skip
        found = torch.autograd.grad(solution.value.square().sum(), inputs)
        return solution, found

    invalid, found = gradients([0, 1, 2, 3])
    healthy, expected = gradients([0, 2, 3])
    assert invalid.status.tolist() == [0, int(ti.Status.NON_FINITE), 0, 0]
    assert torch.allclose(invalid.value[:, [0, 2, 3]], healthy.value, atol=1e-14)
    tolerance = 1e-6 if adjoint == Backsolve(seminorm=False) else 1e-12
    for one, other in zip(found, expected, strict=True):
        batched = len(one) == 4 and len(other) == 3
        assert torch.allclose(one[[0, 2, 3]] if batched else one, other, atol=tolerance)
        assert not batched or bool((one[1] == 0).all())


def test_a_batch_without_a_healthy_sample_has_no_gradient():
    W = double(3, 3).requires_grad_()
    solution = ti.odeint(swirl, double(2, 3) * torch.nan, torch.tensor([0.0, 1.0]), W, on_failure="ignore")
    solution.value.sum().backward()
    assert W.grad is not None
    assert bool((W.grad == 0).all())


@pytest.mark.parametrize("adjoint", ALL, ids=str)
def test_backward_twice_with_a_retained_graph(adjoint):
    y0, ts, W = problem()
    W.requires_grad_()
    loss = ti.odeint(swirl, y0, ts, W, adjoint=adjoint).value.square().sum()
    first = torch.autograd.grad(loss, W, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, W)[0])
    if adjoint != ti.Direct():
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, W)


def kept(adjoint, steps, width=4000, method=ti.RK4):
    """Bytes that a forward pass of so many steps keeps for its backward pass."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    start = double(2, width).requires_grad_()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = ti.odeint(
            lambda t, y: torch.sin(y), start, torch.tensor([0.0, 1.0]), solver=method(dt=1 / steps), adjoint=adjoint
        ).value
    assert value.requires_grad
    return sum(size for size, _ in found.values())


def test_memory_by_the_number_of_steps():
    eight, several = ti.Checkpointed(8, graphs=0), ti.Checkpointed(32, graphs=0)
    flat = [Backsolve(), Reversible(), eight, several, ti.Checkpointed(8, graphs=2**20), Backsolve(checkpoints=8)]
    sizes = {str(adjoint): [kept(adjoint, steps) for steps in (64, 256)] for adjoint in (*flat, ti.Direct())}
    for adjoint in flat:
        few, many = sizes[str(adjoint)]
        assert many <= 1.05 * few, adjoint
    few, many = sizes["Direct()"]
    assert many > 3.5 * few
    order = [sizes[str(adjoint)][1] for adjoint in (Backsolve(), Reversible(), several, ti.Direct())]
    assert all(less < more for less, more in pairwise(order))
    every = kept(ti.Checkpointed(1000, graphs=0), 256)
    assert every > 10 * sizes[str(eight)][1]  # the states are counted
    # Graphs up to the budget, and not beyond it: on top of states that there is room for anyway.
    budgets = [kept(ti.Checkpointed(8, graphs=budget), 256, method=Midpoint) for budget in (0, 2**20, 2**21)]
    for (less, more), room in zip(pairwise(budgets), (2**20, 2**20), strict=True):
        assert 0.5 * room < more - less <= 1.1 * room


def test_backsolve_refuses_what_it_does_not_know():
    y0, ts, W = problem()
    W.requires_grad_()

    def run(W):
        return ti.odeint(swirl, y0, ts, W, adjoint=Backsolve()).value.square().sum()

    for refused in (
        lambda: torch.autograd.grad(run(W), W, create_graph=True),
        lambda: torch.func.grad(run)(W.detach()),
        lambda: torch.vmap(run)(torch.stack([W.detach(), W.detach()])),
        lambda: torch.autograd.functional.jvp(run, W.detach(), W.detach(), strict=True),
        lambda: forward_mode(run, W.detach()),
    ):
        with pytest.raises(NotImplementedError, match=r"Checkpointed\(\)"):
            refused()


def forward_mode(run, W):
    with torch.autograd.forward_ad.dual_level():
        return run(torch.autograd.forward_ad.make_dual(W, torch.ones_like(W)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Backsolve(seminorm=1), "seminorm=1"),  # type: ignore[arg-type]
        (lambda: Backsolve(solver="Tsit5"), "solver='Tsit5'"),  # type: ignore[arg-type]
        (lambda: Backsolve(checkpoints=-1), "checkpoints=-1"),
        (lambda: Reversible(coupling=0), "coupling=0"),
        (lambda: Reversible(coupling=1.1), "coupling=1.1"),
    ],
)
def test_impossible_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_adjoints_travel():
    for adjoint in (Backsolve(seminorm=False, solver=ti.RK4(dt=0.1), checkpoints=3), Reversible(coupling=0.5)):
        assert pickle.loads(pickle.dumps(adjoint)) == adjoint
