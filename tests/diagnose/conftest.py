import pytest
import torch
from torch import nn

import torchimplicit as ti


class TanhCell(nn.Module):
    """`tanh(W z + b + x)` with a spectral radius well below one."""

    def __init__(self, width=6, gain=0.7):
        super().__init__()
        self.linear = nn.Linear(width, width)
        with torch.no_grad():
            self.linear.weight.copy_(gain * torch.linalg.qr(torch.randn(width, width))[0])

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


class LinearCell(nn.Module):
    """`M z + x`, whose Jacobian is `M` everywhere; `M` may be one matrix or one a sample."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, z, x):
        return (self.matrix @ z.unsqueeze(-1)).squeeze(-1) + x


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(5, 6)


@pytest.fixture
def make_layer():
    def make(gain=0.7, **options):
        torch.manual_seed(1)
        return ti.nn.DEQ(TanhCell(gain=gain), **options)

    return make


@pytest.fixture
def linear_layer():
    def make(matrix, **options):
        return ti.nn.DEQ(LinearCell(matrix), **options)

    return make
