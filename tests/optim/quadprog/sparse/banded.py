"""Programs with sparse matrices, and what is asked of their solutions."""

import warnings

import torch

MATRICES = ("Q", "G", "A")


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def banded(n=30, batch=None, seed=0):
    """A program with a banded Q and G, one equation over all unknowns, and bounds of which some are met."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    vector = (n,) if batch is None else (batch, n)
    near = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    Q = torch.where(near <= 3, draw(n, n), 0.0) * 0.3
    Q = Q + Q.mT + 4.0 * torch.eye(n, dtype=torch.float64)
    G = torch.where(near[::2] <= 4, draw((n + 1) // 2, n), 0.0)
    inside = 0.5 * draw(*vector)
    A = torch.ones(1, n, dtype=torch.float64)
    h = inside @ G.mT + 0.1 * torch.rand((*vector[:-1], len(G)), generator=generator, dtype=torch.float64)
    low, high = inside - 0.5, inside + 0.5
    return {"Q": Q, "q": 3 * draw(*vector), "G": G, "h": h, "A": A, "b": inside @ A.mT, "l": low, "u": high}


def sparse(values, layout):
    """The same program with sparse matrices, as leaves."""
    change = {"coo": torch.Tensor.to_sparse_coo, "csr": quietly_csr, "dense": torch.Tensor.clone}[layout]
    return {name: (change(x) if name in MATRICES else x.clone()).requires_grad_() for name, x in values.items()}


def quietly_csr(matrix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that CSR is in beta state
        return matrix.to_sparse_csr()


def loss(solution):
    duals = solution.duals
    parts = (solution.value, solution.slack, duals.inequality, duals.equality, duals.bounds)
    return sum((x * torch.linspace(-1, 2, x.shape[-1], dtype=x.dtype)).sum() for x in parts)
