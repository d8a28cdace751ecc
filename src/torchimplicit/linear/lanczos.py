"""The outermost eigenvalues of symmetric operators, from a few products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.tree import norm
from torchimplicit.linear.solver import Product


class Tridiagonal(NamedTuple):
    """What `steps` of the Lanczos process leave of a symmetric operator, for a start.

    Attributes:
        middle: the diagonal, `(B, steps)`.
        sides: beside it, `(B, steps)`: the last couples to the vector that would come next. Zero from where an
            invariant subspace was found; what follows it is zero, too.
        basis: the vectors, `(B, steps + 1, n)`.
    """

    middle: Tensor
    sides: Tensor
    basis: Tensor

    @property
    def matrix(self) -> Tensor:
        """The tridiagonal matrices, `(B, steps, steps)`."""
        off = torch.diag_embed(self.sides[:, :-1], 1)
        return torch.diag_embed(self.middle) + off + off.mT


def lanczos(product: Product, start: Tensor, steps: int) -> Tridiagonal:
    """The Lanczos process, fully reorthogonalised. A product that is not finite counts as zero.

    Args:
        product: of the symmetric operator with `(B, n)`, sample by sample.
        start: the first vector, `(B, n)`.
        steps: products, >= 1.
    """
    size = norm(start).unsqueeze(1)
    vector = torch.where(size > 0, start / size, 0)
    basis, diagonal, beside = [vector], [], []
    for _ in range(steps):
        image = product(vector)
        diagonal.append((vector * image).sum(1))
        for _ in range(2):  # twice is enough
            known = torch.stack(basis, dim=1)
            image = image - torch.bmm(torch.bmm(image.unsqueeze(1), known.mT), known).squeeze(1)
        size = norm(image)
        # An invariant subspace is all there is: what rounding leaves would be noise.
        scale = torch.stack([entry.abs() for entry in (*diagonal, *beside)]).amax(0)
        size = torch.where(size > 100 * torch.finfo(size.dtype).eps * scale, size, 0)
        beside.append(size)
        vector = torch.where(size.unsqueeze(1) > 0, image / size.unsqueeze(1), 0)
        basis.append(vector)
    middle, sides = (torch.stack(rows, dim=1).nan_to_num(0, 0, 0) for rows in (diagonal, beside))
    return Tridiagonal(middle, sides, torch.stack(basis, dim=1))


class Range(NamedTuple):
    """Estimates of the outermost eigenvalues, `(B,)` each, from within: no true one is exceeded, but for rounding.

    Attributes:
        lowest: of the smallest eigenvalue.
        highest: of the largest.
        play: how far the largest one's Ritz pair is from an eigenpair: some eigenvalue is that near to it.
    """

    lowest: Tensor
    highest: Tensor
    play: Tensor


def eigenvalue_range(product: Product, start: Tensor, steps: int = 16) -> Range:
    """The outermost eigenvalues of a symmetric operator by the Lanczos process, fully reorthogonalised.

    Exact up to rounding with as many steps as unknowns. A negative estimate proves that the operator is indefinite; a
    positive one proves nothing where the steps are fewer. A product that is not finite counts as zero.

    Args:
        product: of the operator with `(B, n)`, sample by sample.
        start: the first vector, `(B, n)`; see `probe`.
        steps: products, >= 1; no more than there are unknowns.
    """
    found = lanczos(product, start, min(steps, start.shape[1]))
    values, vectors = torch.linalg.eigh(found.matrix)
    return Range(values[:, 0], values[:, -1], found.sides[:, -1] * vectors[:, -1, -1].abs())


def probe(like: Tensor) -> Tensor:
    """A start for `eigenvalue_range` that no eigenvector is orthogonal to by accident, `(B, n)`, always the same."""
    found = transforms.outside(_normals, like.shape[1])
    return found.to(like.device, like.dtype).expand_as(like)


def _normals(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
