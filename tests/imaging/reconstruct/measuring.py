"""Small operators in closed form, as a user may bring them: `A`, `A_adjoint`, `prox`, `norm`, `take`."""

import copy

import torch
from torch import nn


class Circular(nn.Module):
    """Circular convolution of real images `(B, 1, n, n)` with a kernel `(n, n)`, or of one's own, `(B, n, n)`."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = nn.Parameter(kernel)

    @property
    def symbol(self):
        symbol = torch.fft.fft2(self.kernel)
        return symbol if symbol.dim() == 2 else symbol.unsqueeze(1)

    def _filtered(self, x, symbol):
        return torch.fft.ifft2(symbol * torch.fft.fft2(x)).real

    def A(self, x):
        return self._filtered(x, self.symbol)

    def A_adjoint(self, y):
        return self._filtered(y, self.symbol.conj())

    def norm(self, like=None):
        return self.symbol.abs().amax((-2, -1)).flatten() if self.kernel.dim() == 3 else self.symbol.abs().amax()

    def prox(self, z, y, step):
        symbol = self.symbol
        right = symbol.conj() * torch.fft.fft2(y) + torch.fft.fft2(z) / step
        return torch.fft.ifft2(right / (symbol.abs().square() + 1 / step)).real

    def take(self, rows):
        if self.kernel.dim() == 2:
            return self
        own = copy.copy(self)
        own._parameters = {"kernel": self.kernel[rows]}
        return own


class Coils(nn.Module):
    """Complex images `(B, n, n)` by coil maps `(C, n, n)` and a mask of lines `(n,)`, or of one's own, `(B, n)`."""

    def __init__(self, maps, mask):
        super().__init__()
        self.maps = nn.Parameter(maps)
        self.register_buffer("mask", mask)

    def _lines(self):
        return self.mask.unsqueeze(-1) if self.mask.dim() == 1 else self.mask[:, None, :, None]

    def A(self, x):
        return self._lines() * torch.fft.fft2(self.maps * x.unsqueeze(-3), norm="ortho")

    def A_adjoint(self, y):
        return (self.maps.conj() * torch.fft.ifft2(self._lines() * y, norm="ortho")).sum(-3)

    def take(self, rows):
        if self.mask.dim() == 1:
            return self
        own = copy.copy(self)
        own._buffers = {"mask": self.mask[rows]}
        return own


def blur(n=12, width=3, dtype=torch.float64, batch=None):
    """A box of `width` pixels on `n`; with `batch`, of as many widths."""

    def box(width):
        kernel = torch.zeros(n, n, dtype=dtype)
        kernel[:width, :width] = 1 / width**2
        return kernel.roll((-(width // 2), -(width // 2)), (0, 1))

    return Circular(box(width) if batch is None else torch.stack([box(width + i % 3) for i in range(batch)]))


def coils(n=12, count=3, batch=None, seed=0):
    """Random smooth maps of a root sum of squares of one, and a third of the lines."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, n, n, dtype=torch.complex128, generator=generator)
    maps = torch.fft.ifft2(torch.fft.fft2(maps)[:, :3, :3], s=(n, n))
    maps = maps / maps.abs().square().sum(0).sqrt()
    shape = (n,) if batch is None else (batch, n)
    mask = torch.rand(shape, generator=generator) < 0.4
    mask[..., :2] = True
    return Coils(maps, mask)


def images(batch=2, n=12, seed=0, dtype=torch.float64):
    """Squares on slopes, `(B, 1, n, n)`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 1, n, dtype=dtype).expand(batch, 1, n, n).clone()
    for i in range(batch):
        a, b = torch.randint(1, n // 2, (2,), generator=generator).tolist()
        x[i, :, a : a + n // 3, b : b + n // 3] += 1
    return x
