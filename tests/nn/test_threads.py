"""One layer in many threads: every value and gradient is right, and the parameters stay the optimiser's."""

import copy
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchimplicit as ti

THREADS, CALLS = 8, 12
F64 = torch.float64
TIGHT = {"solver": ti.Anderson(rtol=1e-11, atol=1e-11, max_steps=200), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-11))}
TIGHT["on_failure"] = "raise"


@pytest.fixture(autouse=True)
def eager_switches():
    """Threads take turns all the time, so that what can go wrong does."""
    held = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(held)


class Cell(nn.Module):
    def __init__(self, wrap=lambda linear: linear):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4, dtype=F64)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)
        self.linear = wrap(self.linear)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.linear(z) + x)


def inputs(i=0):
    return torch.linspace(-1, 1 + 0.1 * i, 8, dtype=F64).view(2, 4)


def in_threads(*works, threads=THREADS, calls=CALLS):
    """Calls these functions of the thread's number again and again, each in its share of the threads, all at once."""
    failures, barrier = [], threading.Barrier(threads)

    def run(i):
        try:
            barrier.wait()
            for _ in range(calls):
                works[i % len(works)](i)
        except BaseException as error:  # whatever it is, it is the test's
            failures.append(error)
            raise

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    held, threading.excepthook = threading.excepthook, lambda _: None
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        threading.excepthook = held
    if failures:
        raise failures[0]


def check(got, expected, tol=1e-8):
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < tol


WRAPS = {
    "plain": lambda linear: linear,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": lambda linear: parametrizations.spectral_norm(linear, n_power_iterations=30),
    "old spectral norm": nn.utils.spectral_norm,
}
ADJOINTS = [TIGHT["adjoint"], ti.Unrolled(), ti.Phantom(steps=3)]


def beside(layer, calls=CALLS):
    """Training, evaluation and inference beside each other in threads; says whether all parameters are still there."""
    names = [name for name, _ in layer.named_parameters()]
    parameters, buffers = list(layer.parameters()), list(layer.buffers())
    optimizer = torch.optim.SGD(parameters, 0.1)

    def trained(i):
        value = layer(inputs(i))
        return [value.detach(), *torch.autograd.grad(value.sin().sum(), parameters)]

    expected = [trained(i) for i in range(THREADS)]

    def evaluate(i):
        with torch.no_grad():
            check([layer(inputs(i))], expected[i][:1])

    def infer(i):
        with torch.inference_mode():
            check([layer(inputs(i)).clone()], expected[i][:1])

    in_threads(lambda i: check(trained(i), expected[i]), evaluate, infer, calls=calls)
    assert [name for name, _ in layer.named_parameters()] == names
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(layer.buffers(), buffers, strict=True))
    before = layer(inputs())
    before.sin().sum().backward()
    optimizer.step()
    assert (layer(inputs()) - before).abs().max() > 1e-3, "the layer follows its optimiser"


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("wrap", WRAPS)
def test_training_beside_evaluation(wrap, adjoint):
    cell = Cell(WRAPS[wrap])
    for _ in range(60):  # of a power iteration, so that it has arrived
        cell(inputs(), inputs())
    beside(ti.nn.DEQ(cell, TIGHT["solver"], adjoint).train(wrap != "old spectral norm"))


class Dropping(Cell):
    def __init__(self):
        super().__init__()
        self.dropout = ti.nn.VariationalDropout(0.5)

    def forward(self, z, x):
        return super().forward(self.dropout(z), x)


def test_every_solve_has_its_own_mask_forward_and_backward():
    layer, seeds = ti.nn.DEQ(Dropping(), **TIGHT), []
    weight, bias = layer.parameters()

    def train(i):
        x = inputs(i).requires_grad_()
        value = layer(x)
        (got,) = torch.autograd.grad(value.sin().sum(), x)
        # The mask, from the value: atanh z = W (m z) / 2 + b / 2 + x, and every element of m is 0 or 2.
        drive = torch.linalg.solve(0.5 * weight, (value.atanh() - x - 0.5 * bias).detach().mT).mT
        mask = drive / value.detach()
        assert (mask.minimum((mask - 2).abs()).abs()).max() < 1e-6
        z = torch.zeros_like(value)
        mask = mask.round()
        for _ in range(80):
            z = torch.tanh(0.5 * layer.cell.linear(mask * z) + x)
        check([value, got], [z, torch.autograd.grad(z.sin().sum(), x)[0]], 1e-6)
        seeds.append(mask.flatten().tolist())

    in_threads(train)
    assert len({tuple(seed) for seed in seeds}) > 30, "of 96 draws out of 256"


def test_warm_starts_of_all_threads_end_where_they_shall():
    layer = ti.nn.DEQ(Cell(), ti.Broyden(rtol=1e-10, atol=1e-10), warm_start=True, on_failure="raise")
    expected = [layer(inputs(i)).detach() for i in range(THREADS)]

    def train(i):
        value = layer(inputs(i))
        check([value], expected[i : i + 1])
        value.sum().backward()

    def forget(i):
        layer.reset()
        layer(inputs(i)[:1])

    in_threads(train, train, forget)


