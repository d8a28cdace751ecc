"""Functions that can be differentiated once only: fused kernels, compiled cells, functions of one's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

import torchimplicit as ti
from torchimplicit import diagnose
from torchimplicit.linear import Jacobian

# Torch says so of every fused kernel under vmap.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def attention(z: Tensor) -> Tensor:
    words = z.reshape(len(z), 1, 4, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return 0.5 * nn.functional.scaled_dot_product_attention(words, words, words).reshape(z.shape)


compiled = torch.compile(lambda z: 0.5 * torch.sin(z), backend="aot_eager")
FUNCTIONS = {"attention": attention, "own": lambda z: 0.5 * Once.apply(z), "compiled": compiled}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_and_matrices(name):
    torch.manual_seed(0)
    z, v = torch.randn(2, 2, 32, dtype=torch.float64)
    jacobian = Jacobian(lambda z: z - FUNCTIONS[name](z), z, differences=True)
    whole = jacobian.dense(z)
    torch.testing.assert_close(jacobian.matvec(v), torch.bmm(whole, v.unsqueeze(2)).squeeze(2), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["attention", "own"])
def test_a_product_that_there_is_none_of_is_refused_in_words(name):
    z = torch.randn(2, 32, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"once only.*SDPBackend\.MATH.*LU\(\)"):
        Jacobian(lambda z: z - FUNCTIONS[name](z), z).matvec(z)


def test_what_the_words_say_helps():
    torch.manual_seed(0)
    x = 0.1 * torch.randn(2, 32, dtype=torch.float64)

    def cell(z, x):
        return attention(z) + x

    with pytest.raises(NotImplementedError, match="once only"):
        ti.fixed_point(cell, x, x, solver=ti.Newton(linear_solver=ti.GMRES()))
    expected = ti.fixed_point(cell, x, x, solver=ti.Anderson(rtol=1e-9, atol=0)).value
    by_matrix = ti.fixed_point(cell, x, x, solver=ti.Newton(linear_solver=ti.LU(), rtol=1e-9, atol=0)).value
    torch.testing.assert_close(by_matrix, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dense", [0, 128])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_diagnostics_work(name, dense):
    torch.manual_seed(0)
    layer = ti.nn.DEQ(lambda z, x: FUNCTIONS[name](z) + x, solver=ti.Anderson(rtol=1e-8))
    x = 0.1 * torch.randn(2, 32, dtype=torch.float64)
    assert diagnose.spectral_radius(layer, x, dense=dense).lt(1).all()
    certificate = diagnose.certify(layer, x, dense=dense, starts=1)
    assert certificate.ok
    torch.testing.assert_close(
        certificate.conditioning.smallest, diagnose.certify(layer, x, starts=0).conditioning.smallest, rtol=2e-2, atol=0
    )
