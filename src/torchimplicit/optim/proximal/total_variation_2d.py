r"""The proximal map of an image's total variation, as the fixed point of a splitting."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.status import OnFailure
from torchimplicit.equations import fixed_point
from torchimplicit.linear import GMRES
from torchimplicit.optim.projection.balls import onto_ball, onto_box
from torchimplicit.optim.projection.batch import Batch, Scalar
from torchimplicit.solve import Anderson, Solver

_PENALTY = 4.0  # of 0.5, 1, 2, 4, 10, with 10 the one of the fewest steps on noisy edges, 8 x 8 to 32 x 32


def total_variation_2d(
    x: Tensor,
    step: Scalar = 1.0,
    *,
    isotropic: bool = False,
    solver: Solver = Anderson(window=10, rtol=1e-5, atol=1e-7, max_steps=1000),
    adjoint: Adjoint = Implicit(GMRES(rtol=1e-5, restart=30, max_steps=1000)),
    on_failure: OnFailure = "raise",
) -> Tensor:
    r"""Of an image's total variation, $\sum_{ij} \|(\nabla x)_{ij}\|$ with forward differences, to a tolerance.

    With $u$ in the space of gradients, $z = \mathrm{prox}_{\alpha \|\cdot\| / \rho}(u)$ and
    $y = (I + \rho \nabla^\top \nabla)^{-1} (x + \rho \nabla^\top (2 z - u))$, which cosine transforms solve, the
    fixed point of $u \mapsto u + \nabla y - z$ has $\nabla y = z$, and $y$ is the proximal point: Douglas-Rachford
    splitting. Any solver may find the fixed point, any adjoint differentiate it.

    For signals take `total_variation`, which is exact. With `isotropic=True` gradients little longer than the
    threshold make the fixed point ill-conditioned: hundreds of steps, a solve and its backward several times as long,
    and maybe more steps than allowed, which is then said. Computed in float64 throughout.

    Source: J. Douglas, H. Rachford, Trans. AMS 82 (1956) 421; J. Eckstein, D. Bertsekas, Math. Programming 55 (1992)
    293, section 5, for its form as alternating directions.

    Args:
        x: images `(..., h, w)`.
        step: $\alpha \ge 0$, a number or one per sample, `(...)`.
        isotropic: whether $\|\cdot\|$ is the length of a gradient, in place of the sum of its two entries' sizes.
        solver: of the fixed point; its tolerance is that of $u$.
        adjoint: how it is differentiated.
        on_failure: "raise", "warn" or "ignore" images that do not converge, forward and backward.

    Returns:
        The proximal points, as `x`.

    Raises:
        ConvergenceError: an image did not converge (with `on_failure="raise"`).
        ValueError: a step is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import prox
        >>> prox.total_variation_2d(torch.tensor([[[0.0, 4.0], [1.0, 3.0]]]), 0.25)
        tensor([[[0.5000, 3.5000],
                 [1.0000, 3.0000]]])
    """
    batch = Batch("total_variation_2d", x, event=2, fault="a step is negative", on_failure=on_failure)
    step = batch.scalar("step", step, at_least=0).expand(*batch.shape, 1, 1)
    # In float32 the tolerance would be within reach of rounding for large images.
    images, radius = batch.x.reshape(-1, *batch.x.shape[-2:]).double(), step.reshape(-1, 1, 1).double()
    basis = _basis(images.detach())

    def sides(u: Tensor, images: Tensor, radius: Tensor, *basis: Tensor) -> tuple[Tensor, Tensor]:
        # Moreau: the proximal map of a norm is what the projection onto the dual ball leaves.
        radius = radius.unsqueeze(-1) / _PENALTY
        z = u - (onto_ball(u, radius)[0] if isotropic else onto_box(u, -radius, radius))
        return z, _smooth(images + _PENALTY * transposed(2 * z - u), *basis)

    def split(u: Tensor, *args: Tensor) -> Tensor:
        z, y = sides(u, *args)
        return u + gradient(y) - z

    options: Any = {"solver": solver, "adjoint": adjoint, "on_failure": on_failure, "batched_args": (0, 1)}
    start = torch.zeros_like(gradient(images.detach()))
    u = fixed_point(split, start, images, radius, *basis, **options).value
    return batch.finish(sides(u, images, radius, *basis)[1].reshape(batch.x.shape))


def _smooth(images: Tensor, columns: Tensor, rows: Tensor, divisor: Tensor) -> Tensor:
    """Images `(B, h, w)` times the inverse of the identity and the penalty's Laplacian, diagonal in cosines."""
    return columns.mT @ ((columns @ images @ rows.mT) / divisor) @ rows


def _basis(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines of columns and rows, and what divides their coefficients."""
    (columns, high), (rows, wide) = (_cosines(size, images) for size in images.shape[-2:])
    return columns, rows, 1 + _PENALTY * (high[:, None] + wide)


def _cosines(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal eigenvectors, as rows, and eigenvalues of the Laplacian of a path of so many nodes."""
    wave = math.pi / size * torch.arange(size, dtype=torch.float64, device="cpu")
    basis = torch.cos(wave[:, None] * (torch.arange(size, device="cpu") + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(like), (2 - 2 * torch.cos(wave)).to(like)


def gradient(x: Tensor) -> Tensor:
    """Forward differences `(B, h, w, 2)` of images `(B, h, w)`, zero across the last edges."""
    down = torch.nn.functional.pad(x.diff(dim=-2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=-1), (0, 1))
    return torch.stack([down, right], -1)


def transposed(u: Tensor) -> Tensor:
    """The transpose of `gradient`: images `(B, h, w)`."""
    down, right, pad = u[..., :-1, :, 0], u[..., :-1, 1], torch.nn.functional.pad
    return pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))
