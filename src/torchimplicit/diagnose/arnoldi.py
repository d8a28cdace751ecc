"""The leading eigenvalue of a linear operator, by a restarted Arnoldi process; and all of them, of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.tree import norm
from torchimplicit.linear import LinearOperator


def leading(operator: LinearOperator, z: Tensor, steps: int, restarts: int, rtol: float) -> tuple[Tensor, Tensor]:
    """Largest modulus of an eigenvalue by restarted Arnoldi; a sample's result is frozen once it has settled.

    Args:
        operator: the operator.
        z: any `(B, n)` tensor of its dtype and device.
        steps: Arnoldi vectors between restarts.
        restarts: most restarts.
        rtol: a sample is done when the Ritz pair's residual, relative to its modulus, is below this.

    Returns:
        The modulus `(B,)`, in double precision, NaN where a product is not finite; and by how much it last changed,
        relatively, zero where it has settled.
    """
    steps = min(steps, z.shape[1])
    # Drawn on the CPU: the same on any device.
    start = torch.randn(z.shape[1], dtype=torch.float64, device="cpu").to(z).expand_as(z)
    radius = z.new_full(z.shape[:1], torch.nan, dtype=torch.float64)
    change = torch.full_like(radius, torch.inf)
    running = torch.ones_like(radius, dtype=torch.bool)
    for _ in range(restarts + 1):
        basis, hessenberg = _arnoldi(operator, start, steps)
        found, vector = _largest(hessenberg[:, :steps])
        error = hessenberg[:, steps, steps - 1].double() * vector[:, -1].abs()
        change = torch.where(running, (found - radius).abs() / found, change)
        radius = torch.where(running, found, radius)
        running = running & (error > rtol * found)  # NaN ends a sample, too
        if not bool(running.any()):
            break
        ritz = torch.bmm(vector.real.unsqueeze(1).to(z.dtype), basis[:, :steps]).squeeze(1)
        start = torch.where((norm(ritz) > 0).unsqueeze(1), ritz, start)
    return radius, torch.where(running, change, 0)


def _arnoldi(operator: LinearOperator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal basis `(B, steps + 1, n)` and Hessenberg matrix `(B, steps + 1, steps)`; zeros once exhausted."""
    batch, width = start.shape
    basis = start.new_zeros(batch, steps + 1, width)
    hessenberg = start.new_zeros(batch, steps + 1, steps)
    basis[:, 0] = start / norm(start).unsqueeze(1)
    for j in range(steps):
        w = operator.matvec(basis[:, j])
        size = norm(w)
        known = basis[:, : j + 1]
        for _ in range(2):  # orthogonalising twice is enough
            part = torch.bmm(known, w.unsqueeze(2))
            w = w - torch.bmm(part.mT, known).squeeze(1)
            hessenberg[:, : j + 1, j] += part.squeeze(2)
        length = norm(w)
        length = torch.where(length <= 10 * torch.finfo(w.dtype).eps * size, 0, length)
        hessenberg[:, j + 1, j] = length
        basis[:, j + 1] = torch.where((length == 0).unsqueeze(1), 0, w / length.unsqueeze(1))
    return basis, hessenberg


def largest_modulus(matrices: Tensor) -> Tensor:
    """The largest modulus of an eigenvalue, in double precision, `(B,)`; NaN for a matrix that is not finite."""
    finite = matrices.isfinite().flatten(1).all(1)
    values = torch.linalg.eigvals(torch.where(finite[:, None, None], matrices, 0).double())
    return torch.where(finite, values.abs().amax(1), torch.nan)


def _largest(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest modulus of an eigenvalue `(B,)` and its unit eigenvector `(B, n)`, in double precision."""
    finite = matrices.isfinite().flatten(1).all(1)
    values, vectors = torch.linalg.eig(torch.where(finite[:, None, None], matrices, 0).double())
    radius, index = values.abs().max(dim=1)
    vector = vectors.gather(2, index[:, None, None].expand(-1, vectors.shape[1], 1)).squeeze(2)
    return torch.where(finite, radius, torch.nan), vector
