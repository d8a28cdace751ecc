"""What errors and warnings say to try, helps: those about numbers, of which no report's table tells.

A case does what fails without a remedy, and with each of those that the message names does it again, well. Remedies of
reports are in `test_remedies.py`.
"""

import re
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import diagnose

D = torch.float64
CASES = {}


class Case(NamedTuple):
    """What fails.

    Attributes:
        act: does it; `act(None)` fails, `act(remedy)` follows a remedy.
        words: what the failure says, beside the remedies.
    """

    act: object
    words: str


def case(words, *remedies):
    def keep(act):
        CASES.update({(act.__name__, remedy): Case(act, words) for remedy in remedies})
        return act

    return keep


def tensor(*values):
    return torch.tensor(values, dtype=D)


# Points


@case("did not settle", "more steps", "restarts", "a looser rtol")
def spectral_radius(remedy):
    torch.manual_seed(0)
    weight, size = torch.randn(300, 300, dtype=D) / 300**0.5, torch.zeros(1, 300, dtype=D)
    layer = ti.nn.DEQ(lambda z, x, weight: 0.3 * torch.tanh(z @ weight) + x)
    layer(size, weight)
    options = {"more steps": {"steps": 200}, "restarts": {"restarts": 200}, "a looser rtol": {"rtol": 0.5}}
    diagnose.spectral_radius(
        layer, size, weight, **({"steps": 20, "restarts": 1, "rtol": 1e-4} | options.get(remedy, {}))
    )


@case("could not be kept apart", "Pass every argument with the batch in dimension 0", "leave such samples out")
def leak(remedy):
    x, w = tensor([1.0], [0.0], [2.0]), torch.tensor(0.5, dtype=D, requires_grad=True)
    first = remedy is not None and remedy.startswith("Pass")
    x = x[[0, 2]] if remedy == "leave such samples out" else x
    solution = ti.fixed_point(
        lambda z, x, w: 0.5 * z + torch.sqrt(w * (x if first else x.T)), torch.zeros_like(x), x if first else x.T, w,
        on_failure="ignore",
    )  # fmt: skip
    solution.value.sum().backward()
    assert w.grad.isfinite() or remedy is None


@case("expected at most max_size", "GMRES()")
def too_large_for_a_matrix(remedy):
    z, w = torch.zeros(1, 30, dtype=D), torch.tensor(0.5, dtype=D, requires_grad=True)
    adjoint = ti.Implicit(ti.GMRES() if remedy else ti.LU(max_size=20))
    ti.fixed_point(lambda z, w: w * z + 1, z, w, adjoint=adjoint).value.sum().backward()
    assert w.grad == pytest.approx(120, rel=1e-3)


@case("Unrolled cannot differentiate through the iterations of GMRES", "linear_solver=LU()", "adjoint=Implicit()")
def unrolled_newton(remedy):
    z, w = torch.ones(1, 3, dtype=D), torch.tensor(2.0, dtype=D, requires_grad=True)
    solver = ti.Newton(linear_solver=ti.LU() if remedy == "linear_solver=LU()" else ti.GMRES())
    adjoint = ti.Implicit() if remedy == "adjoint=Implicit()" else ti.Unrolled()
    ti.root(lambda z, w: z**2 - w, z, w, solver=solver, adjoint=adjoint).value.sum().backward()
    assert w.grad == pytest.approx(3 / (2 * 2**0.5), rel=1e-3)


@case("Unrolled does not work under torch.vmap", "Implicit()")
def unrolled_vmap(remedy):
    adjoint = ti.Implicit() if remedy else ti.Unrolled()

    def point(x):
        return ti.fixed_point(lambda z, x: 0.5 * torch.cos(z) + x, torch.zeros_like(x), x, adjoint=adjoint).value

    assert torch.vmap(point)(torch.ones(3, 1, 2)).isfinite().all()


