"""The Jacobian penalty: an unbiased estimate, with the exact gradient."""

import pytest
import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

import torchimplicit as ti


def make(width=4, batch=3):
    torch.manual_seed(0)
    weight = (0.4 * torch.randn(width, width, dtype=torch.float64)).requires_grad_()
    x = torch.randn(batch, width, dtype=torch.float64)
    solver = ti.Anderson(rtol=1e-13, atol=1e-13, max_steps=200)
    layer = ti.nn.DEQ(cell, solver=solver, adjoint=ti.Implicit(ti.LU()))
    return layer, weight, x


def cell(z, x, weight):
    return torch.tanh(z @ weight + x)


def exact(z, x, weight):
    """Mean over the batch of `|J|_F^2 / n`, differentiable, from the Jacobian itself."""
    jacobians = torch.func.vmap(torch.func.jacrev(cell), in_dims=(0, 0, None))(z, x, weight)
    return jacobians.square().sum((1, 2)).mean() / z.shape[1]


def test_it_estimates_the_frobenius_norm():
    layer, weight, x = make()
    z = layer(x, weight).detach()
    expected = exact(z, x, weight).detach()
    estimate = ti.nn.jacobian_penalty(layer, z, x, weight, probes=4000).detach()
    assert abs(float(estimate / expected) - 1) < 0.03
    penalties = []
    for layer_or_cell in (layer, cell):
        torch.manual_seed(1)
        penalties.append(ti.nn.jacobian_penalty(layer_or_cell, z, x, weight))
    assert torch.equal(*penalties), "a layer and its cell are the same to it"


@pytest.mark.parametrize("through", [True, False])
def test_its_gradient_is_that_of_the_same_probes(through):
    layer, weight, x = make()

    def penalty(weight):
        torch.manual_seed(2)
        z = layer(x, weight) if through else fixed
        return ti.nn.jacobian_penalty(layer, z, x, weight, probes=2)

    fixed = layer(x, weight).detach()
    (grad,) = torch.autograd.grad(penalty(weight), weight)
    direction = torch.randn_like(weight)
    step = 1e-5
    with torch.no_grad():
        slope = (penalty(weight + step * direction) - penalty(weight - step * direction)) / (2 * step)
    assert abs(float(slope - (grad * direction).sum().detach())) < 1e-8


def test_every_order_passes_gradcheck_through_the_layer():
    layer, weight, x = make(width=3, batch=2)

    def penalty(weight, x):
        torch.manual_seed(3)
        return ti.nn.jacobian_penalty(layer, layer(x, weight), x, weight)

    inputs = (weight, x.requires_grad_())
    assert torch.autograd.gradcheck(penalty, inputs)
    assert torch.autograd.gradgradcheck(penalty, inputs)


def test_the_path_through_the_fixed_point_counts():
    layer, weight, x = make()
    torch.manual_seed(0)
    probes = 3000
    through = torch.autograd.grad(ti.nn.jacobian_penalty(layer, layer(x, weight), x, weight, probes=probes), weight)[0]
    expected = torch.autograd.grad(exact(layer(x, weight), x, weight), weight)[0]
    without = torch.autograd.grad(exact(layer(x, weight).detach(), x, weight), weight)[0]
    assert (through - expected).norm() < 0.05 * expected.norm()
    assert (without - expected).norm() > 0.1 * expected.norm(), "else this test would tell nothing"


