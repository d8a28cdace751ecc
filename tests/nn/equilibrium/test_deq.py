"""The equilibrium layer as a module among modules."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import torchimplicit as ti

TIGHT = {"solver": ti.Anderson(rtol=1e-12, atol=1e-12, max_steps=200), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12))}


class Cell(nn.Module):
    def __init__(self, width=6, wrap=lambda linear: linear, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        linear = nn.Linear(width, width, dtype=dtype)
        with torch.no_grad():
            linear.weight.mul_(0.5)
        self.linear = wrap(linear)
        self.calls = 0

    def forward(self, z, x):
        self.calls += 1
        return torch.tanh(self.linear(z) + x)


def inputs(dtype=torch.float64):
    return torch.linspace(-1, 1, 24, dtype=dtype).view(4, 6).clone()


def gradients(layer, x):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    layer(x).sin().sum().backward()
    return [x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def same(first, second, tolerance=0.0):
    return all((a - b).abs().max() <= tolerance for a, b in zip(first, second, strict=True))


def test_gradients_agree_with_unrolling_and_report_both_solves():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    assert layer.report is None
    x = inputs().requires_grad_()
    value = layer(x)
    assert layer.report.converged
    assert layer.report.backward is None
    value.sin().sum().backward()
    assert layer.report.backward.converged
    z = torch.zeros_like(x)
    for _ in range(150):
        z = layer.cell(z, x)
    expected = torch.autograd.grad(z.sin().sum(), [x, *layer.parameters()])
    assert same([x.grad, *(p.grad for p in layer.parameters())], expected, 1e-10)


def test_the_limits_of_the_defaults_cost_a_cell_that_contracts_nothing():
    counts = []
    for options in ({}, {"solver": ti.Anderson(), "adjoint": ti.Implicit()}):
        layer, seen = ti.nn.DEQ(Cell(), **options), []

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None, seen=seen):
                seen.append(operation)
                return operation(*args, **(kwargs or {}))

        with Count():
            layer(inputs()).sum().backward()
        counts.append((len(seen), layer.report.nfev, layer.report.backward.nfev))
    assert counts[0] == counts[1]


def test_eval_changes_nothing():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    assert same(gradients(layer.train(), inputs()), gradients(layer.eval(), inputs()))


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


# torch itself refuses to pickle parametrised modules.
@pytest.mark.parametrize(
    ("copied", "wrap"),
    [
        (copy.deepcopy, lambda linear: linear),
        (copy.deepcopy, parametrizations.weight_norm),
        (copy.deepcopy, parametrizations.spectral_norm),
        (pickled, lambda linear: linear),
    ],
)
def test_copies_are_independent(copied, wrap):
    layer = ti.nn.DEQ(Cell(wrap=wrap), **TIGHT)
    layer(inputs())
    twin = copied(layer)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.7)
    value = twin.eval()(inputs())
    assert not torch.allclose(value, layer.eval()(inputs()))
    assert (twin.cell(value, inputs()) - value).abs().max() < 1e-10
    gradients(twin, inputs())


def test_save_and_load_and_double():
    layer = ti.nn.DEQ(Cell(dtype=torch.float32))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = ti.nn.DEQ(Cell(dtype=torch.float32))
    other.load_state_dict(torch.load(file))
    assert layer.double()(inputs()).dtype == torch.float64
    assert set(layer.state_dict()) == {"cell.linear.weight", "cell.linear.bias"}


def test_initial_state():
    start = nn.Linear(6, 3, dtype=torch.float64)
    weight = torch.ones(6, 3, dtype=torch.float64)

    class Narrow(nn.Module):
        def forward(self, z, x, weight):
            return torch.tanh(0.3 * z + x @ weight)

    layer = ti.nn.DEQ(Narrow(), init=lambda x, weight: start(x), **TIGHT)
    assert layer(inputs(), weight).shape == (4, 3)
    from_module = ti.nn.DEQ(Narrow(), init=_First(), **TIGHT)
    assert torch.allclose(from_module(inputs(), weight), layer(inputs(), weight))
    exact = layer(inputs(), weight).detach()
    layer(inputs(), weight, z0=exact)
    assert layer.report.nfev == 1
    with pytest.raises(ValueError, match="init="):
        ti.nn.DEQ(lambda z, x, weight: x @ weight)(inputs(), weight)


class _First(nn.Module):
    def forward(self, x, weight):
        return x[:, :3]


def test_warm_start():
    layer = ti.nn.DEQ(Cell(), warm_start=True, **TIGHT)
    first = layer(inputs())
    cold = layer.report.nfev
    second = layer(inputs())
    assert layer.report.nfev == 1 < cold
    assert torch.equal(first, second)
    assert same(gradients(layer, inputs()), gradients(ti.nn.DEQ(layer.cell, **TIGHT), inputs()), 1e-9)
    layer(inputs()[:2])
    assert layer.report.nfev > 1, "another shape starts cold"
    layer.reset()
    layer(inputs()[:2])
    assert layer.report.nfev > 1


def test_warnings_and_errors_name_the_samples():
    short = ti.Anderson(max_steps=1)
    layer = ti.nn.DEQ(Cell(), solver=short)
    with pytest.warns(ti.ConvergenceWarning, match="4 of 4"):
        layer(inputs())
    layer = ti.nn.DEQ(Cell(), solver=short, on_failure="raise")
    with pytest.raises(ti.ConvergenceError):
        layer(inputs())
    assert not layer.report.converged, "the report is there also after an error"
    with pytest.raises(TypeError, match="cell"):
        ti.nn.DEQ(3)
    with pytest.raises(ValueError, match="on_failure"):
        ti.nn.DEQ(Cell(), on_failure="explode")


def test_batch_norm_in_a_cell_is_warned_of():
    class Normed(nn.Sequential):
        def forward(self, z, x):
            return super().forward(z + x)

    with pytest.warns(UserWarning, match=r"'1' is a BatchNorm1d.*Try GroupNorm"):
        ti.nn.DEQ(Normed(nn.Linear(2, 2), nn.BatchNorm1d(2)))


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.parametrize("surrounded", [False, True])
def test_parametrised_weights_are_computed_once_a_solve(norm, surrounded):
    cell = Cell(wrap=norm)
    computed = []
    cell.linear.parametrizations.weight[0].register_forward_hook(lambda *_: computed.append(1))
    layer = ti.nn.DEQ(cell, **TIGHT)
    x = inputs()
    if surrounded:
        with parametrize.cached():
            layer(x).sum().backward()
            outside = cell.linear.weight
        assert outside.requires_grad, "the user's own cache keeps its graph"
    else:
        layer(x).sum().backward()
    assert len(computed) == 1, "once, forward and backward together"
    grads = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    layer.eval()  # spectral norm: no further power iteration
    if norm is not parametrizations.spectral_norm:
        z = torch.zeros_like(x)
        for _ in range(1500):
            z = cell(z, x)
        expected = torch.autograd.grad(z.sum(), list(layer.parameters()))
        assert same(grads, expected, 1e-9)


def test_a_copied_parametrised_layer_uses_its_own_weight():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = parametrizations.weight_norm(nn.Linear(6, 6, dtype=torch.float64))
            self.b = copy.deepcopy(self.a)
            with torch.no_grad():
                self.a.parametrizations.weight.original0.mul_(0.3)
                self.b.parametrizations.weight.original0.mul_(-0.3)

        def forward(self, z, x):
            return torch.tanh(self.a(z) + self.b(torch.tanh(z)) + x)

    layer = ti.nn.DEQ(Twins(), **TIGHT)
    value = layer(inputs())
    assert (layer.cell(value, inputs()) - value).abs().max() < 1e-10


class Counting(Cell):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, z, x):
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        return super().forward(z, x)


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_the_cell_changes(in_place):
    layer = ti.nn.DEQ(Counting(in_place), **TIGHT)
    value = layer(inputs())
    assert float(layer.cell.count) == layer.report.nfev
    value.sum().backward()
    assert float(layer.cell.count) == layer.report.nfev, "the backward pass leaves no trace in buffers"


def test_recurrent_cells():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(6, 6, batch_first=True, dtype=torch.float64)

        def forward(self, z, x):
            return 0.5 * self.rnn(z)[0] + x

    x = torch.randn(2, 3, 6, dtype=torch.float64)
    layer = ti.nn.DEQ(Recurrent(), **TIGHT)
    layer(x).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_shared_parameters_get_the_sum():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Cell().linear
            self.second = nn.Linear(6, 6, dtype=torch.float64)
            self.second.weight = self.first.weight

        def forward(self, z, x):
            return torch.tanh(0.5 * self.second(torch.tanh(self.first(z))) + x)

    layer = ti.nn.DEQ(Tied(), **TIGHT)
    got = gradients(layer, inputs())
    unrolled = ti.nn.DEQ(layer.cell, solver=TIGHT["solver"], adjoint=ti.Unrolled())
    assert same(got, gradients(unrolled, inputs()), 1e-8)


def test_autocast_holds_in_the_backward_pass():
    layer = ti.nn.DEQ(Cell(dtype=torch.float32), solver=ti.Anderson(rtol=1e-2))
    x = inputs(torch.float32).requires_grad_()
    seen = []
    layer.cell.linear.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = layer(x)
    value.sin().sum().backward()
    assert set(seen) == {torch.bfloat16}
    assert value.dtype == torch.float32
    assert layer.report.converged
    full = gradients(ti.nn.DEQ(layer.cell), x.detach())
    assert (x.grad - full[0]).norm() < 0.05 * full[0].norm()


def test_half_precision_states():
    layer = ti.nn.DEQ(Cell(dtype=torch.bfloat16), solver=ti.Anderson(rtol=2e-2))
    value = layer(inputs(torch.bfloat16))
    assert value.dtype == torch.bfloat16
    assert layer.report.converged
    value.sum().backward()


def test_functional_call_and_ensembles():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    stacked = {name: torch.stack([parameter, 0.5 * parameter]) for name, parameter in parameters.items()}

    def run(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))

    both = torch.vmap(run, in_dims=(0, None))(stacked, inputs())
    assert torch.allclose(both[0], run(parameters, inputs()), atol=1e-10)
    grads = torch.func.grad(lambda p: run(p, inputs()).sin().sum())(parameters)
    assert same(grads.values(), gradients(layer, inputs())[1:], 1e-10)


def test_graph_is_freed_with_the_output():
    import gc
    import weakref

    layer = ti.nn.DEQ(Cell(), **TIGHT)
    x = inputs().requires_grad_()
    gc.disable()
    try:
        value = layer(2 * x)
        node = weakref.ref(value.grad_fn.next_functions[0][0])  # of the solve, behind the copy
        del value
        assert node() is None, "no reference cycle keeps the graph alive"
    finally:
        gc.enable()


def test_repr_shows_the_options():
    text = repr(ti.nn.DEQ(Cell()))
    assert "Anderson(" in text
    assert "Implicit(" in text


def test_lazy_modules_and_unrolled_warm_starts_say_what_to_do():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.LazyLinear(6)

        def forward(self, z, x):
            return torch.tanh(self.linear(z) + x)

    with pytest.raises(ValueError, match="calling the module once"):
        ti.nn.DEQ(Lazy())(inputs(torch.float32))
    with pytest.raises(ValueError, match=r"try Implicit\(\)"):
        ti.nn.DEQ(Cell(), adjoint=ti.Unrolled(), warm_start=True)
    with pytest.raises(TypeError, match="init"):
        ti.nn.DEQ(Cell(), init=torch.zeros(3))
    with pytest.raises(TypeError, match=r"try Anderson\(\)"):
        ti.nn.DEQ(Cell(), solver=ti.Anderson)


def test_warm_start_after_inference():
    layer = ti.nn.DEQ(Cell(), warm_start=True, **TIGHT)
    with torch.inference_mode():
        layer(inputs())
    layer(inputs()).sum().backward()


def test_a_warm_start_goes_on_with_what_broyden_has_learnt():
    torch.manual_seed(0)
    weight = torch.randn(20, 20, dtype=torch.float64)
    weight *= 0.95 / torch.linalg.eigvals(weight).abs().max()
    inputs = torch.randn(6, 20, dtype=torch.float64)
    solver = ti.Broyden(memory=20, rtol=1e-8, atol=0, max_steps=100)
    evaluations = {}
    for kept in (True, False):
        layer = ti.nn.DEQ(lambda z, x: torch.tanh(z @ weight + x), solver=solver, warm_start=True)
        layer(inputs)
        assert layer._last is not None
        if not kept:
            layer._last = dataclasses.replace(layer._last, state=None)
        value = layer(1.02 * inputs)
        evaluations[kept] = layer.report.nfev
        assert (value - torch.tanh(value @ weight + 1.02 * inputs)).abs().max() < 1e-6
    assert evaluations[True] < evaluations[False]
