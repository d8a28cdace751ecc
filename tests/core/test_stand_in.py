"""Modules are never damaged: solves work on stand-ins, and hand back what the function has written to them."""

import copy
import ctypes
import itertools
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchimplicit as ti
from torchimplicit.core import explicit
from torchimplicit.core.explicit import evaluating

F64 = torch.float64
TIGHT = {"solver": ti.Anderson(rtol=1e-11, atol=1e-11, max_steps=200), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-11))}
TIGHT["on_failure"] = "raise"


class Cell(nn.Module):
    def __init__(self, wrap=lambda linear: linear, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, width, dtype=F64)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)
        self.linear = wrap(self.linear)
        self.register_buffer("shift", torch.full((width,), 0.1, dtype=F64))

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x + self.shift)


def inputs():
    return torch.linspace(-1, 1, 12, dtype=F64).view(3, 4)


def gradients(layer, x=None):
    value = layer(inputs() if x is None else x)
    return [value.detach(), *torch.autograd.grad(value.sin().sum(), list(layer.parameters()))]


def same(got, expected, tol=1e-9):
    return all(torch.allclose(a, b, atol=tol, rtol=0) for a, b in zip(got, expected, strict=True))


def marks(module):
    """What must not change: every module, its class, its attributes' names, its parameters and buffers themselves."""
    return [
        (
            id(part),
            type(part),
            *sorted(part.__dict__),
            [id(t) for t in (*part._parameters.values(), *part._buffers.values())],
        )
        for part in module.modules()
    ]


@pytest.mark.parametrize(
    "adjoint", [TIGHT["adjoint"], ti.Unrolled(), ti.Unrolled(checkpoint=True), ti.Phantom()], ids=str
)
def test_nobody_else_sees_a_solve(adjoint):
    seen = []

    class Watched(Cell):
        def forward(self, z, x):
            seen.append((self is not cell, cell.linear.weight is weight, cell.shift is shift))
            return super().forward(z, x)

    cell = Watched()
    weight, shift, before = cell.linear.weight, cell.shift, marks(cell)
    layer = ti.nn.DEQ(cell, TIGHT["solver"], adjoint)
    x = inputs().requires_grad_()
    layer(x).sum().backward()
    if isinstance(adjoint, ti.Implicit):
        torch.autograd.gradgradcheck(layer, (x[:1],))
        torch.func.jacrev(layer)(x[:1].detach())
        torch.vmap(layer)(x[None].detach())
    assert set(seen) == {(True, True, True)}
    assert marks(cell) == before


class Failing(Cell):
    """Raises at some evaluation, or in its own backward pass."""

    def __init__(self, wrap):
        super().__init__(wrap)
        self.fails_at, self.count = -1, 0

    def forward(self, z, x):
        self.count += 1
        if self.count == self.fails_at:
            raise ArithmeticError("in the cell")
        return super().forward(Stumble.apply(z) if self.fails_at == 0 else z, x)


