"""Compiled stochastic steps give what plain ones give. Traced, but for one test that goes on to machine code."""

import gc
import shutil
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.core.compiled import kernel as compiling
from torchimplicit.core.compiled import worth
from torchimplicit.core.compiled.kernel import CompileError
from torchimplicit.path.compiled.engine import IfPossible
from torchimplicit.sde import (
    SRA1,
    SRID2,
    Brownian,
    EulerMaruyama,
    Heun,
    LogODE,
    Midpoint,
    Milstein,
    ReversibleHeun,
    ShARK,
    Tree,
)
from torchimplicit.sde.compiled import kernel
from torchimplicit.sde.compiled.engine import choose_engine

# torch's own, in tracing
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
TS = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
NOISE = {SRA1: "additive", ShARK: "additive", Milstein: "general", LogODE: "general"}


class Drift(nn.Module):
    """Of two unknowns that see each other, in a module as users write them."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([[1.0, 0.7], [0.2, 1.5]], dtype=torch.float64))

    def forward(self, t, y, drive):
        return -(y @ self.rate) * drive + 0.1 * torch.sin(t)


def diagonal(t, y, drive):
    return 0.3 * torch.cos(y) * drive


def additive(t, y, drive):
    return (0.2 * drive * (1 + t)).expand_as(y)


def general(t, y, drive):
    return torch.stack([0.3 * y.flip(1), 0.1 * y * drive + 0.1, 0.2 * torch.sin(y)], 2)


DIFFUSIONS = {"diagonal": diagonal, "additive": additive, "general": general}


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK", 2)
        patch.setattr(compiling, "BACKEND", "aot_eager")
        yield


@pytest.fixture(scope="module")
def drift():
    return Drift()


def solve(drift, compile, solver, adjoint: Any = ti.Checkpointed(), ts=TS, seed=5, start=0.5, **options):
    y0 = torch.linspace(start, 1.5, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    drive = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
    noise = NOISE.get(type(solver), "diagonal")
    solution = ti.sdeint(
        drift, DIFFUSIONS[noise], y0, ts, drive, solver=solver, noise=noise, calculus=solver.calculus,
        brownian=seed, adjoint=adjoint, compile=compile, **options,
    )  # fmt: skip
    weight = torch.linspace(1, 2, solution.value.numel(), dtype=torch.float64).view_as(solution.value)
    loss = (weight * solution.value).sum() + (0 if solution.kl is None else solution.kl[-1].sum())
    return solution, torch.autograd.grad(loss, (y0, drive, drift.rate))


def compare(drift, solver, **options):
    """Both ways of making the steps."""
    plain, plain_grads = solve(drift, False, solver, **options)
    fused, fused_grads = solve(drift, True, solver, **options)
    assert torch.allclose(fused.value, plain.value, rtol=0, atol=1e-11)
    for got, expected in zip(fused_grads, plain_grads, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-11)
    for name in ("status", "accepted", "rejected", "reached"):
        assert torch.equal(getattr(fused.report, name), getattr(plain.report, name)), name
    if plain.kl is not None:
        assert torch.allclose(fused.kl, plain.kl, rtol=0, atol=1e-11)
    return fused


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "method", [EulerMaruyama, Milstein, SRID2, Heun, Midpoint, SRA1, ShARK, LogODE, ReversibleHeun]
)
def test_every_method_gives_the_values_and_gradients_of_its_plain_steps(drift, method):
    compare(drift, method(dt=0.02 if method is ReversibleHeun else 0.1))  # its two states part where steps are long


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler, which torch.compile needs")
def test_machine_code_agrees(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")

    def solved(compile):
        y0, rate = torch.ones(3, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        solution = ti.sdeint(
            lambda t, y, rate: -rate * y, lambda t, y, rate: rate * y, y0, TS, rate, solver=EulerMaruyama(dt=0.1),
            brownian=1, compile=compile,
        )  # fmt: skip
        return solution.value.detach(), *torch.autograd.grad(solution.value.square().sum(), rate)

    for got, expected in zip(solved(True), solved(False), strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-11)


def test_nothing_is_differentiated_that_is_not_asked_for():
    y0 = torch.ones(2, 1, dtype=torch.float64)
    for adjoint in (ti.Direct(), ti.Checkpointed()):
        solution = ti.sdeint(
            lambda t, y: -y, lambda t, y: y, y0, TS, solver=EulerMaruyama(dt=0.1), adjoint=adjoint, compile=True
        )
        assert not solution.value.requires_grad


def test_direct_differentiates_kernels_and_few_checkpoints_make_them_again(drift):
    compare(drift, EulerMaruyama(dt=0.05), adjoint=ti.Direct())
    compare(drift, EulerMaruyama(dt=0.05), adjoint=ti.Checkpointed(checkpoints=2))


def test_the_graph_of_kernels_is_gone_through_again_and_at_every_order(drift):
    """Once more where it is retained, and by second derivatives along steps made again."""
    y0 = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    drive, found = torch.ones(3, 1, dtype=torch.float64), []

    def end(y0, compile):
        return ti.sdeint(
            drift, diagonal, y0, TS, drive, solver=EulerMaruyama(dt=0.1), brownian=1, adjoint=ti.Direct(),
            compile=compile,
        ).value[-1].sin().sum()  # fmt: skip

    for compile in (False, True):
        loss = end(y0, compile)
        again = [torch.autograd.grad(loss, (y0, drift.rate), retain_graph=True) for _ in range(2)]
        assert all(torch.equal(*each) for each in zip(*again, strict=True))
        (slope,) = torch.autograd.grad(loss, y0, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), (y0, drift.rate))
        found.append([*again[0], slope.detach(), *second])
        loss = end(y0, compile)
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("steps", [2, 6])
def test_kernels_made_again_lead_where_they_led_or_it_is_told(steps):
    """Those of `Direct` are never made again, so that whatever was drawn is differentiated."""
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([0.0, 0.1 * steps], dtype=torch.float64)
    fields = {"same": lambda t, y: -y, "drawn": lambda t, y: -torch.nn.functional.dropout(y, 0.5)}
    for adjoint in (ti.Checkpointed(), ti.Direct()):
        for name, field in fields.items():
            torch.manual_seed(0)
            solution = ti.sdeint(
                field, lambda t, y: 0.1 * y, y0, ts, solver=EulerMaruyama(dt=0.1), brownian=1, adjoint=adjoint,
                on_failure="ignore", compile=True,
            )  # fmt: skip
            torch.autograd.grad(solution.value.sum(), y0)
            told = solution.backward is not None and bool((solution.backward.status == ti.Status.DRIFTED).any())
            assert told == (name == "drawn" and adjoint == ti.Checkpointed())


def test_outputs_within_a_kernel_and_at_its_end_are_the_same(drift):
    """The kernel that tells of its last state alone, and the one that tells of all."""
    compare(drift, EulerMaruyama(dt=0.1), ts=torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=torch.float64))
    compare(drift, EulerMaruyama(dt=0.1), ts=torch.tensor([0.0, 0.1, 0.6, 0.9], dtype=torch.float64))


def test_kernels_go_forward_where_steps_are_taken_back(drift):
    compare(drift, Heun(dt=0.02), adjoint=ti.Reversible())


@pytest.mark.parametrize("kl", ["quadratic", "pathwise"])
def test_a_prior_is_compiled_too(drift, kl):
    compare(drift, EulerMaruyama(dt=0.1), prior=lambda t, y, drive: -y, kl=kl)


def test_neither_seeds_nor_steps_nor_times_compile_anything(drift):
    solve(drift, True, EulerMaruyama(dt=0.1))
    before = graphs()
    for number, dt in enumerate((0.1, 0.05, 0.013)):
        compare(drift, EulerMaruyama(dt=dt, max_steps=500), seed=number, ts=TS + number)
    assert graphs() == before


def test_a_method_that_evaluates_once_a_step_does_so_in_a_kernel(monkeypatch):
    monkeypatch.setattr(kernel, "CHUNK", 10)

    def evaluations(steps):
        same: Any = lambda t, y: 0.1 * y  # noqa: E731
        return ti.sdeint(
            same, same, torch.ones(2, 1), torch.tensor([0.0, 1.0]), solver=ReversibleHeun(dt=1 / steps),
            calculus="stratonovich", brownian=1, compile=True,
        ).report.nfev  # fmt: skip

    assert evaluations(40) - evaluations(20) == 2 * 2 * (10 + 1)  # of drift and diffusion, and at a kernel's start


def test_what_was_checked_once_is_the_users_function_of_this_solve():
    """Calls in a row check nothing; the first one of every solve does."""

    class Scaled(torch.nn.Module):
        scale = 1.0

        def forward(self, t, y):
            return self.scale * y

    drift, y0 = Scaled(), torch.ones(2, 1, dtype=torch.float64)
    for scale in (1.0, -1.0):
        drift.scale = scale
        plain, fused = (
            ti.sdeint(drift, lambda t, y: 0.1 * y, y0, TS, solver=EulerMaruyama(dt=0.1), brownian=1, compile=compile)
            for compile in (False, True)
        )
        assert torch.allclose(fused.value, plain.value, rtol=1e-12)


def test_a_kernel_keeps_no_tensor_alive(drift):
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    drive = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    solution = ti.sdeint(drift, diagonal, y0, TS, drive, solver=EulerMaruyama(dt=0.1), brownian=1, compile=True)
    solution.value.sum().backward()
    known = weakref.ref(drive)
    del solution, y0, drive
    gc.collect()
    assert known() is None


def test_a_sample_that_fails_is_held_where_plain_steps_hold_it():
    def explodes(t, y, drive):
        return torch.where(y > 1.2, torch.nan, 0.5 * y)

    def solved(compile):
        y0 = torch.tensor([[0.2], [1.1], [0.4]], dtype=torch.float64, requires_grad=True)
        drive = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
        solution = ti.sdeint(
            explodes, lambda t, y, drive: 0.01 * y * drive, y0, TS, drive, solver=EulerMaruyama(dt=0.05), brownian=1,
            compile=compile, on_failure="ignore",
        )  # fmt: skip
        return solution, torch.autograd.grad(solution.value.sum(), (y0, drive))

    (plain, plain_grads), (fused, fused_grads) = solved(False), solved(True)
    assert torch.equal(fused.report.status, plain.report.status)
    assert not plain.report.converged
    assert torch.equal(fused.report.reached, plain.report.reached)
    assert torch.allclose(fused.value, plain.value, rtol=0, atol=1e-12)
    for got, expected in zip(fused_grads, plain_grads, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10)


def test_no_step_at_the_end_spoils_a_gradient():
    """The last chunk is filled up with steps that are none: nothing is asked at the last state."""
    y0 = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    solution = ti.sdeint(
        lambda t, y: -y.sqrt() / y0.detach().sqrt(), lambda t, y: 0 * y, y0, torch.tensor([0.0, 1.0]).double(),
        solver=EulerMaruyama(dt=1.0), brownian=1, compile=True,
    )  # fmt: skip
    assert float(solution.value[-1].detach()) == 0
    assert torch.autograd.grad(solution.value[-1].sum(), y0)[0].isfinite().all()


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()])
def test_higher_derivatives_and_times_are_those_of_plain_steps(drift, adjoint):
    def second(compile):
        y0 = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
        drive, ts = torch.ones(2, 1, dtype=torch.float64), TS.clone().requires_grad_()
        run: Any = lambda ts: ti.sdeint(  # noqa: E731
            drift, diagonal, y0, ts, drive, solver=EulerMaruyama(dt=0.2), brownian=3, adjoint=adjoint,
            compile=compile,
        ).value[-1].square().sum()  # fmt: skip
        (first,) = torch.autograd.grad(run(TS), y0, create_graph=True)
        return torch.autograd.grad(first.sum(), y0)[0], torch.autograd.grad(run(ts), ts)[0]

    for got, expected in zip(second(True), second(False), strict=True):
        assert torch.allclose(got, expected, rtol=1e-10)


def branch(t, y):
    return -y if float(y.detach().sum()) > 0 else y


def tries(drift, size: int = 2) -> bool:
    solver, source = EulerMaruyama(dt=0.1), Brownian(seed=1)
    return isinstance(choose_engine("auto", drift, solver, source, TS, size, True), IfPossible)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()])
def test_what_cannot_be_compiled_is_named_and_auto_goes_on_without(monkeypatch, adjoint):
    y0, noise = torch.ones(2, 1, dtype=torch.float64, requires_grad=True), lambda t, y: 0.1 * y

    def solved(compile):
        return ti.sdeint(branch, noise, y0, TS, solver=EulerMaruyama(dt=0.1), brownian=1, adjoint=adjoint,
                         compile=compile).value  # fmt: skip

    with pytest.raises(CompileError, match="Try compile=False"):
        solved(True)
    monkeypatch.setattr(worth, "WORTH", 0.0)
    monkeypatch.setattr(worth, "_seconds", worth.WeakKeyDictionary())
    expected = solved(False)
    assert tries(branch)
    assert torch.equal(solved("auto"), expected)
    assert not tries(branch)  # it does not try again


def test_auto_waits_until_it_pays(monkeypatch):
    def still(t, y):
        return 0 * y

    assert not tries(still)
    monkeypatch.setattr(worth, "WORTH", 1e-9)
    ti.sdeint(still, still, torch.ones(1, 1), torch.tensor([0.0, 1.0]), solver=EulerMaruyama(), compile="auto")
    assert tries(still)
    assert not tries(still, worth.SMALL + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": True}, "output times alone"),
        ({"compile": "always"}, "expected False, True or 'auto'"),
        ({"solver": Heun(), "calculus": "stratonovich"}, "chooses its steps"),
        ({"ts": torch.tensor([[0.0, 0.0], [1.0, 2.0]])}, "the same for all samples"),
        ({"brownian": Brownian(seed=1, base=0.1)}, "by the number of a step alone"),
        ({"brownian": Tree(seed=1)}, "by the number of a step alone"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    options = {"solver": EulerMaruyama(dt=0.1), "compile": True, "ts": torch.tensor([0.0, 1.0])} | options
    ts = options.pop("ts")
    with pytest.raises(ValueError, match=message):
        ti.sdeint(lambda t, y: -y, lambda t, y: y, torch.ones(2, 1), ts, **options)


def test_nested_states_and_vmap_are_refused():
    euler, ts = EulerMaruyama(dt=0.5), torch.tensor([0.0, 1.0])
    same: Any = lambda t, y: y  # noqa: E731
    with pytest.raises(CompileError, match="one real tensor"):
        ti.sdeint(same, same, (torch.ones(2, 1),), ts, solver=euler, compile=True)
    with pytest.raises(CompileError, match="vmap"):
        torch.vmap(lambda y: ti.sdeint(same, same, y, ts, solver=euler, brownian=1, compile=True).value)(
            torch.ones(2, 2, 1)
        )


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=repr)
def test_a_start_that_is_an_argument_too_stays_what_it_was(adjoint):
    """Later chunks begin elsewhere, and are told so by the tensor's place in the first call."""
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2).requires_grad_()

    def run(compile):
        value = ti.sdeint(
            lambda t, y, x: x - 2 * y, lambda t, y, x: 0.3 * y.cos() + 0.1 * x, y0, torch.tensor([0.0, 1.0]).double(),
            y0, solver=EulerMaruyama(dt=0.02), brownian=3, adjoint=adjoint, compile=compile,
        ).value  # fmt: skip
        return value, torch.autograd.grad(value.sin().sum(), y0)[0]

    for got, expected in zip(run(True), run(False), strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
