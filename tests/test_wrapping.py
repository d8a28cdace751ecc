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
    return ti.lqr(0.5 * eye, eye, eye, eye, x, 3, lower=-0.2).states[:, -1]


class Repeated(ti.nn.NeuralSDE):
    """A draw that is the same at every call."""

    def forward(self, y0):
        return super().forward(y0, brownian=1)


LAYERS = {
    "deq": lambda: ti.nn.DEQ(Cell()),
    "newton": lambda: ti.nn.DEQ(Cell(), solver=ti.Newton(), adjoint=ti.Implicit(ti.LU())),
    "unrolled": lambda: ti.nn.DEQ(Cell(), adjoint=ti.Unrolled()),
    "phantom": lambda: ti.nn.DEQ(Cell(), solver=ti.Broyden(), adjoint=ti.Phantom()),
    "warm": lambda: ti.nn.DEQ(Cell(), warm_start=True),
    "monotone": lambda: ti.nn.MonotoneDEQ(ti.nn.MonotoneLinear(4, 4)),
    "root": lambda: lambda x: ti.root(lambda z, x: z**3 + z - x, torch.zeros_like(x), x).value,
    "argmin": lambda: lambda x: ti.argmin(quartic, torch.zeros_like(x), x).value,
    "least_squares": lambda: (
        lambda x: ti.least_squares(lambda z, x: torch.cat([z - x, 0.1 * z * z], 1), torch.zeros_like(x), x).value
    ),
    "odeint": lambda: lambda x: ti.odeint(lambda t, y: -y * y.abs(), x, torch.linspace(0, 1, 3).double()).value[-1],
    "neural-ode": lambda: ti.nn.NeuralODE(nn.Linear(4, 4), autonomous=True),
    "stiff": lambda: ti.nn.NeuralODE(nn.Linear(4, 4), autonomous=True, solver=ti.Kvaerno3()),
    "neural-sde": lambda: Repeated(
        nn.Linear(4, 4), nn.Linear(4, 4), autonomous=True, solver=ti.sde.EulerMaruyama(dt=0.2)
    ),
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


@pytest.mark.parametrize("name", ["deq", "neural-ode", "neural-sde", "qp", "argmin"])
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_exporters_are_refused_in_words(name):
    model, x = Between(LAYERS[name]()).double(), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"what torch\.export records.*the parts before and after"):
        torch.export.export(model, (x,))
    with pytest.raises(NotImplementedError, match=r"what torch\.jit\.trace records.*the parts before and after"):
        torch.jit.trace(model, (x,))


@pytest.mark.parametrize("name", ["deq", "neural-ode", "neural-sde"])
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


def test_every_public_function_is_left_out_of_graphs():
    solving = [ti.fixed_point, ti.root, ti.argmin, ti.least_squares, ti.odeint, ti.sdeint, ti.qp, ti.lqr, ti.ilqr]
    solving += [ti.optim.cone_program, ti.optim.ConvexProgram.solve, ti.nn.MaxSAT.cosine, ti.nn.jacobian_penalty]
    assert all(getattr(function, "_torchdynamo_disable", False) for function in solving)


def pair(x):
    cell = lambda z, x: (torch.tanh(0.3 * z[0] + x), torch.cos(0.3 * z[1] + x))  # noqa: E731
    return ti.fixed_point(cell, (torch.zeros_like(x), torch.zeros_like(x)), x).value[1]


def event(x):
    ts = torch.linspace(0, 1, 3).double()
    return ti.odeint(lambda t, y: -y * y.abs(), x, ts, event=ti.Event(lambda t, y: y.sum(1) - 0.3)).event_state


