r"""Partial differential equations by the method of lines: space on a grid, time left to `odeint`.

The fields here are modules `field(t, u)` of a state `(B, C, X)` or `(B, C, X, Y)`, values at the points of a regular
grid, with central differences of second order. What is unknown in them (a coefficient, a source) is a parameter or a
module like any other and is fitted through the solver. Diffusion is stiff: the eigenvalues grow as $4 D / h^2$, so
that an explicit method's steps shrink with the square of the spacing; `ESDIRK54` takes steps of the solution's own
scale, at the price of a linear solve of the size of the grid. On more than a few hundred points take a looser grid,
or an explicit method with many cheap steps.

Source: W. Schiesser, The Numerical Method of Lines, Academic Press 1991.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from torchimplicit.core.options import is_number, require

Boundary = Literal["periodic", "insulated", "zero"]
PADDING = {"periodic": "circular", "insulated": "replicate", "zero": "constant"}


class Grid(nn.Module):
    """Base of the fields on a regular grid: differences between neighbouring points.

    Args:
        spacing: distance of neighbouring points, > 0, the same in both directions.
        boundary: "periodic"; "insulated", nothing flows out; "zero", the values just outside are zero.
    """

    def __init__(self, spacing: float, boundary: Boundary = "periodic"):
        """Keeps the geometry."""
        super().__init__()
        self.spacing, self.boundary = spacing, boundary
        require(self, "spacing", is_number(spacing) and spacing > 0, "a number > 0")
        require(self, "boundary", boundary in PADDING, f"one of {', '.join(PADDING)}")

    def laplacian(self, u: Tensor) -> Tensor:
        r"""$\Delta u$, `(B, C, X[, Y])`: the sum of all neighbours' differences over the square of the spacing."""
        total = -2 * (u.dim() - 2) * u
        for dim in self._directions(u):
            below, above = self._neighbours(u, dim)
            total = total + below + above
        return total / self.spacing**2

    def divergence(self, flux: Tensor) -> Tensor:
        r"""$\sum_d \partial_d F$ of one flux in all directions, by central differences: what leaves arrives nearby."""
        total = torch.zeros_like(flux)
        for dim in self._directions(flux):
            below, above = self._neighbours(flux, dim)
            total = total + above - below
        return total / (2 * self.spacing)

    def _directions(self, u: Tensor) -> range:
        if u.dim() not in (3, 4):
            raise ValueError(
                f"{type(self).__name__}: got a state of shape {tuple(u.shape)}, expected (B, C, X) or (B, C, X, Y); "
                "try u.unsqueeze(1) for one quantity"
            )
        return range(2, u.dim())

    def _neighbours(self, u: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The values one point below and one point above."""
        if self.boundary == "periodic":
            return u.roll(1, dim), u.roll(-1, dim)
        size = u.shape[dim]
        first, last = u.narrow(dim, 0, 1), u.narrow(dim, size - 1, 1)
        if self.boundary == "zero":
            first, last = torch.zeros_like(first), torch.zeros_like(last)
        inner = size - 1
        return torch.cat((first, u.narrow(dim, 0, inner)), dim), torch.cat((u.narrow(dim, 1, inner), last), dim)


class ReactionDiffusion(Grid):
    r"""$\dot u = D \Delta u + s(u)$: several quantities that spread and react with each other.

    Args:
        diffusion: $D$, one number > 0 per quantity; learned, as its logarithm.
        source: $s$, a module from the state to its rate of change at every point, for example 1x1 convolutions; None
            for diffusion alone.
        spacing: see `Grid`.
        boundary: see `Grid`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> field = ti.nn.ReactionDiffusion([0.1], None, spacing=0.1)
        >>> heat = torch.zeros(1, 1, 20)
        >>> heat[..., 10] = 1.0
        >>> later = ti.odeint(field, heat, torch.tensor([0.0, 1.0])).value[-1]
        >>> bool(torch.isclose(later.sum(), heat.sum()) and later.max() < 0.2)
        True
    """

    def __init__(
        self, diffusion: list[float], source: nn.Module | None, spacing: float, boundary: Boundary = "periodic"
    ):
        """Keeps the source."""
        super().__init__(spacing, boundary)
        positive = len(diffusion) > 0 and all(each > 0 for each in diffusion)
        if not positive:
            raise ValueError(f"ReactionDiffusion(diffusion={diffusion}): expected a number > 0 for every quantity")
        self.log_diffusion = nn.Parameter(torch.tensor(diffusion).log())
        self.source = source

    @property
    def diffusion(self) -> Tensor:
        """$D$, `(C,)`."""
        return self.log_diffusion.exp()

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        """The rate of change, like `u`."""
        if u.dim() > 1 and u.shape[1] != len(self.log_diffusion):
            raise ValueError(
                f"ReactionDiffusion: got {u.shape[1]} quantities in a state of shape {tuple(u.shape)}, expected "
                f"{len(self.log_diffusion)}, one per number in diffusion"
            )
        spread = self.diffusion.view(-1, *(1,) * (u.dim() - 2)) * self.laplacian(u)
        return spread if self.source is None else spread + self.source(u)


class Burgers(Grid):
    r"""$\dot u + \sum_d \partial_d (u^2 / 2) = \nu \Delta u$: a flow that carries itself, steepens and is smoothed.

    In conservative form: on a periodic grid the sum of $u$ never changes. Central differences need $\nu$ of at least
    half the largest $|u|$ times the spacing, or a front rings.

    Args:
        viscosity: $\nu$, a number > 0; learned, as its logarithm.
        spacing: see `Grid`.
        boundary: see `Grid`.
    """

    def __init__(self, viscosity: float, spacing: float, boundary: Boundary = "periodic"):
        """Keeps the viscosity."""
        super().__init__(spacing, boundary)
        if not viscosity > 0:
            raise ValueError(f"Burgers(viscosity={viscosity}): expected a number > 0")
        self.log_viscosity = nn.Parameter(torch.tensor(float(viscosity)).log())

    @property
    def viscosity(self) -> Tensor:
        r"""$\nu$."""
        return self.log_viscosity.exp()

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        """The rate of change, like `u`."""
        return self.viscosity * self.laplacian(u) - self.divergence(u.square() / 2)
