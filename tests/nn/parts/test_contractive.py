"""Maps that contract by construction: the bound holds, is tight, and a layer of them always converges."""

import copy

import pytest
import torch
from torch.autograd import gradcheck

import torchimplicit as ti
from torchimplicit.nn.parts.contractive import norm_bound


def operator_norm(module, *shape):
    """The largest singular value of a module's linear part, as a dense matrix."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda x: module(x) - module(zero), zero)
    return float(torch.linalg.matrix_norm(matrix.reshape(-1, zero.numel()), 2))


def wild(module):
    """A weight as an optimiser that has run away leaves it."""
    torch.nn.init.normal_(module.parametrizations.weight.original, std=30)
    return module


@pytest.mark.parametrize(("shape", "iterations"), [((7, 7), 6), ((4, 9), 3), ((9, 4), 1), ((1, 5), 6)])
def test_the_norm_is_bounded_from_above_and_nearly_met(shape, iterations):
    torch.manual_seed(0)
    for scale in (1e-12, 1.0, 1e12):
        matrices = scale * torch.randn(5, *shape, dtype=torch.float64)
        true, bound = torch.linalg.matrix_norm(matrices, 2), norm_bound(matrices, iterations)
        assert (bound >= true * (1 - 1e-12)).all()
        assert (bound <= true * min(shape) ** (0.5 ** (iterations + 1)) * (1 + 1e-12)).all()
    assert norm_bound(torch.zeros(3, 3)).isfinite()
    assert gradcheck(lambda w: norm_bound(w, iterations), torch.randn(*shape, dtype=torch.float64, requires_grad=True))


def test_a_linear_map_is_bounded_whatever_its_weight():
    torch.manual_seed(0)
    linear = wild(ti.nn.ContractiveLinear(12, 9, bound=0.7, dtype=torch.float64))
    assert 0.7 / 1.03 < torch.linalg.matrix_norm(linear.weight, 2) <= 0.7
    small = torch.full((9, 12), 1e-3, dtype=torch.float64)
    linear.parametrizations.weight.original.data.copy_(small)
    assert torch.equal(linear.weight, small), "a weight below the bound is left alone"


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **o: ti.nn.ContractiveConv1d(3, 4, 5, padding=2, **o), (3, 12)),
        (lambda **o: ti.nn.ContractiveConv2d(2, 3, 3, padding=1, **o), (2, 8, 7)),
        (lambda **o: ti.nn.ContractiveConv2d(2, 2, 3, padding=1, padding_mode="circular", **o), (2, 8, 8)),
        (lambda **o: ti.nn.ContractiveConv2d(2, 2, 3, padding="same", padding_mode="circular", **o), (2, 8, 8)),
        (lambda **o: ti.nn.ContractiveConv2d(2, 2, 3, padding="valid", padding_mode="circular", **o), (2, 8, 8)),
        (lambda **o: ti.nn.ContractiveConv2d(4, 4, 3, padding=2, dilation=2, groups=2, **o), (4, 7, 7)),
        (lambda **o: ti.nn.ContractiveConv2d(2, 4, (2, 4), stride=2, bias=False, **o), (2, 8, 8)),
        (lambda **o: ti.nn.ContractiveConv3d(1, 2, 3, padding=1, **o), (1, 5, 5, 5)),
    ],
)
def test_a_convolution_is_bounded_whatever_its_weight(make, shape):
    torch.manual_seed(0)
    for _ in range(3):
        module = wild(make(bound=0.6).double())
        norm = operator_norm(module, *shape)
        assert norm <= 0.6
        assert norm > 0.3, "the bound is not hopelessly large"


def test_on_large_images_the_bound_of_a_convolution_is_tight():
    torch.manual_seed(0)
    module = wild(ti.nn.ContractiveConv2d(2, 2, 3, padding=1, padding_mode="circular", bound=1.0).double())
    assert operator_norm(module, 2, 24, 24) > 0.95


def test_gradients_reach_the_unscaled_weight():
    torch.manual_seed(0)
    for module, x in (
        (ti.nn.ContractiveLinear(3, 4, bound=0.5).double(), torch.randn(2, 3).double()),
        (ti.nn.ContractiveConv2d(2, 2, 3, bound=0.5).double(), torch.randn(1, 2, 4, 4).double()),
    ):
        original = wild(module).parametrizations.weight.original

        def value(weight, module=module, x=x):
            return torch.func.functional_call(module, {"parametrizations.weight.original": weight}, (x,))

        assert gradcheck(value, original.detach().clone().requires_grad_(), fast_mode=True)


def test_a_layer_of_it_converges_by_plain_iteration_whatever_the_weights():
    torch.manual_seed(0)

    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = wild(ti.nn.ContractiveConv2d(3, 3, 3, padding=1, bound=0.8))

        def forward(self, z, x):
            return torch.relu(self.conv(z) + x)

    layer = ti.nn.DEQ(Cell(), solver=ti.Picard(rtol=1e-4, max_steps=60), on_failure="raise")
    layer(torch.randn(4, 3, 6, 6)).sum().backward()
    assert layer.report.converged
    assert layer.report.backward.converged
    original = layer.cell.conv.parametrizations.weight.original
    assert original.grad.isfinite().all()
    assert original.grad.abs().sum() > 0


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 6])
def test_the_bound_holds_between_the_points_of_the_grid(taps):
    torch.manual_seed(taps)
    worst = []
    for _ in range(100):
        module = wild(ti.nn.ContractiveConv1d(1, 1, taps, bound=1.0, bias=False).double())
        module.parametrizations.weight.original.data.mul_(1e6)
        worst.append(float(torch.fft.fft(module.weight.detach().flatten(), 5000).abs().max()))
    assert max(worst) <= 1 + 1e-12
    assert min(worst) > 0.95


@pytest.mark.parametrize(
    "make",
    [
        lambda: ti.nn.ContractiveLinear(2, 2, bound=0.0),
        lambda: ti.nn.ContractiveLinear(2, 2, bound=float("inf")),
        lambda: ti.nn.ContractiveLinear(2, 2, bound="0.9"),
        lambda: ti.nn.ContractiveLinear(2, 2, iterations=0),
        lambda: ti.nn.ContractiveConv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_impossible_options_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_keep_the_bound(dtype):
    torch.manual_seed(0)
    slack = 1 + 4 * torch.finfo(dtype).eps  # the rounding of the weight itself
    for make in (lambda: ti.nn.ContractiveLinear(16, 16), lambda: ti.nn.ContractiveConv2d(4, 4, 1)):
        module = make().to(dtype)
        torch.nn.init.normal_(module.parametrizations.weight.original, std=30)
        assert module.weight.dtype == dtype
        assert torch.linalg.matrix_norm(module.weight.detach().double().flatten(1), 2) <= 0.9 * slack
    linear = ti.nn.ContractiveLinear(4, 4)
    with torch.no_grad():  # of rank one: there the bound is met exactly
        linear.weight = 5 * torch.outer(torch.randn(4), torch.randn(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = linear.weight.detach()
    assert torch.linalg.matrix_norm(weight.double(), 2) <= 0.9 * (1 + 1e-6)


def test_an_assigned_weight_is_scaled_and_a_circle_must_not_repeat():
    linear = ti.nn.ContractiveLinear(4, 4, bound=0.5, bias=False).double()
    with torch.no_grad():
        linear.weight = 0.1 * torch.eye(4, dtype=torch.float64)
    assert torch.equal(linear.weight, 0.1 * torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="circular padding"):
        ti.nn.ContractiveConv2d(1, 1, 1, padding=2, padding_mode="circular")


def test_weights_without_a_direction_have_finite_gradients():
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(2, 2, 3, 3)
    for module, weight in (
        (ti.nn.ContractiveLinear(3, 3), torch.zeros(3, 3)),
        (ti.nn.ContractiveConv2d(2, 2, 3), torch.zeros(2, 2, 3, 3)),
        (ti.nn.ContractiveConv2d(2, 2, 3), laplacian),  # whose symbol is zero at frequency zero
    ):
        with torch.no_grad():
            module.weight = weight
        module.weight.square().sum().backward()
        assert module.parametrizations.weight.original.grad.isfinite().all()


def test_the_bound_of_a_convolution_is_that_of_its_largest_group_and_copies_are_independent():
    torch.manual_seed(0)
    module = ti.nn.ContractiveConv1d(4, 4, 1, groups=2, bias=False, bound=1.0).double()
    with torch.no_grad():
        module.weight = torch.cat([torch.eye(2), 5 * torch.eye(2)]).double().unsqueeze(2)
    twin = copy.deepcopy(module)
    sizes = module.weight.detach().flatten(1).norm(dim=1)
    assert torch.allclose(sizes / sizes[2], torch.tensor([0.2, 0.2, 1, 1]).double()), "scaled as one"
    assert 0.98 < sizes[2] <= 1
    twin.parametrizations.weight.original.data.mul_(0.1)
    assert torch.equal(module.weight.flatten(1).norm(dim=1), sizes)


def test_ensembles_and_second_derivatives_of_a_convolution():
    torch.manual_seed(0)
    module = ti.nn.ContractiveConv2d(2, 2, 3, padding=1, bound=0.5).double()
    x, original = torch.randn(1, 2, 5, 5).double(), module.parametrizations.weight.original.detach()
    weights = torch.stack([original, 20 * torch.randn_like(original)])

    def value(weight):
        return torch.func.functional_call(module, {"parametrizations.weight.original": weight}, (x,)).square().sum()

    each = torch.stack([torch.func.grad(value)(weight) for weight in weights])
    assert torch.allclose(torch.vmap(torch.func.grad(value))(weights), each)
    assert torch.autograd.gradgradcheck(value, (weights[1].clone().requires_grad_(),), fast_mode=True)