@case("Unrolled cannot differentiate through the line searches of LBFGS", "adjoint=Implicit()")
def unrolled_minimum(remedy):
    z, w = torch.ones(1, 3, dtype=D), torch.tensor(2.0, dtype=D, requires_grad=True)
    options = {"solver": ti.LBFGS()} | ({} if remedy else {"adjoint": ti.Unrolled()})
    ti.argmin(lambda z, w: (z - w).square().sum(1), z, w, **options).value.sum().backward()
    assert w.grad == pytest.approx(3, rel=1e-3)


@case("The learnt inverse|the inverse that a solver has learnt is not symmetric", "GMRES()")
def preconditioned(remedy):
    z, w = torch.ones(1, 3, dtype=D), torch.tensor(0.5, dtype=D, requires_grad=True)
    adjoint = ti.Implicit(ti.GMRES() if remedy else ti.CG(), precondition=True)
    ti.fixed_point(lambda z, w: w * z + 1, z, w, solver=ti.Broyden(), adjoint=adjoint).value.sum().backward()
    assert w.grad == pytest.approx(12, rel=1e-2)


@case("is not strongly monotone", "see torchimplicit.nn.MonotoneLinear")
def not_monotone(remedy):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(2 * torch.eye(3, dtype=D))

        def affine(self, z, x):
            return z @ self.weight.T + x

        def prox(self, z, step):
            return z.relu()

    layer = ti.nn.MonotoneDEQ(ti.nn.MonotoneLinear(3).double() if remedy else Plain(), on_failure="raise")
    layer(torch.ones(2, 3, dtype=D))


@case("their fixed points then depend on each other", "GroupNorm", "LayerNorm")
def batch_norm(remedy):
    norms = {"GroupNorm": lambda: nn.GroupNorm(2, 8), "LayerNorm": lambda: nn.LayerNorm(8)}

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norms.get(remedy, lambda: nn.BatchNorm1d(8))()

        def forward(self, z, x):
            return torch.tanh(0.3 * self.norm(z + x))

    torch.manual_seed(0)
    layer = ti.nn.DEQ(Cell().double(), on_failure="raise")
    x = torch.randn(4, 8, dtype=D)
    assert torch.allclose(layer(x)[:2], layer(x[:2]), rtol=1e-3) or remedy is None


@case("A cell stops contracting while it trains", "nn.ContractiveLinear", "nn.jacobian_penalty in the loss")
def training(remedy):
    torch.manual_seed(0)
    kind = ti.nn.ContractiveLinear if remedy == "nn.ContractiveLinear" else nn.Linear

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = kind(8, 8)

        def forward(self, z, x):
            return torch.tanh(self.linear(z) + x)

    layer = ti.nn.DEQ(Cell(), ti.Picard(max_steps=40), on_failure="ignore")
    x = torch.randn(16, 8)
    target = 3 * torch.roll(x, 1, 1).sign()
    descent = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(25):
        z = layer(x)
        loss = (3 * z - target).square().mean()
        if remedy == "nn.jacobian_penalty in the loss":
            loss = loss + 30 * ti.nn.jacobian_penalty(layer, z.detach(), x)
        descent.zero_grad()
        loss.backward()
        descent.step()
    layer.on_failure = "raise"
    layer(x)


# Paths


@case("got tolerances below the rounding of the state", "Tsit5(rtol=1e-05)", "y0 of a finer dtype")
def too_tight(remedy):
    y0 = torch.ones(1, 2, dtype=D if remedy == "y0 of a finer dtype" else torch.float32)
    solver = ti.Tsit5(rtol=1e-5) if remedy == "Tsit5(rtol=1e-05)" else ti.Tsit5(rtol=1e-9, atol=1e-9)
    ti.odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0], dtype=y0.dtype), solver=solver)


