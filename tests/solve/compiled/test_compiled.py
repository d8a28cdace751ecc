"""Compiled steps towards points give what plain ones give. Traced, but for one test of what machines make of them."""

import math
import shutil
from typing import Any

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.core.compiled import kernel as compiling
from torchimplicit.core.compiled import worth
from torchimplicit.core.compiled.kernel import CompileError, Fused
from torchimplicit.solve import samples
from torchimplicit.solve.compiled import kernel

ANDERSON = ti.Anderson(window=3, period=2, rtol=1e-6, max_steps=60)


class Cell(nn.Module):
    """`tanh(z w + x)`, each sample times a number of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 4, dtype=torch.float64)
        self.power = 1.0
        with torch.no_grad():
            self.inner.weight.mul_(0.9 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, z, x, gain):
        return gain * self.power * torch.tanh(self.inner(z) + x)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK", 2)
        patch.setattr(compiling, "BACKEND", "eager")
        yield


@pytest.fixture(scope="module")
def cell():
    return Cell()


def given(batch=5):
    torch.manual_seed(1)
    x = torch.randn(batch, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.linspace(0.3, 1.2, batch, dtype=torch.float64).unsqueeze(1).requires_grad_()
    return x, gain


def solve(cell, compile, solver: Any = ANDERSON, inputs=None, **options):
    x, gain = given() if inputs is None else inputs
    options = {"on_failure": "ignore", "compile": compile} | options
    return ti.fixed_point(cell, torch.zeros_like(x), x, gain, solver=solver, **options)


def compare(cell, solver: Any, inputs=None, **options):
    plain, fused = (solve(cell, compile, solver, inputs, **options) for compile in (False, True))
    for name in ("status", "steps"):
        assert torch.equal(getattr(fused.report, name), getattr(plain.report, name)), name
    for got, expected in ((fused.value, plain.value), (fused.report.residual, plain.report.residual)):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    return plain, fused


@pytest.mark.parametrize(
    "solver",
    [
        ANDERSON,
        ti.Picard(damping=0.9, rtol=1e-3, max_steps=60),
        ti.Polyalgorithm(first=ti.Anderson(window=3, period=2), after=5, rtol=1e-6),
        ti.Anderson(window=3, period=2, rtol=1e-6, max_steps=7),
    ],
)
def test_values_steps_and_gradients_are_those_of_plain_steps(cell, solver):
    x, gain = given()
    found = compare(cell, solver, (x, gain))
    weight = torch.linspace(1, 2, x.numel(), dtype=torch.float64).view_as(x)
    plain, fused = (torch.autograd.grad((weight * s.value).sum(), (x, gain, cell.inner.weight)) for s in found)
    for got, expected in zip(fused, plain, strict=True):
        assert torch.allclose(got, expected, rtol=1e-7, atol=1e-10)


def test_a_sample_that_fails_is_told_and_leaves_the_others_alone(cell):
    x, gain = given()
    good = solve(cell, True)
    with torch.no_grad():
        lost, grown = x.clone(), gain.clone()
        lost[1, 0], grown[3] = math.nan, 60.0

    def straight(z, x, gain):
        return gain * z + x

    _, fused = compare(cell, ANDERSON, (lost, gain))
    assert fused.status.tolist()[1] == int(ti.Status.NON_FINITE)
    assert torch.equal(fused.value[[0, 2, 3, 4]], good.value[[0, 2, 3, 4]])
    _, fused = compare(straight, ti.Picard(rtol=1e-4, max_steps=300), (x.detach(), grown))
    assert fused.status.tolist()[3] == int(ti.Status.DIVERGED)
    assert {int(ti.Status.CONVERGED)} < set(fused.status.tolist())


def test_numbers_whose_squares_are_none_are_measured_by_the_loop():
    x, gain = (each.detach().float() for each in given())
    compare(lambda z, x, gain: gain * z + x, ti.Picard(rtol=1e-3, max_steps=60), (1e25 * x, 0.5 * gain))
    compare(lambda z, x, gain: gain * z + x, ti.Picard(rtol=1e-3, atol=0.0, max_steps=60), (1e-30 * x, 0.5 * gain))


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_later_solves_compile_nothing_whatever_their_tolerance_and_one_more_for_all_batches(cell, monkeypatch):
    solve(cell, True)
    before, calls = graphs(), []
    original = Fused.__call__
    monkeypatch.setattr(Fused, "__call__", lambda self, *inputs: calls.append(1) or original(self, *inputs))
    for rtol in (1e-6, 1e-4):
        solution = solve(cell, True, ti.Anderson(window=3, period=2, rtol=rtol, max_steps=60))
        assert solution.nfev > 1 + 2 * kernel.CHUNK
    assert graphs() == before
    assert len(calls) == 2  # the first of every solve is checked, the others are straight
    for batch in (4, 3, 7, 5):
        compare(cell, ANDERSON, given(batch))
    assert graphs() == before + 1


def test_a_changed_attribute_is_seen(cell):
    cell.power = 0.5
    try:
        compare(cell, ANDERSON)
    finally:
        cell.power = 1.0


def test_one_coupled_problem_and_images_with_channels_last():
    def smooth(z):
        return 0.5 * z.roll(1, 1) + 1

    picture = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    start = torch.arange(96.0).view(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for z0, dims in ((picture, 1), (start, 1), (torch.zeros(3, 2), 0)):
        plain, fused = (
            ti.fixed_point(smooth, z0, solver=ti.Picard(), compile=c, batch_dims=dims) for c in (False, True)
        )
        assert torch.allclose(plain.value, fused.value, rtol=1e-6)
        assert torch.equal(plain.steps, fused.steps)


def test_a_large_batch_goes_on_without_those_that_have_arrived(monkeypatch):
    monkeypatch.setattr("torchimplicit.solve.compiled.judge.SMALL", 1)
    monkeypatch.setattr(samples, "SMALL", 1)
    solver, sizes, rate = ti.Picard(rtol=1e-3, max_steps=60), [], torch.linspace(0.1, 0.8, 6).unsqueeze(1)

    def watched(z, rate):
        if not torch.compiler.is_compiling():
            sizes.append(len(z))
        return rate * z + 1

    plain, fused = (
        ti.fixed_point(watched, torch.zeros(6, 1), rate, solver=solver, compile=compile, batched_args=batched)
        for compile, batched in ((False, None), (True, (0,)))
    )
    assert torch.equal(fused.status, plain.status)
    assert torch.equal(fused.steps, plain.steps)
    assert torch.allclose(fused.value, plain.value)
    assert min(sizes) <= 3


def branch(z):
    return 0.5 * z if float(z.sum()) > 0 else 0.25 * z


def test_a_function_that_cannot_be_compiled_is_named_and_auto_goes_on_without(monkeypatch):
    with pytest.raises(CompileError, match="Try compile=False"):
        ti.fixed_point(branch, torch.ones(2, 1), compile=True)
    monkeypatch.setattr(worth, "WORTH", 0.0)
    expected = ti.fixed_point(branch, torch.ones(2, 1)).value
    assert worth.pays(branch)
    assert torch.equal(ti.fixed_point(branch, torch.ones(2, 1), compile="auto").value, expected)
    assert not worth.pays(branch)  # it does not try again


def test_auto_waits_until_it_pays(monkeypatch):
    def still(z):
        return 0.5 * z

    before = graphs()
    monkeypatch.setattr(worth, "WORTH", 1e-9)
    for count in (0, 1):  # the second time it has cost enough
        ti.fixed_point(still, torch.ones(2, 1), solver=ti.Picard(), compile="auto")
        assert graphs() == before + count
    ti.fixed_point(lambda z: 0.25 * z, torch.ones(worth.SMALL + 1, 1), solver=ti.Picard(), compile="auto")
    assert graphs() == before + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "always"}, "expected False, True or 'auto'"),
        ({"compile": True, "trace": True}, "nothing but its solution"),
        ({"compile": True, "save_steps": [0]}, "nothing but its solution"),
        ({"compile": True, "adjoint": ti.Unrolled()}, "nothing but its solution"),
        ({"compile": True, "solver": ti.Newton()}, "try Anderson"),
        ({"compile": True, "solver": ti.Anderson(window=50)}, "try Anderson"),
    ],
)
def test_what_it_is_not_for_is_refused_beforehand(cell, options, message):
    with pytest.raises(ValueError, match=message):
        solve(cell, **options)


def test_states_that_kernels_do_not_take_are_refused_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(worth, "WORTH", 0.0)

    def half(z):
        return tuple(0.5 * each for each in z)

    pair = (torch.ones(2, 1), torch.ones(2, 2))
    with pytest.raises(CompileError, match="one real tensor"):
        ti.fixed_point(half, pair, compile=True)
    assert ti.fixed_point(half, pair, compile="auto").report.converged


def test_a_layer_compiles_its_cell(cell):
    x, gain = given()
    layers = [ti.nn.DEQ(cell, solver=ANDERSON, compile=compile) for compile in (False, True)]
    found = [layer(x, gain) for layer in layers]
    assert torch.allclose(*found, rtol=1e-9)
    grads = [torch.autograd.grad(value.sum(), (x, *cell.parameters())) for value in found]
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-10)
    with pytest.raises(ValueError, match="try Anderson"):
        ti.nn.DEQ(cell, solver=ti.Broyden(), compile=True)


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler, which torch.compile needs")
def test_machine_code_agrees_and_a_sample_is_the_same_to_the_bit_whoever_is_beside_it(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    cell, (x, gain) = Cell(), (each.detach() for each in given())
    solver = ti.Anderson(window=2, period=2, rtol=1e-6, max_steps=60)
    _, good = compare(cell, solver, (x, gain))
    others = x.clone()
    others[1], others[3] = math.nan, 100 * others[3]
    _, fused = compare(cell, solver, (others, gain))
    assert torch.equal(fused.value[[0, 2, 4]], good.value[[0, 2, 4]])
    assert torch.equal(fused.residual[[0, 2, 4]], good.residual[[0, 2, 4]])
