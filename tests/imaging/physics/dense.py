"""An operator as a dense matrix, to hold everything else against."""

import torch


def normal(*shape, dtype=torch.float64, seed=0):
    """Normal numbers, always the same."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def matrix(operator, shape, dtype=torch.float64):
    """The matrix `(m, n)` of what an operator does to one sample of a shape."""
    n = torch.Size(shape).numel()
    unit = torch.eye(n, dtype=dtype).reshape(n, *shape)
    return torch.stack([operator.A(row[None]).flatten() for row in unit], 1)