def test_it_falls_when_it_is_trained():
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 16)
    torch.nn.init.normal_(linear.weight, std=0.3)
    layer = ti.nn.DEQ(lambda z, x, linear: torch.tanh(linear(z) + x), on_failure="ignore")
    x = torch.randn(8, 16)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-2)
    penalties = []
    for _ in range(40):
        penalty = ti.nn.jacobian_penalty(layer, layer(x, linear), x, linear)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(float(penalty.detach()))
    assert sum(penalties[-5:]) < 0.5 * sum(penalties[:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_nested_states_and_other_dtypes(dtype):
    torch.manual_seed(0)
    z = {"a": torch.randn(2, 3).to(dtype), "b": (torch.randn(2, 2, 2),)}
    weight = torch.nn.Parameter(torch.ones(3).to(dtype))

    def nested(z, x):
        return {"a": 0.5 * weight * z["a"], "b": (0.25 * z["b"][0] + x,)}

    penalty = ti.nn.jacobian_penalty(nested, z, 1.0, probes=400)
    assert abs(float(penalty.detach()) / ((3 * 0.25 + 4 * 0.0625) / 7) - 1) < 0.08
    penalty.backward()
    assert weight.grad.abs().sum() > 0


def test_bad_use_is_refused():
    layer, weight, x = make()
    with pytest.raises(ValueError, match="probes"):
        ti.nn.jacobian_penalty(layer, x, x, weight, probes=0)
    with pytest.raises(ValueError, match="does not depend"):
        ti.nn.jacobian_penalty(lambda z, x: torch.ones(3, 4), torch.zeros(3, 4), x)


def test_an_argument_that_depends_on_the_state_is_not_differentiated():
    torch.manual_seed(0)
    z = torch.randn(64, 6, dtype=torch.float64, requires_grad=True)
    penalty = ti.nn.jacobian_penalty(lambda z, x: 0.5 * z + 3 * x, z, z, probes=200).detach()
    assert abs(float(penalty) / 0.25 - 1) < 0.03


def test_an_orthogonal_jacobian_and_torch_func():
    torch.manual_seed(0)
    z, x = torch.randn(2, 3, 4, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64)

    def penalty(weight):
        torch.manual_seed(1)
        return ti.nn.jacobian_penalty(lambda z, x: torch.tanh(z @ weight + x), z, x)

    leaf = weight.clone().requires_grad_()
    assert torch.allclose(torch.func.grad(penalty)(weight), torch.autograd.grad(penalty(leaf), leaf)[0])
    assert torch.autograd.gradcheck(penalty, (leaf,))
    assert torch.autograd.gradgradcheck(penalty, (leaf,))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


def fused(z, x, weight):
    """Attention by a kernel without a second derivative, inside of products that have one."""
    words = (z @ weight + x).reshape(len(z), 1, 2, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(words, words, words).reshape(z.shape) @ weight


def plain(z, x, weight):
    words = (z @ weight + x).reshape(len(z), 1, 2, 8)
    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(words, words, words).reshape(z.shape) @ weight


def marked(z, x, weight):
    return Once.apply(z @ weight + x) @ weight


def unmarked(z, x, weight):
    return torch.tanh(z @ weight + x) @ weight


PAIRS = {
    "fused": (fused, plain),
    "marked": (marked, unmarked),
    "compiled": (torch.compile(unmarked, backend="aot_eager"), unmarked),
}


# Torch's compiler looks at the gradient of whatever it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cell_with_one_derivative_has_the_gradient_of_the_plain_one(name, dtype):
    """One that is marked so gave a part of it, without a word; the others raised in the backward pass."""
    torch.manual_seed(0)
    weight = (0.3 * torch.randn(16, 16, dtype=dtype)).requires_grad_()
    z, x = torch.randn(2, 3, 16, dtype=dtype)
    z.requires_grad_()
    found = []
    for each in PAIRS[name]:
        torch.manual_seed(1)
        penalty = ti.nn.jacobian_penalty(each, z, x, weight, probes=2)
        found.append((penalty.detach(), *torch.autograd.grad(penalty, (weight, z))))
    tolerance = 1e-7 if dtype == torch.float64 else 2e-3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_a_complex_cell_with_one_derivative():
    torch.manual_seed(0)
    weight = (0.5 * torch.randn(4, 4, dtype=torch.complex128)).requires_grad_()
    z, x = torch.randn(2, 3, 4, dtype=torch.complex128)
    found = []
    for each in (lambda z, x, w: torch.complex(Once.apply((z @ w + x).real), (z @ w).imag),
                 lambda z, x, w: torch.complex(torch.tanh((z @ w + x).real), (z @ w).imag)):  # fmt: skip
        torch.manual_seed(1)
        found.append(torch.autograd.grad(ti.nn.jacobian_penalty(each, z, x, weight), weight)[0])
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-8)
