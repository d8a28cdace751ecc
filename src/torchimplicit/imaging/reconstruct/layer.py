"""The layer of reconstruction: an equilibrium of a cell, the physics its argument, and how far it is from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core import transforms
from torchimplicit.core.options import require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.core.tree import Layout
from torchimplicit.imaging.physics.normal import is_operator
from torchimplicit.imaging.reconstruct.cell import Cell
from torchimplicit.imaging.reconstruct.distance import distances
from torchimplicit.linear import CG, GMRES
from torchimplicit.nn import DEQ
from torchimplicit.solve import Anderson, Solver

PRODUCTS = 8  # with the Jacobian, of the estimate of the distance


class Reconstruction(DEQ):
    r"""The image that a measurement determines together with a prior: the fixed point of a cell, an `nn.DEQ`.

    `layer(y, op)`: the physics is an argument, so that every call, and every sample, may have its own, and maps,
    kernels and angles get gradients like any tensor. Training memory is that of one step, the depth follows from the
    tolerance, and more steps do not make the image worse.

    The step that a solver stops by is small long before the image is right, wherever the operator is nearly singular:
    at a relative step of 1e-3 a brain at fourfold undersampling is 2 dB off. The defaults are therefore tight, and
    `report.distance` says where a solve has come to: the RMS distance from the image to the fixed point, estimated by
    eight products with the Jacobian. Measured on that brain and on blurred photographs, at relative steps of 1e-2 to
    1e-5: between the true distance and five times that, with a convex prior. It is computed where no gradient is
    wanted; a training step does not wait for it. `report.bound` is what is proved without a product, where the cell has
    a bound of the inverse of $I - J$: for a contracting one, the residual divided by one minus the contraction; of
    `PrimalDual` it follows from `report.gap`, the duality gap, by which its energy is above the least one at most.

    Args:
        cell: such as `Gradient(Ridge())`; of users a `Cell` too, or any module `cell(z, y, op) -> z`.
        solver: how to find the fixed point.
        adjoint: how to differentiate it; None takes `CG` where the cell's Jacobian is symmetric, else `GMRES`.
            `CG` keeps no basis, and does not stall at restarts: 178 products on a trained blur where `GMRES` with
            `restart=20` took 301; with `restart=60`, and the memory for as many images, 162.
        init: `init(y, op) -> z0`; None is the cell's own start, the scaled adjoint image.
        warm_start: see `DEQ`.
        products: with the Jacobian, for the distance; 0 estimates none.
        on_failure: "warn", "raise" or "ignore" samples that do not converge, forward and backward.

    Attributes:
        report: see `DEQ`; with `distance` and `bound`, `(B,)`, RMS as `residual` is; None and infinity where not known;
            and `gap`, see `Report`.

    Raises:
        TypeError: the cell is none, or an option of another kind.
        ValueError: an option is impossible.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Blur, Gradient, Reconstruction, Ridge
        >>> op = Blur(torch.full((3, 3), 1 / 9))
        >>> layer = Reconstruction(Gradient(Ridge(filters=4, taps=3), eps=0.1))
        >>> with torch.no_grad():
        ...     x = layer(op.A(torch.rand(2, 1, 16, 16)), op)
        >>> bool((layer.report.distance <= layer.report.bound).all())
        True
    """

    advice = (
        "Where the physics leaves much undetermined the way is long: try a larger eps in the cell, or a cell whose "
        "data step inverts (HalfQuadratic, DouglasRachford)."
    )

    def __init__(
        self,
        cell: Callable,
        solver: Solver = Anderson(window=10, rtol=1e-5, max_steps=300),
        adjoint: Adjoint | None = None,
        init: Callable | None = None,
        warm_start: bool = False,
        products: int = PRODUCTS,
        on_failure: OnFailure = "warn",
    ):
        if adjoint is None:
            symmetric = isinstance(cell, Cell) and cell.symmetric
            adjoint = Implicit(
                CG(rtol=1e-3, max_steps=300) if symmetric else GMRES(rtol=1e-3, restart=20, max_steps=300)
            )
        init = cell.start if init is None and isinstance(cell, Cell) else init
        super().__init__(cell, solver, adjoint, init, warm_start, (0, 1), on_failure)
        require_count("Reconstruction", least=0, products=products)
        self.products = products

    def forward(self, x: Tensor, *args: Any, z0: Any = None, save_steps: Sequence[int] = (), **keywords: Any) -> Any:
        """The image of a measurement.

        Args:
            x: the measurement $y$, `(B, ...)`.
            *args: the operator, and further arguments of a cell of one's own.
            z0: see `DEQ`.
            save_steps: see `DEQ`.
            **keywords: see `DEQ`.

        Returns:
            The images, `(B, ...)`; with `save_steps` also the tuple of those after these steps.
        """
        if "op" in keywords:
            args = (keywords.pop("op"), *args)
        if not args:
            raise TypeError(
                "Reconstruction: got a measurement alone, expected layer(y, op), the operator that it was measured by"
            )
        if isinstance(self.cell, Cell) and not is_operator(args[0]):
            raise TypeError(
                f"Reconstruction(op=...): got a {type(args[0]).__name__}, expected an operator, with methods A(x) and "
                "A_adjoint(y); try ti.imaging.Sense(maps, mask)"
            )
        found = super().forward(x, *args, z0=z0, save_steps=save_steps, **keywords)
        z, steps = found if save_steps else (found, ())
        self._measure(z, x, args)
        image = self._output(z, x, args)
        return (image, tuple(self._output(step, x, args) for step in steps)) if save_steps else image

    def _measure(self, z: Any, x: Tensor, args: tuple) -> None:
        """Notes how far the state is from the fixed point."""
        report, cell = self.report, self.cell
        if transforms.active() or report is None or not len(report.status):
            return
        if isinstance(cell, Cell):
            report.bound = report.residual * torch.as_tensor(
                cell.inverse(args[0], z), dtype=report.residual.dtype, device=report.residual.device
            )
        if self.products and not any(leaf.requires_grad for leaf in pytree.tree_leaves(z)):
            report.distance = distances(cell, z, (x, *args), self.products)
            proved = self.proof(z, x, *args)
            if proved is not None:
                report.gap, bound = proved
                report.bound = bound if report.bound is None else torch.minimum(bound, report.bound)
                report.distance = torch.minimum(report.distance, report.bound)

    @torch.no_grad()
    def proof(self, z: Any, x: Tensor, *args: Any) -> tuple[Tensor, Tensor] | None:
        r"""What a cell with a duality gap proves of a state: that gap, and a bound of the RMS distance to the minimum.

        The energy is strongly convex by `eps`, so $|x - x^*|^2 \le 2\, \mathrm{gap} / \epsilon$. None of other cells.

        Args:
            z: the state.
            x: the measurement.
            *args: the operator.
        """
        gap = self.cell.gap(z, x, args[0], self.products) if isinstance(self.cell, Cell) else None
        if gap is None:
            return None
        width = Layout(self._output(z, x, args)).width
        reach = (2 * gap / (self.cell.eps * width)).sqrt() if self.cell.eps else torch.full_like(gap, torch.inf)
        return gap, reach.nan_to_num(torch.inf, torch.inf)

    def _output(self, z: Any, x: Tensor, args: tuple) -> Any:
        return self.cell.output(z, x, *args) if isinstance(self.cell, Cell) else z

    def contraction(self, *args: Any) -> float | None:
        """A bound of the cell's Lipschitz constant for a measurement and an operator; None where it knows none."""
        if not isinstance(self.cell, Cell) or len(args) < 2:
            return None
        bound = float(torch.as_tensor(self.cell.contraction(args[1], self.initial_state(*args)), device="cpu").max())
        return bound if bound < 1 else None
