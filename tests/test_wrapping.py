"""What people wrap around a layer: compilers and exporters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit.optim import projection, prox

# Torch looks for the gradients of what lies between two graphs, and hides the warning about it where it is no error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


class Between(nn.Module):
    """A layer, or a function, with something to compile before and after it."""

    def __init__(self, layer: Callable):
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(4, 4), layer, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(torch.relu(self.before(x))))


def quartic(z, x):
    return (z - x).square().sum(1) + z.pow(4).sum(1)


def program(x):
    return ti.qp(torch.eye(4).double(), x, C=torch.eye(4).double(), l=-x.new_ones(4), u=x.new_ones(4)).value


def regulator(x):
    eye = torch.eye(4, dtype=x.dtype)
    return ti.lqr(C=torch.eye(5, dtype=x.dtype), F=torch.cat([eye, eye[:, :1]], 1), x0=x, horizon=3).x[:, -1]


LAYERS = {
    "deq": lambda: ti.nn.DEQ(Cell()),
    "newton": lambda: ti.nn.DEQ(Cell(), solver=ti.Newton(), adjoint=ti.Implicit(ti.LU())),
    "unrolled": lambda: ti.nn.DEQ(Cell(), adjoint=ti.Unrolled()),
    "phantom": lambda: ti.nn.DEQ(Cell(), solver=ti.Broyden(), adjoint=ti.Phantom()),
    "warm": lambda: ti.nn.DEQ(Cell(), warm_start=True),
    "monotone": lambda: ti.nn.MonotoneDEQ(ti.nn.MonotoneLinear(4, 4)),
    "root": lambda: lambda x: ti.root(lambda z, x: z**3 + z - x, torch.zeros_like(x), x).value,
    "argmin": lambda: lambda x: ti.argmin(quartic, torch.zeros_like(x), x).value,
    "least_squares": lambda: lambda x: (
        ti.least_squares(lambda z, x: torch.cat([z - x, 0.1 * z * z], 1), torch.zeros_like(x), x).value
    ),
    "odeint": lambda: lambda x: ti.odeint(lambda t, y: -y * y, x, torch.linspace(0, 1, 3).double()).value[-1],
    "neural-ode": lambda: ti.nn.NeuralODE(nn.Linear(4, 4), autonomous=True),
    "stiff": lambda: ti.nn.NeuralODE(nn.Linear(4, 4), autonomous=True, solver=ti.Kvaerno3()),
    "qp": lambda: program,
    "simplex": lambda: projection.simplex,
    "simplex-of-sizes": lambda: lambda x: projection.simplex(x, x.detach().abs().sum(1)),
    "isotonic": lambda: projection.isotonic,
    "capped-simplex": lambda: lambda x: projection.capped_simplex(x, cap=0.5),
    "total-variation": lambda: prox.total_variation,
}


def values_and_gradients(model: Callable, own: nn.Module, x: Tensor) -> list[Tensor]:
    out = model(x)
    loss = out.square().sum()
    return [out.detach(), *torch.autograd.grad(loss, [x, *own.parameters()], materialize_grads=True)]


@pytest.mark.parametrize("name", LAYERS)
def test_compiling_what_is_around_a_layer_changes_nothing(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    own = Between(LAYERS[name]()).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    eager = values_and_gradients(own, own, x)
    model = torch.compile(own, backend="aot_eager")
    for _ in range(2):
        compiled = values_and_gradients(model, own, x)
        for got, expected in zip(compiled, eager, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 if name == "warm" else 1e-9)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(10):
        model(x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    own.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), own(x), rtol=1e-4, atol=1e-4)


def test_a_compiled_cell_in_a_compiled_model():
    torch.manual_seed(0)
    torch._dynamo.reset()
    plain = Between(ti.nn.DEQ(Cell())).double()
    own = Between(ti.nn.DEQ(torch.compile(plain.layer.cell, backend="aot_eager"))).double()
    own.before, own.after = plain.before, plain.after
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    expected = values_and_gradients(plain, plain, x)[:2]
    got = values_and_gradients(torch.compile(own, backend="aot_eager"), own, x)[:2]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_failure_is_reported_from_a_compiled_model():
    torch._dynamo.reset()
    layer = ti.nn.DEQ(Cell(), solver=ti.Picard(max_steps=1), on_failure="raise")
    with pytest.raises(ti.ConvergenceError):
        torch.compile(Between(layer), backend="eager")(torch.randn(2, 4))
    assert not layer.report.converged


def test_one_graph_is_refused_in_words():
    torch._dynamo.reset()
    model = Between(ti.nn.DEQ(Cell()))
    with pytest.raises(RuntimeError, match=r"Try torch\.compile without fullgraph=True"):
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 4))


@pytest.mark.parametrize("name", ["deq", "neural-ode", "qp", "argmin"])
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_exporters_are_refused_in_words(name):
    model, x = Between(LAYERS[name]()).double(), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"what torch\.export records.*the parts before and after"):
        torch.export.export(model, (x,))
    with pytest.raises(NotImplementedError, match=r"what torch\.jit\.trace records.*the parts before and after"):
        torch.jit.trace(model, (x,))


@pytest.mark.parametrize("name", ["deq", "neural-ode"])
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_scripting_is_refused_in_words(name):
    with pytest.raises(NotImplementedError, match=r"what torch\.jit\.script records.*the parts before and after"):
        torch.jit.script(Between(LAYERS[name]()))


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_scripting_a_function_that_solves_is_refused_in_words():
    def solve(x: Tensor):
        return ti.root(torch.sin, x).value

    with pytest.raises(NotImplementedError, match=r"root cannot be part of what torch\.jit\.script records"):
        torch.jit.script(solve)


def test_every_front_door_is_left_out_of_graphs():
    solving = [ti.fixed_point, ti.root, ti.argmin, ti.least_squares, ti.odeint, ti.qp, ti.lqr, ti.ilqr]
    solving += [ti.optim.cone_program, ti.optim.ConvexProgram.solve, ti.nn.MaxSAT.cosine, ti.nn.jacobian_penalty]
    assert all(getattr(door, "_torchdynamo_disable", False) for door in solving)
