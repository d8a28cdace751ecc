"""Networks that reconstruct images, `network(y, op) -> x`: a convex equilibrium, and any cell unrolled."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchimplicit.adjoint import Adjoint
from torchimplicit.core.options import require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.imaging import Gradient, Preconditioned, Prior, Reconstruction, Ridge, Sparsity
from torchimplicit.solve import Anderson, Solver


class RidgeReconstruction(Reconstruction):
    """The minimum of a convex energy whose regulariser is learned, from a smoothed total variation on.

    An `imaging.Reconstruction` of `imaging.Preconditioned` and `imaging.Ridge.total_variation`.

    Args:
        strength: of the total variation to start with, in units of the image.
        width: difference of neighbours at which its penalty becomes linear.
        filters: how many.
        taps: of a filter in each direction, odd.
        eps: strong convexity, see `imaging.Cell`.
        preconditioned: whether steps are; without, the cell is `imaging.Gradient`.
        solver: finds the minimum.
        adjoint: differentiates it; None is that of `imaging.Reconstruction`.
        on_failure: of the layer. "ignore", as the module counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        strength: float = 1e-3,
        width: float = 0.03,
        filters: int = 16,
        taps: int = 5,
        eps: float = 1e-5,
        preconditioned: bool = True,
        solver: Solver = Anderson(window=10, period=1, rtol=1e-4, max_steps=100),
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "ignore",
    ):
        """Starts at total variation."""
        prior = Ridge.total_variation(strength, width, filters=filters, taps=taps)
        cell = Preconditioned(prior, eps=eps) if preconditioned else Gradient(prior, eps=eps)
        super().__init__(cell, solver, adjoint, on_failure=on_failure)


class SparsityReconstruction(Reconstruction):
    """The minimum of a convex energy of few differences and few wavelets, what each band counts being learned.

    An `imaging.Reconstruction` of `imaging.Preconditioned` and `imaging.Sparsity`.

    Args:
        differences: strength of the total variation to start with, in units of the image.
        wavelets: that of the wavelets, halved with every level.
        width: magnitude at which a penalty becomes linear.
        moments: of the wavelets that vanish.
        levels: of the wavelets.
        eps: strong convexity, see `imaging.Cell`.
        solver: see `RidgeReconstruction`.
        adjoint: see `RidgeReconstruction`.
        on_failure: see `RidgeReconstruction`.
    """

    def __init__(
        self,
        differences: float = 5e-5,
        wavelets: float = 5e-5,
        width: float = 5e-3,
        moments: int = 4,
        levels: int = 3,
        eps: float = 1e-5,
        solver: Solver = Anderson(window=10, rtol=1e-5, max_steps=300),
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "ignore",
    ):
        """Starts at total variation and wavelets together."""
        prior = Sparsity(differences, wavelets, width, moments=moments, levels=levels)
        super().__init__(Preconditioned(prior, eps=eps), solver, adjoint, on_failure=on_failure)


class UnrolledReconstruction(nn.Module):
    """So many steps of an equilibrium's cell, differentiated one by one: its rival.

    Its memory grows with the steps, and what it is trained for is the image after exactly these.

    Args:
        equilibrium: whose cell it takes; such as `RidgeReconstruction`.
        steps: how many.
    """

    def __init__(self, equilibrium: Reconstruction, steps: int = 10):
        """Keeps the cell."""
        super().__init__()
        self.cell: Any = equilibrium.cell
        self.steps = steps
        require_count(self, "steps")

    def forward(self, y: Tensor, op: Any, *, steps: int | None = None) -> Tensor:
        """Images `(B, ...)` of measurements; with other `steps` than it was trained for to see what these do."""
        z = self.cell.start(y, op)
        for _ in range(self.steps if steps is None else steps):
            z = self.cell(z, y, op)
        return self.cell.output(z, y, op)


class ImageDenoiser(nn.Module):
    """A prior's denoiser, to be trained on noisy images for `imaging.plug_and_play`.

    The operator is one under which images are measured as they are, such as a blur by a kernel of one pixel.

    Args:
        prior: such as `imaging.DnCNN`, or `imaging.GradientStep` of a smooth one.
    """

    def __init__(self, prior: Prior):
        """Keeps the prior."""
        super().__init__()
        self.prior = prior

    def forward(self, y: Tensor, op: Any) -> Tensor:
        """Images `(B, ...)` of noisy ones."""
        return self.prior(op.A_adjoint(y))
