"""Neural ODE layers: values, options, residual networks, augmentation, penalties."""

import math

import pytest
import torch
from torch import nn

import torchimplicit as ti

FINE = ti.Tsit5(rtol=1e-9, atol=1e-11)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(inputs=2, outputs=2, width=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


class Linear(nn.Module):
    """The field `A y`, of which everything is known."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, y):
        return y @ self.matrix.T


def test_a_linear_field_gives_the_matrix_exponential():
    A, y = 0.5 * double(3, 3), double(4, 3, seed=1)
    layer = ti.nn.NeuralODE(Linear(A), ts=(0.0, 1.5), solver=FINE)
    assert torch.allclose(layer(y), y @ torch.matrix_exp(1.5 * A).T, rtol=1e-7)
    assert layer.report.converged
    layer(y).sum().backward()
    assert layer.field.matrix.grad.norm() > 0


def test_inputs_times_and_outputs():
    y, x = double(4, 2), double(4, 2, seed=1)
    ts = torch.linspace(0, 1, 5, dtype=torch.float64)
    timed = ti.nn.NeuralODE(lambda t, y, x: x * torch.cos(t), output="all", solver=FINE)
    value = timed(y, x, ts=ts)
    assert value.shape == (5, 4, 2)
    assert torch.allclose(value, y + x * torch.sin(ts).reshape(-1, 1, 1), atol=1e-8)
    untimed = ti.nn.NeuralODE(lambda y, x: x, ts=ts, autonomous=True)
    assert torch.allclose(untimed(y, x), y + x)
    both = ti.nn.NeuralODE(lambda t, y: (y[1], -y[0]), ts=(0.0, math.pi), solver=FINE)
    q, p = both((torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)))
    assert torch.allclose(q, -torch.ones_like(q), atol=1e-6)
    assert torch.allclose(p, torch.zeros_like(p), atol=1e-6)


def test_learned_times():
    times = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))
    layer = ti.nn.NeuralODE(lambda t, y: torch.ones_like(y), ts=times)
    layer(double(3, 1)).sum().backward()
    assert any(parameter is times for parameter in layer.parameters())
    assert torch.allclose(times.grad, torch.tensor([-3.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_network_is_eulers_method(dtype):
    block, x = network().to(dtype), double(5, 2).to(dtype)
    layer = ti.nn.NeuralODE.from_residual(block, depth=7)
    expected = x
    for _ in range(7):
        expected = expected + block(expected)
    assert torch.equal(layer(x), expected)
    assert int(layer.report.accepted.max()) == 7
    found = torch.autograd.grad(layer(x).square().sum(), list(block.parameters()))
    exact = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    for one, other in zip(found, exact, strict=True):
        assert torch.allclose(one, other, rtol=1e-4 if dtype is torch.float32 else 1e-12)


def test_failures_warn_raise_or_are_counted():
    def explode(y):
        return y**2

    y = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    with pytest.warns(ti.ConvergenceWarning):
        ti.nn.NeuralODE(explode, autonomous=True)(y)
    layer = ti.nn.NeuralODE(explode, autonomous=True, on_failure="raise")
    with pytest.raises(ti.ConvergenceError):
        layer(y)
    assert layer.report.failed.tolist() == [1]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ti.nn.NeuralODE(network()), TypeError, "try autonomous=True"),
        (lambda: ti.nn.NeuralODE(3), TypeError, "expected a module or function"),
        (lambda: ti.nn.NeuralODE(network(), (1.0,), autonomous=True), ValueError, "at least two finite times"),
        (lambda: ti.nn.NeuralODE(network(), (0.0, 0.0), autonomous=True), ValueError, "strictly increasing"),
        (lambda: ti.nn.NeuralODE(network(), solver=ti.Tsit5, autonomous=True), TypeError, r"try Tsit5\(\)"),
        (lambda: ti.nn.NeuralODE(network(), autonomous=True, output="first"), ValueError, "expected 'last' or 'all'"),
        (
            lambda: ti.nn.NeuralODE(network(), autonomous=True, penalties=ti.nn.KineticEnergy),
            TypeError,
            "KineticEnergy",
        ),
        (lambda: ti.nn.NeuralODE.from_residual(network(), 0), ValueError, "expected an integer >= 1"),
        (lambda: ti.nn.AugmentedNeuralODE(network(), 0, autonomous=True), ValueError, "0 is NeuralODE"),
        (lambda: ti.nn.TaylorDerivative(order=0), ValueError, "an integer >= 1"),
        (lambda: ti.nn.JacobianFrobenius(probe="uniform"), ValueError, "'gaussian' or 'rademacher'"),
    ],
)
def test_mistakes_are_refused_at_construction(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("output", ["last", "all"])
def test_augmented_states(strip, output):
    field = nn.Conv2d(3 + 2, 3 + 2, 3, padding=1).double()
    layer = ti.nn.AugmentedNeuralODE(field, extra=2, strip=strip, autonomous=True, output=output)
    value = layer(double(2, 3, 4, 4))
    assert value.shape == ((2,) if output == "all" else ()) + (2, 3 if strip else 5, 4, 4)
    if output == "all":
        assert torch.equal(value[0, :, :3], double(2, 3, 4, 4))
        assert strip or torch.equal(value[0, :, 3:], torch.zeros(2, 2, 4, 4, dtype=torch.float64))


def fit_the_flip(layer, steps=60):
    """The loss of a layer that shall learn x -> -x, which no path on a line can."""
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    loss = torch.tensor(math.inf)
    for _ in range(steps):
        loss = (layer(x)[:, :1] + x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_the_flip_needs_room():
    solver = ti.RK4(dt=0.25)
    assert fit_the_flip(ti.nn.AugmentedNeuralODE(network(2, 2), autonomous=True, solver=solver)) < 0.01
    # Ordered paths keep their order: the best that they can do is to meet, at a loss of one.
    assert fit_the_flip(ti.nn.NeuralODE(network(1, 1), autonomous=True, solver=solver)) > 0.99


PENALTIES = (ti.nn.KineticEnergy(), ti.nn.JacobianFrobenius(), ti.nn.TaylorDerivative(order=3))


def test_penalties_of_a_linear_field():
    A, y = 0.5 * double(3, 3), double(6, 3, seed=1)
    layer = ti.nn.NeuralODE(Linear(A), solver=FINE, penalties=PENALTIES)
    layer(y)
    kinetic, frobenius, third = layer.penalties
    nodes = torch.linspace(0, 1, 401, dtype=torch.float64)
    paths = torch.stack([y @ torch.matrix_exp(t * A).T for t in nodes])
    for found, matrix in ((kinetic, A), (third, A @ A @ A)):
        rates = (paths @ matrix.T).square().sum(2)
        weights = torch.tensor([1.0, *[4.0, 2.0] * 199, 4.0, 1.0], dtype=torch.float64) / 1200  # Simpson's
        assert torch.allclose(found, weights @ rates, rtol=1e-6)
    assert frobenius.shape == (6,)


@pytest.mark.parametrize("probe", ["gaussian", "rademacher"])
def test_the_frobenius_norm_is_unbiased(probe):
    A = 0.5 * double(3, 3)
    layer = ti.nn.NeuralODE(Linear(A), solver=ti.Euler(), penalties=ti.nn.JacobianFrobenius(probe=probe))
    torch.manual_seed(0)
    layer(torch.zeros(40_000, 3, dtype=torch.float64))
    (found,) = layer.penalties
    assert abs(found.mean() - A.square().sum()) < 4 * found.std() / 200
    assert found.std() > 0


def test_the_total_derivative_knows_the_time():
    layer = ti.nn.NeuralODE(lambda t, y: t**2 * torch.ones_like(y), penalties=[ti.nn.TaylorDerivative(order=3)])
    layer(double(2, 1))
    assert torch.allclose(layer.penalties[0], torch.full((2,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("stepping", ["per-sample", "joint"])
def test_penalties_do_not_steer(stepping):
    field, y = network(), double(5, 2)
    plain = ti.nn.NeuralODE(field, autonomous=True, stepping=stepping)
    expected = plain(y)
    watched = ti.nn.NeuralODE(field, autonomous=True, stepping=stepping, penalties=PENALTIES)
    assert torch.allclose(watched(y), expected, rtol=1e-12)
    assert torch.equal(watched.report.steps, plain.report.steps)
    tight = ti.Tsit5(rtol=torch.tensor([1e-9, 1e-9], dtype=torch.float64))
    watched.solver, plain.solver = tight, tight
    assert torch.allclose(watched(y), plain(y), rtol=1e-12)
    assert torch.equal(watched.report.steps, plain.report.steps)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
def test_gradients_of_penalties(adjoint):
    solver = ti.RK4(dt=0.5)
    layer = ti.nn.NeuralODE(network(width=4), autonomous=True, solver=solver, adjoint=adjoint, penalties=PENALTIES)

    def run(y, *weights):
        torch.manual_seed(0)
        value = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (y,))
        return (value, *layer.penalties)

    names, weights = zip(*layer.named_parameters(), strict=True)
    inputs = (double(2, 2).requires_grad_(), *weights)
    assert torch.autograd.gradcheck(run, inputs)


def test_penalties_under_transforms():
    layer = ti.nn.NeuralODE(network(width=4), autonomous=True, solver=ti.RK4(dt=0.5), penalties=PENALTIES)

    def loss(y):
        return layer(y).sum() + sum(penalty.sum() for penalty in layer.penalties)

    y = double(2, 2)
    torch.manual_seed(0)
    slope = torch.func.grad(loss)(y)
    torch.manual_seed(0)
    leaf = y.clone().requires_grad_()
    assert torch.allclose(slope, torch.autograd.grad(loss(leaf), leaf)[0])


def test_batch_norm_is_warned_of():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    text = r"NeuralODE: the field's '1' is a BatchNorm1d.*paths then depend on each other. Try GroupNorm"
    with pytest.warns(UserWarning, match=text):
        ti.nn.NeuralODE(net, autonomous=True)
    ti.nn.NeuralODE(net, autonomous=True, stepping="joint")  # there the batch is one system
    ti.nn.NeuralODE(net.eval(), autonomous=True)  # an affine map
    bare = nn.BatchNorm1d(2)
    with pytest.warns(UserWarning, match="the field is a BatchNorm1d"):
        ti.nn.NeuralODE(bare, autonomous=True)