def test_a_report_is_of_one_solve_and_a_shallow_copy_has_its_own():
    layer, seen = ti.nn.DEQ(Cell(), ti.Picard(rtol=1e-9, atol=0), on_failure="raise"), []
    steps = {}
    for i in range(THREADS):
        layer(inputs(i)[: 1 + i % 2])
        steps[i] = layer.report.steps.tolist()
    parameters = list(layer.parameters())

    def solve(i):
        mine = copy.copy(layer)
        mine(inputs(i)[: 1 + i % 2])
        assert mine.report.steps.tolist() == steps[i]
        layer(inputs(i)[: 1 + i % 2])
        seen.append(layer.report.steps.tolist())
        assert all(a is b for a, b in zip(mine.parameters(), parameters, strict=True))

    in_threads(solve)
    assert all(each in steps.values() for each in seen)
    with torch.no_grad():
        twin, value = copy.copy(layer), layer(inputs())
        for parameter in parameters:
            parameter.mul_(0.5)
        assert torch.equal(twin(inputs()), layer(inputs()))
        assert not torch.equal(twin(inputs()), value)


def test_a_failing_solve_raises_in_its_own_thread_alone():
    layer = ti.nn.DEQ(Cell(), ti.Picard(rtol=1e-9, atol=0, max_steps=60), on_failure="raise")
    expected = layer(inputs()).detach()

    def fine(i):
        check([layer(inputs())], [expected])

    def fails(i):
        with pytest.raises(ti.ConvergenceError) as caught:
            layer(inputs() * torch.nan)
        assert not caught.value.report.converged

    in_threads(fine, fails)


def test_steps_that_a_map_chooses_are_those_of_its_own_solve():
    split = ti.optim.ProximalGradient(lambda z, c: (c * z.square()).sum(1) / 2 - z.sum(1), ti.optim.prox.l1)

    def solve(i):
        curvature = torch.full((2, 3), 10.0 ** (i - 4), dtype=F64, requires_grad=True)
        z = ti.fixed_point(split, torch.ones(2, 3, dtype=F64), curvature, solver=ti.Picard(rtol=1e-12)).value
        check([z * curvature], [torch.zeros_like(z)], 1e-9)  # 1 - 1 is what a threshold of one leaves
        check([ti.fixed_point(split, z + 1, curvature, solver=ti.Picard(rtol=1e-12)).value], [z], 1e-9)

    in_threads(solve)


class Repeated(ti.nn.NeuralSDE):
    """A draw that is the same at every call."""

    def forward(self, y0):
        return super().forward(y0, brownian=1)


def test_paths_and_programs():
    ode = ti.nn.NeuralODE(nn.Sequential(Cell(parametrizations.weight_norm).linear, nn.Tanh()), autonomous=True)
    program = ti.nn.QP(4, inequalities=3).double()

    def trained(layer, i):
        value = layer(inputs(i))
        return [value.detach(), *torch.autograd.grad(value.sin().sum(), list(layer.parameters()), allow_unused=True)]

    layers = (ode, Repeated(ode.field, Cell().linear, autonomous=True), program)
    expected = [[[g for g in trained(layer, i) if g is not None] for i in range(THREADS)] for layer in layers]
    for layer, wanted in zip(layers, expected, strict=True):
        in_threads(lambda i, a=layer, b=wanted: check([g for g in trained(a, i) if g is not None], b[i]), calls=4)


def replicas_of(module, count):
    """What `torch.nn.parallel.replicate` makes, where there are no devices to copy to."""
    modules, replicas = list(module.modules()), []
    for _ in range(count):
        copies = {part: part._replicate_for_data_parallel() for part in modules}
        for part, replica in copies.items():
            replica._former_parameters = {}
            for key, child in part._modules.items():
                setattr(replica, key, None if child is None else copies[child])
            for key, parameter in part._parameters.items():
                if parameter is None:
                    replica._parameters[key] = None
                    continue
                moved = parameter.view_as(parameter)
                setattr(replica, key, moved)
                replica._former_parameters[key] = moved
            for key, buffer in part._buffers.items():
                setattr(replica, key, None if buffer is None else buffer.clone())
        replicas.append(copies[module])
    return replicas


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(4, 4, dtype=F64)

    def forward(self, z, x):
        return 0.4 * self.rnn(z[None])[0][0] + x  # one step of time


@pytest.mark.parametrize("cell", [Cell(wrap) for wrap in WRAPS.values()] + [Recurrent(), Dropping()], ids=str)
def test_replicas_of_data_parallel(cell):
    layer = ti.nn.DEQ(cell, **TIGHT).eval()
    expected = torch.autograd.grad(sum(layer(inputs(i)).sin().sum() for i in range(2)), list(layer.parameters()))
    replicas, values = replicas_of(layer, 2), {}

    def solve(i):
        values[i] = replicas[i](inputs(i))

    in_threads(solve, threads=2, calls=1)
    loss = sum(value.sin().sum() for value in values.values())
    check(torch.autograd.grad(loss, list(layer.parameters())), expected)
    assert all(isinstance(parameter, nn.Parameter) for parameter in layer.parameters())