LAYERS |= {
    "shine": lambda: ti.nn.DEQ(Cell(), solver=ti.Broyden(), adjoint=ti.Shine()),
    "pair": lambda: pair,
    "duals": lambda: lambda x: ti.qp(torch.eye(4).double(), x, u=torch.zeros(4).double()).duals.bounds,
    "backsolve": lambda: ti.nn.NeuralODE(nn.Linear(4, 4), autonomous=True, adjoint=ti.Backsolve()),
    "reversible": lambda: ti.nn.NeuralODE(
        nn.Linear(4, 4), autonomous=True, adjoint=ti.Reversible(), solver=ti.RK4(dt=0.1)
    ),
    "event": lambda: event,
    "control": lambda: regulator,
    "box": lambda: lambda x: projection.box(x, -0.1, 0.1),
    "l2-ball": lambda: projection.l2_ball,
    "semidefinite": lambda: lambda x: projection.semidefinite_cone(x[:, :, None] + x[:, None])[:, 0],
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_follows_may_write_into_the_output(name):
    torch.manual_seed(0)
    own = Between(LAYERS[name]()).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def gradients(activation):
        out = own.after(activation(own.layer(own.before(x))))
        return torch.autograd.grad(out.square().sum(), [x, *own.parameters()], materialize_grads=True)

    # A warm start begins where the last solve ended, and so ends elsewhere within the tolerance.
    close = {"rtol": 1e-3, "atol": 1e-4} if name == "warm" else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(gradients(lambda z: z.mul_(2).relu_()), gradients(lambda z: (2 * z).relu()), **close)


def test_a_warm_start_is_not_what_the_caller_made_of_the_last_output():
    layer = ti.nn.DEQ(Cell(), warm_start=True)
    x = torch.randn(3, 4)
    layer(x).fill_(torch.inf)
    assert layer(x).isfinite().all()
    assert int(layer.report.steps.max()) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch_passes_through(name):
    own = Between(LAYERS[name]()).double()
    x = torch.randn(0, 4, dtype=torch.float64, requires_grad=True)
    out = own(x)
    assert out.shape == (0, 4)
    for tensor, gradient in zip(
        [x, *own.parameters()], torch.autograd.grad(out.sum(), [x, *own.parameters()]), strict=True
    ):
        assert gradient.shape == tensor.shape
        assert not gradient.any()
    with torch.no_grad():
        assert own(x).shape == (0, 4)
    report = getattr(own.layer, "report", None)
    if report is not None:
        assert report.converged
        assert "an empty batch" in str(report)


def test_an_empty_batch_of_images_and_of_minima_under_constraints():
    layer = ti.nn.DEQ(lambda z, x: 0.5 * torch.tanh(z) + x)
    assert layer(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    points = torch.ones(0, 2, requires_grad=True)
    circle = ti.argmin(
        lambda z, p: (z - p).square().sum(1), torch.ones(0, 2), points, constraints=lambda z, p: z.square().sum(1) - 1
    )
    assert circle.value.shape == (0, 2)
    assert circle.multipliers.shape == (0,)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("front", ["fixed-point", "path"])
def test_channels_last_stay_last_in_value_and_gradient(dims, front):
    torch.manual_seed(0)
    form = torch.channels_last if dims == 2 else torch.channels_last_3d
    convolution = (nn.Conv2d if dims == 2 else nn.Conv3d)(3, 3, 3, padding=1).double().to(memory_format=form)
    seen = []

    def cell(z, x, convolution):
        seen.append(z.stride(1) == 1)
        return torch.tanh(0.1 * convolution(z) + x)

    def solve(x):
        if front == "fixed-point":
            return ti.fixed_point(cell, torch.zeros_like(x), x, convolution).value
        ts = torch.tensor([0.0, 1.0]).double()
        return ti.odeint(lambda t, y, x, convolution: cell(y, x, convolution), x, ts, x, convolution).value[-1]

    x = torch.randn(2, 3, *[4] * dims, dtype=torch.float64).to(memory_format=form).requires_grad_()
    value = solve(x)
    (gradient,) = torch.autograd.grad(value.square().sum(), x)
    assert all(seen)
    assert value.is_contiguous(memory_format=form)
    assert gradient.is_contiguous(memory_format=form)
    plain = x.detach().contiguous().requires_grad_()
    expected = solve(plain)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), plain)[0])


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, z, x, *, mask=None, gain=1.0):
        return torch.tanh(0.3 * self.linear(z) * (1.0 if mask is None else mask) + gain * x)


