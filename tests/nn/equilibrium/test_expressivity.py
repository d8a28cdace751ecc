"""One equilibrium layer is a whole network: same values, same gradients, in as many steps as there are layers."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchimplicit as ti
from torchimplicit.diagnose import spectral_radius

EXACT = {"solver": ti.Picard(rtol=1e-13, atol=0)}
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus)


def dense(widths, activation=nn.Tanh):
    layers = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1]).double()


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.GroupNorm(2, 4),
        nn.Sequential(nn.Conv2d(4, 3, 3), nn.Softplus()),
        nn.Flatten(),
        nn.Linear(3, 2),
    ).double()


def gradients(module, x, parameters):
    return torch.autograd.grad(module(x).sin().sum(), list(parameters))


def close(first, second, tolerance=1e-12):
    return all((a - b).abs().max() <= tolerance for a, b in zip(first, second, strict=True))


@settings(max_examples=25)
@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=6),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**31),
)
def test_a_dense_network_is_its_equilibrium(widths, activation, seed):
    torch.manual_seed(seed)
    network, x = dense(widths, activation), torch.randn(3, widths[0], dtype=torch.float64)
    layer = ti.nn.as_equilibrium(network)
    assert close([layer(x)], [network(x)])
    assert layer.report.converged
    assert close(gradients(layer, x, layer.parameters()), gradients(network, x, network.parameters()))
    assert layer.equilibrium.report.backward.converged


def test_a_convolutional_network_with_all_shapes_is_its_equilibrium():
    torch.manual_seed(0)
    network, x = convolutional(), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    layer = ti.nn.as_equilibrium(network, **EXACT)
    before = x.clone()
    x.requires_grad_()
    value = layer(x)
    assert close([value], [network(x)])
    assert layer.report.steps.tolist() == [6, 6, 6]
    assert layer.report.nfev == 7, "the one that finds the residual to be zero"
    assert torch.equal(x, before), "no layer that works in place writes into the input"
    (got,), (expected,) = (torch.autograd.grad(module(x).sin().sum(), x) for module in (layer, network))
    assert close([got], [expected])
    assert close(gradients(layer, x, layer.parameters()), gradients(network, x, network.parameters()))


@pytest.mark.parametrize("depth", [1, 2, 5, 9])
def test_picard_takes_exactly_as_many_steps_as_there_are_layers(depth):
    torch.manual_seed(0)
    network, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth))).double(), torch.randn(2, 4).double()
    layer = ti.nn.as_equilibrium(network, **EXACT)
    layer(x)
    assert layer.report.steps.tolist() == [depth] * 2
    short = ti.nn.as_equilibrium(network, ti.Picard(max_steps=depth - 1), on_failure="ignore")
    assert not close([short(x)], [network(x)], 1e-3)
    assert not short.report.converged


def test_the_jacobian_is_nilpotent():
    torch.manual_seed(0)
    network, x = dense([3, 4, 5, 2]), torch.randn(1, 3).double()
    cell = ti.nn.as_equilibrium(network).equilibrium.cell
    sizes = [4, 4, 5, 5, 2]

    def flat(z):
        return torch.cat(cell(z.split(sizes, 1), x), 1)

    jacobian = torch.autograd.functional.jacobian(flat, torch.randn(1, 20).double())[0, :, 0]
    assert torch.linalg.matrix_power(jacobian, 4).abs().max() > 1e-4
    assert torch.linalg.matrix_power(jacobian, 5).abs().max() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"solver": ti.Picard(rtol=1e-12, atol=0)},
        {"solver": ti.Anderson(rtol=1e-12, atol=0)},
        {"solver": ti.Broyden(rtol=1e-12, atol=0)},
        {"solver": ti.Newton(linear_solver=ti.LU(), rtol=1e-12, atol=0)},
        {"adjoint": ti.Implicit(ti.GMRES(rtol=1e-13))},
        {"adjoint": ti.Implicit(ti.LU())},
        {"adjoint": ti.Unrolled()},
    ],
    ids=lambda options: repr(*options.values()).partition("(rtol")[0],
)
def test_every_exact_solver_and_adjoint_agrees(options):
    torch.manual_seed(0)
    network, x = dense([3, 4, 5, 2]), torch.randn(3, 3).double()
    layer = ti.nn.as_equilibrium(network, **options)
    assert close([layer(x)], [network(x)], 1e-10)
    assert close(gradients(layer, x, layer.parameters()), gradients(network, x, network.parameters()), 1e-9)


def test_signals_that_do_not_fade_pass_through_many_layers():
    torch.manual_seed(0)
    layers = [module for _ in range(40) for module in (nn.Linear(8, 8), nn.ReLU())]
    network = nn.Sequential(*layers).double()
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, 2**0.5)
    x = torch.randn(4, 8).double()
    layer = ti.nn.as_equilibrium(network)
    assert close([layer(x)], [network(x)], 1e-10)
    assert layer.report.converged


def test_second_derivatives_and_shared_layers():
    torch.manual_seed(0)
    shared = nn.Linear(3, 3).double()
    network, x = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh()), torch.randn(2, 3).double()
    layer = ti.nn.as_equilibrium(network)
    assert len(list(layer.parameters())) == 2
    assert close(gradients(layer, x, shared.parameters()), gradients(network, x, shared.parameters()))
    one, other = (torch.func.hessian(lambda x, f=f: f(x).sum())(x) for f in (layer, network))
    assert close([one], [other], 1e-10)


def test_tokens_are_an_input_like_any_other():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.tensor([[0, 1, 2], [4, 4, 3]])
    layer = ti.nn.as_equilibrium(network)
    assert close([layer(x)], [network(x)])
    assert close(gradients(layer, x, layer.parameters()), gradients(network, x, network.parameters()))


def test_copies_and_saved_weights():
    torch.manual_seed(0)
    network, x = dense([3, 4, 2]), torch.randn(2, 3).double()
    layer = ti.nn.as_equilibrium(network)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert all(parameter is own for parameter, own in zip(layer.parameters(), network.parameters(), strict=True))


def test_batch_norm_in_evaluation_is_a_layer_like_any_other():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).double()
    network(torch.randn(20, 3).double())
    layer, x = ti.nn.as_equilibrium(network.eval()), torch.randn(2, 3).double()
    assert close([layer(x)], [network(x)])
    layer.train()
    with pytest.raises(ValueError, match=r"BatchNorm1d in training, which couples the samples.*eval\(\), or GroupNorm"):
        layer(x)


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (nn.Linear(2, 2), TypeError, "got a Linear, expected an nn.Sequential"),
        (nn.Sequential(), ValueError, "empty nn.Sequential"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)),
            ValueError,
            "'1' is a Dropout in training.*VariationalDropout",
        ),
        (nn.Sequential(nn.BatchNorm1d(2)), ValueError, "'0' is a BatchNorm1d in training"),
        (nn.Sequential(nn.Bilinear(2, 2, 2)), TypeError, r"layer 0 \(Bilinear\) needs the inputs input1, input2"),
    ],
)
def test_what_is_no_chain_of_layers_is_refused_at_construction(network, error, message):
    with pytest.raises(error, match=message):
        ti.nn.as_equilibrium(network)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (nn.LSTM(2, 2), r"layer 1 \(LSTM\) returns a tuple"),
        (nn.Flatten(0), r"layer 1 \(Flatten\) returns the shape \(6,\) for a batch of 3"),
    ],
)
def test_outputs_that_are_no_state_are_refused_before_the_solve(bad, message):
    with pytest.raises(ValueError, match=message):
        ti.nn.as_equilibrium(nn.Sequential(nn.Linear(2, 2), bad))(torch.randn(3, 2))


class Cell(nn.Module):
    def __init__(self, width, inputs, scale=0.3):
        super().__init__()
        self.state, self.input = nn.Linear(width, width), nn.Linear(inputs, width)
        nn.init.orthogonal_(self.state.weight, scale)
        self.double()

    def forward(self, z, x):
        return torch.tanh(self.state(z) + self.input(x))


def equilibria(*widths, scales=None, **options):
    options = {"solver": ti.Anderson(rtol=1e-12, atol=0), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-13)), **options}
    scales = scales or [0.3] * len(widths)
    return [
        ti.nn.DEQ(Cell(width, fed, scale), init=lambda x, width=width: x.new_zeros(len(x), width), **options)
        for width, fed, scale in zip(widths[1:], widths, scales, strict=False)
    ]


@settings(max_examples=10)
@given(widths=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 2**31))
def test_stacked_equilibria_are_one(widths, seed):
    torch.manual_seed(seed)
    layers, x = equilibria(*widths), torch.randn(3, widths[0]).double()
    one, many = ti.nn.stack(*layers), nn.Sequential(*layers)
    assert close([one(x)], [many(x)], 1e-9)
    assert one.report.converged
    assert close(gradients(one, x, one.parameters()), gradients(many, x, many.parameters()), 1e-8)


def test_the_radius_of_a_stack_is_the_largest_of_its_layers():
    torch.manual_seed(0)
    (first, second), x = equilibria(4, 4, 5, scales=[0.2, 0.7]), torch.randn(3, 4).double()
    radii = [spectral_radius(first, x), spectral_radius(second, first(x))]
    joint = spectral_radius(ti.nn.stack(first, second).equilibrium, x)
    assert close([joint], [torch.maximum(*radii)], 1e-6)


def test_a_stack_starts_where_its_layers_start_and_takes_functions():
    first = ti.nn.DEQ(lambda z, x: torch.cos(z) + x)
    second = ti.nn.DEQ(lambda z, x: 0.5 * torch.tanh(z) + x, init=lambda x: x + 1)
    both, x = ti.nn.stack(first, second), torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3) * 0.3
    starts = both.equilibrium.init(x)
    assert torch.equal(starts[0], torch.zeros_like(x))
    assert torch.equal(starts[1], torch.ones_like(x))
    assert close([both(x)], [second(first(x))], 1e-3)


def test_the_options_of_a_stack():
    first, second = equilibria(3, 3, 3)
    assert ti.nn.stack(first, second).equilibrium.solver == first.solver
    assert ti.nn.stack(first, second, on_failure="raise").equilibrium.on_failure == "raise"
    second.solver = ti.Newton()
    with pytest.raises(ValueError, match=r"different options solver: \[Anderson.*Newton.*stack\(\.\.\., solver="):
        ti.nn.stack(first, second)
    assert ti.nn.stack(first, second, solver=ti.Broyden()).equilibrium.solver == ti.Broyden()
    with pytest.raises(TypeError, match=r"got a Linear.*DEQ\(cell\)"):
        ti.nn.stack(first, nn.Linear(3, 3))
    with pytest.raises(ValueError, match="got no layers"):
        ti.nn.stack()


@pytest.mark.parametrize("factor", [1e-7, 1e-3, 1e3])
def test_layers_of_very_different_sizes(factor):
    """A tolerance on all states together would stop before the small ones have values, or call large ones lost."""
    network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))).double()
    for layer in network:
        for tensor in layer.parameters():
            tensor.data.mul_(factor)
    layer, x = ti.nn.as_equilibrium(network, on_failure="raise"), torch.randn(3, 6).double()
    exact = network(x)
    assert (layer(x) - exact).norm() <= 1e-12 * exact.norm()
    assert layer.report.steps.tolist() == [5, 5, 5]


@pytest.mark.parametrize("splitting", ["peaceman-rachford", "forward-backward"])
def test_a_stack_reads_what_monotone_layers_put_out(splitting):
    exact = ti.Anderson(rtol=1e-11, atol=1e-12, max_steps=2000)
    layers = [ti.nn.MonotoneDEQ(ti.nn.MonotoneLinear(5).double(), splitting, solver=exact) for _ in range(3)]
    x = torch.randn(4, 5).double().requires_grad_()
    both, one = ti.nn.stack(*layers), layers[2](layers[1](layers[0](x)))
    assert (both(x) - one).abs().max() < 1e-8
    ours, theirs = (torch.autograd.grad(value.sin().sum(), x)[0] for value in (both(x), one))
    assert (ours - theirs).abs().max() < 1e-2
