"""What needs no prior: the adjoint, and regularised least squares."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchimplicit.core import OnFailure, Solution
from torchimplicit.core.public import public
from torchimplicit.imaging.baselines.check import adjoint_image
from torchimplicit.imaging.physics.check import check_positive
from torchimplicit.imaging.physics.normal import normal_equations
from torchimplicit.linear import CG


def zero_filled(y: Tensor, op: Any) -> Tensor:
    """$A^H y$: what was not measured taken for zero, the coils put together. The least that any method must beat.

    Only for operators with $A^H A$ near the identity, such as undersampled k-space; of a blur it is blurred twice.

    Args:
        y: measurements, `(B, ...)`.
        op: $A$, with `A` and `A_adjoint`.

    Returns:
        Images `(B, ...)`.

    Raises:
        TypeError: no operator, or measurements that are not floating or complex.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> op = ti.imaging.Fourier(ti.imaging.cartesian(8, 2, center_fraction=0.25))
        >>> ti.imaging.zero_filled(
        ...     op.A(torch.ones(1, 8, 8, dtype=torch.complex64)), op
        ... ).shape
        torch.Size([1, 8, 8])
    """
    return adjoint_image("zero_filled", y, op)


@public
def cg_sense(
    y: Tensor,
    op: Any,
    *,
    weight: float | Tensor,
    solver: CG = CG(rtol=1e-5, max_steps=200),
    on_failure: OnFailure = "warn",
) -> Solution:
    r"""The image of least $\frac12 |A x - y|^2 + \frac{\lambda}{2} |x|^2$, by conjugate gradients to a tolerance.

    In parallel imaging known as CG-SENSE, where the number of steps often stands in for the weight; here it is the
    weight that regularises, and the solve goes to its end. For any operator; differentiable in measurements, weight and
    what the operator is made of.

    Source: K. Pruessmann et al., Magn. Reson. Med. 46 (2001) 638.

    Args:
        y: measurements, `(B, ...)`.
        op: $A$, with `A` and `A_adjoint`.
        weight: $\lambda > 0$, a number or one per sample, `(B,)`.
        solver: how far; the residual is relative to that of `x = 0`.
        on_failure: "raise", "warn" or "ignore" samples that do not converge, forward and backward.

    Returns:
        A `Solution`, whose `value` is `(B, ...)` and whose `steps` are those of conjugate gradients, one product each.

    Raises:
        TypeError: no operator, or measurements that are not floating or complex.
        ValueError: an impossible weight.
        ConvergenceError: a sample did not converge (with `on_failure="raise"`).

    Examples:
        >>> import torch, torchimplicit as ti
        >>> maps = torch.randn(4, 8, 8, dtype=torch.complex64)
        >>> op = ti.imaging.Sense(maps, ti.imaging.cartesian(8, 2, center_fraction=0.25))
        >>> x = torch.randn(1, 8, 8, dtype=torch.complex64)
        >>> solution = ti.imaging.cg_sense(op.A(x), op, weight=1e-6)
        >>> solution.report.converged, bool((solution.value - x).abs().max() < 1e-2)
        (True, True)
    """
    b = adjoint_image("cg_sense", y, op)
    return normal_equations(op, b, check_positive("cg_sense", "weight", weight, b), 1.0, solver, on_failure)