@case("does not change along the path at its event", "try another one", "torch.no_grad() around odeint")
def grazing(remedy):
    y0 = tensor([0.5]).requires_grad_()
    power = 1 if remedy == "try another one" else 3

    def solve():
        event = ti.Event(lambda t, y: (y[:, 0] - 1.0) ** power)
        return ti.odeint(lambda t, y: torch.ones_like(y), y0, tensor(0.0, 1.0), event=event, solver=ti.RK4(dt=0.25))

    if remedy == "torch.no_grad() around odeint":
        with torch.no_grad():
            assert solve().event_time == pytest.approx(0.5)
    else:
        solve().event_time.sum().backward()
        assert y0.grad == pytest.approx(-1)


@case("the field is not separable", "Dopri8()", "Tsit5()")
def symplectic(remedy):
    solver = {"Dopri8()": ti.Dopri8(), "Tsit5()": ti.Tsit5()}.get(remedy, ti.Leapfrog(dt=0.1))

    def friction(t, y):
        q, p = y.chunk(2, 1)
        return torch.cat((p, -q - 0.1 * p), 1)

    ti.odeint(friction, tensor([1.0, 0.0]), tensor(0.0, 1.0), solver=solver)


@case("first derivatives by backward\\(\\) alone", "adjoint=Checkpointed()")
def second_derivative(remedy):
    w = torch.tensor(1.0, dtype=D, requires_grad=True)
    adjoint = ti.Checkpointed() if remedy else ti.Backsolve()
    value = ti.odeint(lambda t, y, w: -w * y, tensor([1.0]), tensor(0.0, 1.0), w, adjoint=adjoint).value[-1]
    (first,) = torch.autograd.grad(value.sum(), w, create_graph=True)
    assert torch.autograd.grad(first, w)[0] == pytest.approx(torch.exp(-w).item(), rel=1e-2)


@case("got a symplectic backward solve", "Checkpointed()", "Backsolve(solver=RK4(dt=...))")
def symplectic_back(remedy):
    adjoints = {
        "Checkpointed()": ti.Checkpointed(),
        "Backsolve(solver=RK4(dt=...))": ti.Backsolve(solver=ti.RK4(dt=0.1)),
    }
    y0 = tensor([1.0, 0.0]).requires_grad_()
    ti.odeint(
        lambda t, y: torch.cat((y[:, 1:], -y[:, :1]), 1), y0, tensor(0.0, 1.0), solver=ti.Leapfrog(dt=0.1),
        adjoint=adjoints.get(remedy, ti.Backsolve()),
    ).value.sum().backward()  # fmt: skip
    assert y0.grad.isfinite().all()


# Programs


@case("got a Q that is not symmetric", "(Q + Q.mT) / 2")
def crooked(remedy):
    Q = tensor([2.0, 1.0], [0.0, 2.0])
    assert ti.qp((Q + Q.mT) / 2 if remedy else Q, tensor(1.0, 1.0)).report.converged


@case("where a barrier has no room", "A and b for it")
def no_room(remedy):
    Q, q, one = torch.eye(2, dtype=D), tensor(1.0, 1.0), tensor(1.0, 5.0)
    if remedy:
        options = {"A": tensor([1.0, 0.0]), "b": tensor(1.0), "u": tensor(torch.inf, 5.0)}
    else:
        options = {"l": tensor(1.0, -5.0), "u": one}
    assert ti.qp(Q, q, smoothed=0.1, **options).report.converged


def attempt(act, remedy):
    """What it says: an error's text, or the warnings'."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            act(remedy)
        except (ti.ConvergenceError, NotImplementedError, ValueError) as error:
            return str(error)
    return "\n".join(str(each.message) for each in caught)


@pytest.mark.parametrize(("name", "remedy"), CASES, ids=str)
def test_it_helps(name, remedy):
    found = CASES[name, remedy]
    said = attempt(found.act, None)
    assert re.search(found.words, said), said
    assert remedy in said, f"the message does not name it: {said}"
    assert attempt(found.act, remedy) == ""
