"""Graphs of steps that are kept for the gradient: values and gradients are the same, evaluations fewer."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import torchimplicit as ti
from torchimplicit import ode

D = torch.float64
NONE, ALL, SOME = ti.Checkpointed(graphs=0), ti.Checkpointed(), ti.Checkpointed(graphs=10_000)
SOLVERS = [ti.Tsit5(), ti.Bosh3(rtol=1e-3), ti.Dopri8(), ti.RK4(dt=0.21), ode.Euler(dt=0.3), ode.Heun(rtol=1e-2)]
FORWARD, BACKWARD = torch.linspace(0, 2, 5, dtype=D), torch.tensor([1.0, 0.5, 0.0], dtype=D)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(3, 8).double(), torch.nn.Linear(8, 3).double()
        self.calls = 0

    def forward(self, t, y, w):
        self.calls += 1
        return self.b(torch.tanh(self.a(y))) * w * torch.cos(t)


def problem(shape=(5, 3)):
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(shape, dtype=D, generator=generator).requires_grad_()
    return Net(), y0, torch.rand((shape[0], *(1,) * (len(shape) - 1)), dtype=D, generator=generator).requires_grad_()


def found(adjoint, ts=FORWARD, shape=(5, 3), **options):
    net, y0, w = problem(shape)
    solution = ti.odeint(net, y0, ts, w, adjoint=adjoint, **options)
    asked = net.calls
    return solution, torch.autograd.grad(solution.value.sin().sum(), [y0, w, *net.parameters()]), net.calls - asked


@pytest.mark.parametrize("ts", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("stepping", ["per-sample", "joint"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_values_are_the_same_to_the_bit_and_gradients_to_rounding(solver, stepping, ts):
    for shape in ((5, 3), (5, 2, 3)):
        (made, expected, _), *others = (
            found(adjoint, ts, shape, solver=solver, stepping=stepping) for adjoint in (NONE, ALL, SOME)
        )
        for solution, gradients, _ in others:
            assert torch.equal(solution.value, made.value)
            assert torch.equal(solution.report.steps, made.report.steps)
            more = solution.report.nfev - made.report.nfev  # where some reject a step, the next one asks for a graph
            assert 0 <= more <= (0 if stepping == "joint" else int(made.report.rejected.sum()))
            for one, other in zip(gradients, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_kept_steps_are_not_made_again():
    kept, again = found(ALL, FORWARD[:2]), found(NONE, FORWARD[:2])
    assert kept[2] == 0
    assert again[2] >= 6 * int(again[0].report.accepted.max())
    some = found(SOME, FORWARD[:2])
    assert 0 < some[2] < again[2]
    counts = [each[0].report.kept for each in (again, some, kept)]
    assert counts[0] == 0 < counts[1] < counts[2] == int(kept[0].report.accepted.max())


def test_rejected_steps_and_samples_that_arrive_early():
    """Of a step that some sample rejects the others have the graph; those that have arrived add nothing."""
    calls = []

    def field(t, y, rate):
        calls.append(len(y))
        return torch.stack((y[:, 1], rate * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)

    rate = torch.tensor([0.1, 1.0, 5.0], dtype=D, requires_grad=True)
    ts = torch.tensor([[0.0, 0.0, 0.0], [0.5, 2.0, 6.0]], dtype=D)
    results = []
    for adjoint in (ALL, NONE):
        solution = ti.odeint(field, torch.ones(3, 2, dtype=D), ts, rate, adjoint=adjoint)
        calls.clear()
        results.append(torch.autograd.grad(solution.value[-1].sum(), rate)[0])
        assert (not calls) == (adjoint is ALL)
        assert bool(solution.report.rejected.any())
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_a_derivative_where_a_rejected_step_has_been_is_nobodys():
    """The stages of the first sample's first step lie beyond 1, where a zero's derivative is infinite."""
    y0, ts = torch.tensor([[0.0, 1.0], [0.0, 0.01]], dtype=D), torch.tensor([0.0, 1.9], dtype=D)
    results = []
    for adjoint in (ALL, NONE):
        w = torch.ones(2, dtype=D, requires_grad=True)
        solution = ti.odeint(
            lambda t, y, w: torch.stack((w[0] * y[:, 1] * (1 - y[:, 0]).relu().sqrt(), 0 * y[:, 1]), 1),
            y0, ts, w, solver=ti.Tsit5(dt0=1.5), adjoint=adjoint,
        )  # fmt: skip
        assert solution.report.rejected.tolist()[1] == 0 < solution.report.rejected.tolist()[0]
        results.append(torch.autograd.grad(solution.value[-1].sum(), w)[0])
        assert solution.report.backward is None
    assert bool(results[0].isfinite().all())
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_nested_states():
    y0 = {"a": torch.ones(2, 2, dtype=D), "b": torch.ones(2, dtype=D)}
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)

    def gradient(adjoint):
        value = ti.odeint(
            lambda t, y, rate: {"a": -rate * y["a"], "b": rate * y["a"].sum(1) * y["b"]}, y0, FORWARD, rate,
            adjoint=adjoint,
        ).value  # fmt: skip
        return torch.autograd.grad(value["a"].sum() + value["b"].sum(), rate)[0]

    torch.testing.assert_close(gradient(ALL), gradient(NONE), rtol=1e-10, atol=0)


def test_a_field_that_draws_has_the_gradient_of_what_it_drew():
    y0 = torch.ones(2, 3, dtype=D, requires_grad=True)
    torch.manual_seed(0)
    value = ti.odeint(
        lambda t, y: -torch.nn.functional.dropout(y), y0, BACKWARD.flip(0), solver=ode.Midpoint(dt=0.1)
    ).value
    (gradient,) = torch.autograd.grad(value.sum(), y0)
    torch.testing.assert_close(gradient, value.detach().sum(0), rtol=1e-12, atol=0)  # the path is linear in its start


def test_backward_twice_and_once_too_often():
    net, y0, w = problem()
    loss = ti.odeint(net, y0, FORWARD, w).value.sum()
    first = torch.autograd.grad(loss, w, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, w)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, w)


def test_within_a_checkpoint():
    net, y0, w = problem()

    def solved(y0, w):
        return ti.odeint(net, y0, FORWARD, w).value.sin().sum()

    whole = torch.autograd.grad(solved(y0, w), [y0, w])
    again = torch.autograd.grad(checkpoint(solved, y0, w, use_reentrant=False), [y0, w])
    for one, other in zip(again, whole, strict=True):
        assert torch.equal(one, other)


def test_second_derivatives():
    net, y0, w = problem()

    def curvature(adjoint):
        value = ti.odeint(net, y0, FORWARD[:3], w, adjoint=adjoint).value.sin().sum()
        (gradient,) = torch.autograd.grad(value, w, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), w)[0]

    torch.testing.assert_close(curvature(ALL), curvature(ti.Direct()), rtol=1e-9, atol=1e-10)


def test_captured_tensors_are_refused_at_every_evaluation():
    secret = torch.tensor(0.1, dtype=D, requires_grad=True)
    y0 = torch.ones(2, 1, dtype=D, requires_grad=True)
    with pytest.raises(ti.CaptureError):
        ti.odeint(lambda t, y: -y + (secret * y if float(t.max()) > 0.5 else 0), y0, FORWARD)


def test_impossible_budgets():
    with pytest.raises(ValueError, match="graphs"):
        ti.Checkpointed(graphs=-1)
