"""What every projection onto a convex set must keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck


def check_projection(project: Callable[[Tensor], Tensor], n: int = 6, scale: float = 2.0) -> None:
    r"""Holds a projection onto a convex set to the contract.

    Points of the set stay; no point of the set lies beyond the projection $y$ of a point $x$, in the direction to it:
    $\langle x - y, s - y \rangle \le 0$ for other points $s$ of the set, which proves both that $y$ is the nearest and
    that the set is convex; distances do not grow; derivatives agree with differences; a sample does not notice its
    batch mates; dtype and shape stay.

    Args:
        project: `x -> y` of points `(..., n)`, its parameters given.
        n: dimensions of a point.
        scale: of the random points.

    Raises:
        AssertionError: something does not hold; `gradcheck` raises its own error.
    """
    x = scale * torch.randn(64, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = project(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype), f"got {tuple(y.shape)} of {y.dtype}, unlike the points"
    size = 1 + float(x.abs().max())
    off = float((project(y) - y).abs().max())
    assert off < 1e-9 * size, f"a point of the set moves by {off:.1e}"
    beyond = ((x - y).unsqueeze(1) * (y.unsqueeze(0) - y.unsqueeze(1))).sum(2)
    worst = float(beyond.max())
    assert worst < 1e-9 * size**2, f"a point of the set lies beyond a projection, by {worst:.1e}: it is not the nearest"
    apart, before = (y[1:] - y[:-1]).norm(dim=1), (x[1:] - x[:-1]).norm(dim=1)
    assert (apart <= before * (1 + 1e-9)).all(), "points are farther apart than they were"
    assert torch.equal(project(x[5:6]), y[5:6]), "samples depend on their batch mates"
    assert torch.equal(project(x.view(8, 8, n)), y.view(8, 8, n)), "all dimensions but the last are the batch"
    assert project(x.float()).dtype == torch.float32, "the dtype is the points' own"
    assert gradcheck(project, x[:4].clone().requires_grad_(), eps=1e-7, atol=1e-5, fast_mode=True)