class Stumble(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ArithmeticError("in the cell's backward pass")


@pytest.mark.parametrize("wrap", [lambda linear: linear, parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("fails_at", [0, 1, 2, 5, "backward"])
def test_a_cell_that_raises_leaves_all_as_it_was(wrap, fails_at):
    layer = ti.nn.DEQ(Failing(wrap), **TIGHT)
    layer(inputs())
    before, layer.cell.count = marks(layer), 0
    if fails_at == "backward":
        value = layer(inputs())
        layer.cell.fails_at = layer.cell.count + 1
    else:
        layer.cell.fails_at = fails_at
    with pytest.raises(ArithmeticError, match="in the cell"):
        (value if fails_at == "backward" else layer(inputs())).sum().backward()
    assert marks(layer) == before
    assert layer.cell.count >= 1
    assert not evaluating()
    layer.cell.fails_at = -1
    assert same(gradients(layer.eval()), gradients(ti.nn.DEQ(copy.deepcopy(layer.cell), **TIGHT)))


def test_an_exception_at_any_bytecode_leaves_all_as_it_was():
    """Raised by a trace function in the files that make stand-ins, wherever they are, forward and backward."""
    files = {str(Path(sys.modules[f"torchimplicit.core.{name}"].__file__)) for name in ("explicit", "stand_in")}
    layer = ti.nn.DEQ(Cell(parametrizations.weight_norm), ti.Picard(max_steps=3), on_failure="ignore")
    weight, before = layer.cell.linear.weight, marks(layer.cell)
    count, strike = 0, -1

    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == strike:
                raise KeyboardInterrupt
        return trace

    def run():
        nonlocal count
        count, held = 0, sys.gettrace()
        sys.settrace(trace)
        try:
            layer(inputs()).sum().backward()
        finally:
            sys.settrace(held)

    for strike in itertools.count(1, 53):  # noqa: B007
        try:
            run()
        except KeyboardInterrupt:
            pass
        else:
            break
        torch.set_grad_enabled(True)  # of torch's own contexts nobody says that they withstand this
        explicit._thread.evaluating = False  # only a trace function raises between the two bytecodes that reset it
        assert marks(layer.cell) == before
        assert torch.equal(layer.cell.linear.weight, weight)
    assert strike > 1000, "there are that many"


def test_interrupts_by_another_thread_leave_all_as_it_was():
    layer = ti.nn.DEQ(Cell(parametrizations.weight_norm), **TIGHT)
    expected, before, struck = gradients(layer), marks(layer.cell), 0

    def interrupt(thread, delay):
        time.sleep(delay)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))

    for i in range(40):
        helper = threading.Thread(target=interrupt, args=(threading.get_ident(), 2e-4 * i))
        try:
            helper.start()
            gradients(layer)
            helper.join()
            time.sleep(0)
        except KeyboardInterrupt:
            struck += 1
        helper.join()
        torch.set_grad_enabled(True)
        assert marks(layer.cell) == before
        assert not evaluating()
        assert same(gradients(layer), expected)
    assert struck == 40


def test_an_interrupted_solve_that_is_forgotten_late_writes_nothing_then():
    problem = ti.core.problem.FixedPoint(Counting(), inputs(), (inputs(),))
    cell = problem.f
    solve = problem.bind(problem.explicit.take_tensors(), keep_buffers=True)
    residual = solve.__enter__()
    residual(inputs())
    cell.calls = 7
    solve.gen.close()
    assert cell.calls == 7
    assert float(cell.total) == 0


class Counting(Cell):
    """Writes attributes, buffers and children."""

    def __init__(self):
        super().__init__()
        self.calls, self.passing = 0, None
        self.register_buffer("total", torch.zeros((), dtype=F64))
        self.register_buffer("late", None)

    def forward(self, z, x):
        self.calls += 1
        self.total = self.total + 1
        self.late = torch.ones(1)
        if hasattr(self, "passing"):
            del self.passing
        if self.calls == 1:
            self.child, self.first = nn.Identity(), self.linear
        return super().forward(z, x)


def test_what_the_function_writes_is_handed_back():
    layer = ti.nn.DEQ(Counting(), **TIGHT)
    cell, parameters = layer.cell, list(layer.parameters())
    layer(inputs()).sum().backward()
    assert cell.calls == layer.report.nfev + 1, "one more backward"
    assert float(cell.total) == layer.report.nfev, "buffers are those of the forward pass"
    assert torch.equal(cell.late, torch.ones(1))
    assert isinstance(cell.child, nn.Identity)
    assert cell.first is cell.linear, "not the stand-in of it"
    assert not hasattr(cell, "passing")
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))


def test_solves_within_solves_share_modules():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell(parametrizations.weight_norm)
            self.inner = ti.nn.DEQ(self.cell, **TIGHT)

        def forward(self, z, x):
            return 0.3 * self.inner(z) + 0.3 * self.cell(z, x)

    layer = ti.nn.DEQ(Outer(), **TIGHT)
    got, before = gradients(layer), marks(layer.cell)
    assert layer.cell.inner.report.converged
    z = torch.zeros_like(inputs())
    for _ in range(60):
        y = torch.zeros_like(z)
        for _ in range(60):
            y = layer.cell.cell(y, z)
        z = 0.3 * y + 0.3 * layer.cell.cell(z, inputs())
    assert same(got, [z.detach(), *torch.autograd.grad(z.sin().sum(), list(layer.parameters()))], 1e-8)
    gradients(layer)
    assert marks(layer.cell) == before


def test_a_layer_in_a_solve_over_its_own_cell():
    layer = ti.nn.DEQ(Cell(parametrizations.weight_norm), **TIGHT)
    options = {"solver": TIGHT["solver"], "adjoint": TIGHT["adjoint"]}

    def twice(z, x, layer):
        return layer.cell(z, x + 0.1 * layer(0.5 * z))

    value = ti.fixed_point(twice, inputs(), inputs(), layer, **options).value
    got, before = torch.autograd.grad(value.sin().sum(), list(layer.parameters())), marks(layer)
    z = torch.zeros_like(inputs())
    for _ in range(60):
        y = torch.zeros_like(z)
        for _ in range(60):
            y = layer.cell(y, 0.5 * z)
        z = layer.cell(z, inputs() + 0.1 * y)
    assert same([value, *got], [z, *torch.autograd.grad(z.sin().sum(), list(layer.parameters()))], 1e-8)
    assert marks(layer) == before


class Drawing(nn.Module):
    begun = 0

    def begin_solve(self):
        type(self).begun += 1

    def forward(self, z):
        return z


def in_a_thread(function, *args):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("call", [lambda f, *args: f(*args), in_a_thread], ids=["here", "thread"])
def test_a_solve_within_a_solve_begins_nothing(call):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ti.nn.DEQ(Cell(lambda linear: nn.Sequential(linear, Drawing())))

        def forward(self, z, x):
            with torch.no_grad():
                z = call(self.inner, z)
            return 0.3 * z + x

    layer, begun = ti.nn.DEQ(Outer()), Drawing.begun
    layer(inputs())
    assert Drawing.begun == begun + 1
    layer.cell.inner(inputs())
    assert Drawing.begun == begun + 2


