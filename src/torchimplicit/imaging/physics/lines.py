"""Systems with a Gram operator of coils that are one for every line of pixels: solved by a matrix for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.imaging.physics.fourier import ifftc

LARGEST = 2**29  # bytes of the matrices


@dataclass(frozen=True, eq=False)
class Lines:
    r"""$(A^H A + c I)^{-1}$ where whole lines of k-space are left out: pixels of one line depend on each other alone.

    Attributes:
        matrices: `(B, across, N, N)`, or `(1, across, N, N)` for all samples.
        axis: of the lines, along which k-space is undersampled, -2 or -1.
    """

    matrices: Tensor
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        """The product with images `(B, H, W)`."""
        x = x.mT if self.axis == -2 else x
        found = (self.matrices @ x.unsqueeze(-1)).squeeze(-1)
        return found.mT if self.axis == -2 else found

    def take(self, rows: Tensor) -> Lines:
        """That of some of the samples."""
        return self if len(self.matrices) == 1 else Lines(self.matrices[rows], self.axis)


@torch.no_grad()
def solved_by_lines(maps: Tensor, mask: Tensor, axis: int, shift: Tensor) -> Lines | None:
    """The inverses, or None where they would be too large.

    Args:
        maps: `(C, H, W)` or `(B, C, H, W)`.
        mask: of the lines, bool, with as many entries as there are pixels along `axis`, and one along the other:
            `(N, 1)` or `(1, N)`, or with a batch.
        axis: along which it varies, -2 or -1.
        shift: $c > 0$, a number.
    """
    maps = maps if maps.dim() == 4 else maps[None]
    lines = maps.movedim(1, -1)  # (B, H, W, C)
    lines = lines.transpose(1, 2) if axis == -2 else lines  # (B, across, N, C)
    flat = mask.reshape(-1, mask.shape[axis])
    count, size = max(len(maps), len(flat)), flat.shape[1]
    if count * lines.shape[1] * size**2 * lines.element_size() > LARGEST:
        return None
    place = torch.arange(size, device=maps.device)
    # The mask's filter, by the distance of two pixels, around the edges.
    kernel = ifftc(flat.to(maps.dtype), (-1,)) / size**0.5
    kernel = torch.fft.ifftshift(kernel, -1)[:, (place[:, None] - place) % size]
    system = (lines.conj() @ lines.mT) * kernel[:, None]
    return Lines(torch.linalg.inv(system + shift * torch.eye(size, device=maps.device)), axis)