def test_arguments_of_the_cell_by_name_get_gradients():
    torch.manual_seed(0)
    layer = ti.nn.DEQ(Masked(), solver=ti.Anderson(rtol=1e-10, atol=0)).double()
    x, mask = torch.randn(3, 4).double(), torch.rand(3, 4).double().requires_grad_()
    value = layer(x, mask=mask, gain=0.5)
    grads = torch.autograd.grad(value.sum(), [mask, layer.cell.linear.weight])
    plain = ti.fixed_point(
        lambda z, x, mask, cell: cell(z, x, mask=mask, gain=0.5), x, x, mask, layer.cell, solver=layer.solver
    ).value
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(
        grads, torch.autograd.grad(plain.sum(), [mask, layer.cell.linear.weight]), rtol=1e-3, atol=1e-5
    )
    assert (layer(x) - value).abs().max() > 0.01


def test_a_cell_that_takes_no_input_is_refused_in_words():
    with pytest.raises(TypeError, match=r"DEQ\(cell=Linear\): takes \(input.*expected cell\(z, x, \.\.\.\)"):
        ti.nn.DEQ(nn.Linear(16, 16))
    inner, x = nn.Linear(4, 4), torch.randn(2, 4)
    nn.init.orthogonal_(inner.weight, 0.5)
    layer = ti.nn.DEQ(lambda z, x, inner: torch.tanh(inner(z) + x))  # what the words say
    assert layer(x, inner).shape == (2, 4)


def test_a_cell_that_writes_into_its_arguments_is_refused_in_words():
    with pytest.raises(ValueError, match="writes into one of its arguments"):
        ti.fixed_point(lambda z, x: x.add_(0.1 * z), torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="writes into its state"):
        ti.fixed_point(lambda z, x: z.mul_(0.1).add_(x), torch.zeros(2, 3), torch.ones(2, 3))
    clone = ti.fixed_point(lambda z, x: x.clone().add_(0.1 * z), torch.zeros(2, 3), torch.ones(2, 3))
    assert clone.report.converged


def test_unrolled_newton_with_checkpoints_is_refused_in_words():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"Unrolled\(checkpoint=True\).*expected another solver"):
        ti.root(lambda z, x: z - x, x, x, adjoint=ti.Unrolled(checkpoint=True))


def test_lu_takes_sparse_arguments():
    torch.manual_seed(0)
    dense = 0.3 * torch.eye(4).double()
    x = torch.randn(3, 4).double().requires_grad_()

    def solve(W, adjoint):
        cell = lambda z, x, W: torch.sparse.mm(W, z.T).T + x if W.is_sparse else z @ W.T + x  # noqa: E731
        return ti.fixed_point(cell, torch.zeros_like(x), x, W, solver=ti.Newton(linear_solver=ti.LU()), adjoint=adjoint)

    expected = torch.autograd.grad(solve(dense, ti.Implicit(ti.LU())).value.square().sum(), x)[0]
    found = torch.autograd.grad(solve(dense.to_sparse(), ti.Implicit(ti.LU())).value.square().sum(), x)[0]
    torch.testing.assert_close(found, expected)


def test_a_sample_that_is_not_finite_beside_a_sparse_weight_is_reported():
    x = torch.ones(3, 4).double()
    x[1] = torch.nan
    weight = (0.3 * torch.eye(4).double()).to_sparse().requires_grad_()
    with pytest.raises(ti.ConvergenceError, match="non_finite: sample 1"):
        ti.fixed_point(lambda z, x, W: torch.sparse.mm(W, z.T).T + x, torch.zeros_like(x), x, weight)


def test_a_root_that_does_not_depend_on_its_state_is_reported():
    x = torch.ones(2, 3).requires_grad_()
    with pytest.raises(ti.ConvergenceError, match="singular Jacobian"):
        ti.root(lambda z, x: 0 * x + 1, torch.zeros(2, 3), x, solver=ti.Newton(linear_solver=ti.LU()))