def test_a_solve_of_a_captured_module_within_a_solve_begins_nothing():
    inner, begun = ti.nn.DEQ(Cell(lambda linear: nn.Sequential(linear, Drawing()))), Drawing.begun
    with torch.no_grad():
        ti.fixed_point(lambda z, x: 0.3 * inner(z) + x, torch.zeros(3, 4, dtype=F64), inputs())
    assert Drawing.begun == begun


def listed(cell):
    cell.parts = [cell.linear]
    cell.forward = lambda z, x: torch.tanh(cell.parts[0](z) + x + cell.shift)


def by_method(cell):
    cell.step = partial(cell.linear.forward)
    cell.forward = lambda z, x: torch.tanh(cell.step(z) + x + cell.shift)


def hooked(cell):
    def grab(module, args, output):
        cell.features = output

    cell.linear.register_forward_hook(grab)
    plain = type(cell).forward
    cell.forward = lambda z, x: torch.tanh((plain(cell, z, x), cell.features)[1] + x + cell.shift)


def compiled(cell):
    cell.compile(backend="eager")


@pytest.mark.parametrize("change", [listed, by_method, hooked, compiled])
def test_modules_that_are_reached_by_other_ways_than_as_children(change):
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    expected = gradients(layer)
    change(layer.cell)
    before = marks(layer.cell.linear)
    assert same(gradients(layer), expected)
    with torch.no_grad():
        layer.cell.linear.weight.mul_(0.5)
        assert not same([layer(inputs())], expected[:1]), "the weight's new value counts"
    assert marks(layer.cell.linear) == before


def test_a_compiled_module_is_compiled_once():
    cell = torch.compile(Cell(), backend="eager")
    layer = ti.nn.DEQ(cell, **TIGHT)
    assert same(gradients(layer), gradients(ti.nn.DEQ(Cell(), **TIGHT)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            gradients(layer)


def test_functions_that_capture_what_they_are_handed():
    linear = nn.Linear(4, 4, dtype=F64)

    def solve(f):
        z = ti.fixed_point(f, inputs(), inputs(), linear, solver=TIGHT["solver"], adjoint=TIGHT["adjoint"]).value
        return torch.autograd.grad(z.sum(), list(linear.parameters()))

    expected = solve(lambda z, x, module: torch.tanh(0.3 * module(z) + x))
    assert same(solve(lambda z, x, _: torch.tanh(0.3 * linear(z) + x)), expected)
    boxes = [{"a": linear.forward}]
    assert same(solve(lambda z, x, _: torch.tanh(0.3 * boxes[0]["a"](z) + x)), expected)


@pytest.mark.parametrize("adjoint", [TIGHT["adjoint"], ti.Phantom(steps=200)], ids=str)
def test_the_backward_pass_is_of_the_mode_that_was_solved_in(adjoint):
    class Dropping(Cell):
        def __init__(self):
            super().__init__()
            self.dropout = ti.nn.VariationalDropout(0.5)

        def forward(self, z, x):
            return super().forward(self.dropout(z), x)

    layer = ti.nn.DEQ(Dropping(), TIGHT["solver"], adjoint)
    value = layer(inputs())
    expected = torch.autograd.grad(value.sum(), list(layer.parameters()), retain_graph=True)
    layer.eval()
    assert same(torch.autograd.grad(value.sum(), list(layer.parameters())), expected, 1e-12)
    assert not layer.cell.dropout.training


def test_recurrent_and_old_style_normalised_weights():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(4, 4, batch_first=True, dtype=F64)
            self.linear = nn.utils.spectral_norm(nn.Linear(4, 4, dtype=F64))

        def forward(self, z, x):
            return 0.4 * self.rnn(z)[0] + 0.2 * self.linear(z) + x

    layer = ti.nn.DEQ(Recurrent().eval(), **TIGHT)
    x = inputs()[None]
    expected = gradients(ti.nn.DEQ(layer.cell, TIGHT["solver"], ti.Unrolled()), x)
    before = [(id(p), [id(w) for w in layer.cell.rnn._flat_weights]) for p in layer.parameters()]
    assert same(gradients(layer, x), expected, 1e-8)
    assert [(id(p), [id(w) for w in layer.cell.rnn._flat_weights]) for p in layer.parameters()] == before


def test_scripted_modules_are_for_inference():
    cell = Cell()
    layer, expected = ti.nn.DEQ(torch.jit.script(cell), **TIGHT), gradients(ti.nn.DEQ(cell, **TIGHT))
    with torch.no_grad():
        assert same([layer(inputs())], expected[:1])
    with pytest.raises(TypeError, match=r"got a Cell compiled by torch.jit.*try the module before torch.jit.script"):
        layer(inputs())
