"""Compiled steps give what plain steps give. Traced, but for one test that goes all the way to machine code."""

import shutil
from typing import Any

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.core.compiled import kernel as compiling
from torchimplicit.core.compiled import worth
from torchimplicit.core.compiled.kernel import CompileError
from torchimplicit.ode import RK4, Heun
from torchimplicit.ode.compiled import kernel, loop
from torchimplicit.ode.compiled.engine import choose_engine
from torchimplicit.path.compiled.engine import IfPossible

SOLVER = Heun(rtol=1e-3, atol=1e-4)


class Decay(nn.Module):
    """`-rate * y * drive`, in modules as users write them."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([[1.0, 0.7], [0.2, 1.5]], dtype=torch.float64))
        self.power = 1.0

    def forward(self, t, y, drive):
        return -(y @ self.rate) * drive + 0.1 * torch.sin(self.power * t)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK", 2)
        patch.setattr(loop, "CHUNK", 2)
        patch.setattr(compiling, "BACKEND", "aot_eager")
        yield


@pytest.fixture(scope="module")
def field():
    return Decay()


def solve(field, compile, outputs, stepping: Any = "per-sample", solver=SOLVER):
    y0 = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    drive = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64, requires_grad=True)
    ts = torch.linspace(0, 2, outputs, dtype=torch.float64)
    solution: Any = ti.odeint(field, y0, ts, drive, solver=solver, stepping=stepping, compile=compile)
    weight = torch.linspace(1, 2, solution.value.numel(), dtype=torch.float64).view_as(solution.value)
    return solution, torch.autograd.grad((weight * solution.value).sum(), (y0, drive, field.rate))


def test_steps_are_no_longer_than_two_errors_allow():
    d, y0 = torch.logspace(-1.5, 0.5, 40, dtype=torch.float64).unsqueeze(1), torch.full((40, 1), 80.0).double()
    ts = -torch.tensor([80, 0.002], dtype=torch.float64).log()

    def pull(t, y, d):
        return -y / (1 + (d * t.exp()) ** 2)  # an estimate of its error that changes its sign

    plain, fused = (ti.odeint(pull, y0, ts, d, solver=Heun(rtol=1e-2, atol=1e-2), compile=c) for c in (False, True))
    assert fused.report.accepted.tolist() == plain.report.accepted.tolist()
    assert torch.allclose(fused.value, plain.value, rtol=1e-9)


@pytest.mark.parametrize(("outputs", "stepping"), [(2, "per-sample"), (5, "per-sample"), (2, "joint")])
def test_values_gradients_and_counts_are_those_of_plain_steps(field, outputs, stepping):
    compare(field, outputs, stepping)


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler, which torch.compile needs")
def test_machine_code_agrees(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    compare(Decay(), 2, "per-sample")


def compare(field, outputs, stepping):
    plain, plain_grads = solve(field, False, outputs, stepping)
    fused, fused_grads = solve(field, True, outputs, stepping)
    assert torch.allclose(fused.value, plain.value, rtol=0, atol=1e-11)
    for got, expected in zip(fused_grads, plain_grads, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-11)
    for name in ("status", "accepted", "rejected", "reached"):
        assert torch.equal(getattr(fused.report, name), getattr(plain.report, name)), name
    assert int(plain.report.rejected.max()) + int(plain.report.accepted.max()) > kernel.CHUNK


def test_a_second_solve_compiles_nothing_and_a_changed_attribute_is_seen(field):
    solve(field, True, 2)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    solve(field, True, 2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    field.power = 2.0
    try:
        plain, fused = solve(field, False, 2)[0], solve(field, True, 2)[0]
    finally:
        field.power = 1.0
    assert torch.allclose(fused.value, plain.value, rtol=0, atol=1e-11)


def test_a_limit_of_steps_is_kept(field):
    few = Heun(rtol=1e-3, atol=1e-4, max_steps=6)
    with pytest.raises(ti.ConvergenceError) as plain:
        solve(field, False, 2, solver=few)
    with pytest.raises(ti.ConvergenceError) as fused:
        solve(field, True, 2, solver=few)
    got, expected = fused.value.solution, plain.value.solution
    assert got is not None
    assert expected is not None
    assert torch.equal(got.report.steps, expected.report.steps)
    assert torch.allclose(got.value, expected.value, rtol=0, atol=1e-11)


def branch(t, y):
    return -y if float(y.sum()) > 0 else y


def tries(f, size: int = 2) -> bool:
    return isinstance(choose_engine("auto", f, SOLVER, size, True), IfPossible)


def test_a_field_that_cannot_be_compiled_is_named_and_auto_goes_on_without(monkeypatch):
    y0, ts = torch.ones(2, 1), torch.tensor([0.0, 1.0])
    with pytest.raises(CompileError, match="Try compile=False"):
        ti.odeint(branch, y0, ts, solver=SOLVER, compile=True)
    monkeypatch.setattr(worth, "WORTH", 0.0)
    expected = ti.odeint(branch, y0, ts, solver=SOLVER).value
    assert torch.equal(ti.odeint(branch, y0, ts, solver=SOLVER, compile="auto").value, expected)
    assert not tries(branch)  # it does not try again


def test_auto_waits_until_it_pays(monkeypatch):
    def still(t, y):
        return 0 * y

    assert not tries(still)
    monkeypatch.setattr(worth, "WORTH", 1e-9)
    ti.odeint(still, torch.ones(1, 1), torch.tensor([0.0, 1.0]), solver=SOLVER, compile="auto")
    assert tries(still)
    assert not tries(still, worth.SMALL + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "always"}, "expected False, True or 'auto'"),
        ({"compile": True, "dense": True}, "output times alone"),
        ({"compile": True, "jumps": torch.tensor(0.5)}, "got True with jumps"),
        ({"compile": True, "solver": RK4(dt=0.1)}, "explicit adaptive solver"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ti.odeint(lambda t, y: -y, torch.ones(1, 1), torch.tensor([0.0, 1.0]), **options)


def test_times_that_decrease_are_refused():
    with pytest.raises(CompileError, match="times that decrease"):
        ti.odeint(lambda t, y: -y, torch.ones(1, 1), torch.tensor([1.0, 0.0]), solver=SOLVER, compile=True)
