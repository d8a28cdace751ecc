"""Images to register: smooth, known everywhere, so that the truth is known too."""

import torch

from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.axes import gaussian

D = torch.float64


def texture(*size, seed=0, width=2.5, dtype=D):
    """A smooth random image that fades towards its border, `(1, 1, *size)`."""
    noise = torch.randn(1, 1, *size, dtype=D, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian(noise, [width] * len(size))
    for axis, n in enumerate(size, 2):
        window = torch.sin(torch.pi * (torch.arange(n, dtype=D) + 0.5) / n) ** 3
        smooth = smooth * window.view(-1, *[1] * (len(size) + 1 - axis))
    return (smooth / smooth.std()).to(dtype)


def turned(angle, shift, center, scale=1.0):
    """Rotation in the first two axes about a center, growth, and a shift: a matrix `(1, D + 1, D + 1)`."""
    space = len(shift)
    matrix = torch.eye(space + 1, dtype=D)
    c, s = torch.cos(torch.tensor(angle, dtype=D)), torch.sin(torch.tensor(angle, dtype=D))
    matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1] = c, -s, s, c
    matrix[:space, :space] *= scale
    center = torch.as_tensor(center, dtype=D)
    matrix[:space, space] = torch.tensor(shift, dtype=D) + center - matrix[:space, :space] @ center
    return matrix[None]


def moved(image, transform, grid):
    """What an image looks like where a transform has taken it, by cubic splines: `align` finds the transform."""
    points = transform.inverse()(grid.points(image)[None].expand(len(image), -1, -1))
    at = grid.voxels_of(points).mT.unflatten(2, grid.size)
    return register.sample(image, at, interpolation="cubic")


def image_of(tensor, affine):
    return Image(tensor[0, 0], affine)
