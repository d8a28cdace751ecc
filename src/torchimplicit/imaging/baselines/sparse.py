r"""Images whose differences or wavelets are few: total variation and wavelets, by alternating directions, converged.

$\min_x \frac12 |A x - y|^2 + \lambda |K x|$ with the copy $z = K x$. Of ADMM's two halves the one of $z$ is a
threshold, the one of $x$ a linear system with $T = A^H A + \rho K^H K$. That is not solved: two Chebyshev iterations of
a few steps each, from the image of before, come nearer. Their residual polynomial is a square, so $\ge 0$ wherever $T$
has eigenvalues, and they are the exact solution of a system with a positive semidefinite proximal term beside $T$:
ADMM's convergence holds as it stands. So a step is a map of the state $(x, v)$, smooth but for the threshold's kinks;
`fixed_point` accelerates it, and differentiates the minimum.

Sources: S. Boyd and others, Foundations and Trends in Machine Learning 3 (2011) 1, section 3.1; K. Bredies, H. Sun,
SIAM J. Numer. Anal. 53 (2015) 421, for inner solves by a few steps; Y. Saad, Iterative Methods for Sparse Linear
Systems (2003), algorithm 12.1, for Chebyshev's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core import OnFailure, Solution
from torchimplicit.core.problem import FixedPoint
from torchimplicit.core.public import public
from torchimplicit.equations import solve_problem
from torchimplicit.imaging.baselines.check import adjoint_image
from torchimplicit.imaging.baselines.frame import Differences, Frame, Wavelets, shrunk, size_of
from torchimplicit.imaging.physics.check import check_positive
from torchimplicit.imaging.physics.normal import gram, largest_singular_value, norm_of, plain_like
from torchimplicit.imaging.physics.operator import Operator
from torchimplicit.linear import GMRES
from torchimplicit.point import Options
from torchimplicit.solve import Anderson, Solver

SOLVER = Anderson(window=10, rtol=5e-5, max_steps=400)
ADJOINT = Implicit(GMRES(rtol=1e-4, restart=40, max_steps=400))
_SWEEPS, _STEPS, _SPREAD = 2, 10, 200.0  # Chebyshev iterations, of how many steps, down to which part of T's spectrum
_TYPICAL = 0.5  # of the coefficients' mean size at the start: the threshold in a step


@public
def total_variation(
    y: Tensor,
    op: Any,
    *,
    weight: float | Tensor,
    isotropic: bool = True,
    solver: Solver = SOLVER,
    adjoint: Adjoint = ADJOINT,
    on_failure: OnFailure = "warn",
) -> Solution:
    r"""The image of least $\frac12 |A x - y|^2 + \lambda \sum_{ij} |(\nabla x)_{ij}|$, of forward differences.

    What compressed sensing is compared with: hard to beat by anything untrained, where it has converged and its weight
    was chosen. The report's residual is that of ADMM's fixed point, in the units of the image, and as $A^H A$ is
    nearly singular the image may be further from the minimum than that. Complex images are taken as such: $|\cdot|$ is
    of all parts of a pixel's gradient. Channels are images of their own.

    Source: L. Rudin, S. Osher, E. Fatemi, Physica D 60 (1992) 259; M. Lustig, D. Donoho, J. Pauly, Magn. Reson. Med.
    58 (2007) 1182, for k-space.

    Args:
        y: measurements, `(B, ...)`.
        op: $A$, with `A` and `A_adjoint`, of images `(B, ..., H, W)`.
        weight: $\lambda > 0$, a number or one per sample, `(B,)`; it scales as the image does.
        isotropic: whether the length of a gradient counts; the sum of the sizes of its two entries otherwise.
        solver: of ADMM's fixed point. `Picard` is the classical iteration.
        adjoint: how the minimum is differentiated, by measurements, weight, and what the operator is made of.
        on_failure: "raise", "warn" or "ignore" samples that do not converge, forward and backward.

    Returns:
        A `Solution`, whose `value` is `(B, ..., H, W)`.

    Raises:
        TypeError: no operator, or measurements that are not floating or complex.
        ValueError: an impossible weight.
        ConvergenceError: a sample did not converge (with `on_failure="raise"`).

    Examples:
        >>> import torch, torchimplicit as ti
        >>> x = torch.zeros(1, 16, 16, dtype=torch.complex64)
        >>> x[:, 4:12, 5:11] = 1
        >>> op = ti.imaging.Fourier(ti.imaging.cartesian(16, 2, center_fraction=0.25))
        >>> solution = ti.imaging.total_variation(op.A(x), op, weight=1e-3)
        >>> solution.report.converged, bool((solution.value - x).abs().max() < 0.02)
        (True, True)
    """
    return _minimum("total_variation", Differences(isotropic), y, op, weight, solver, adjoint, on_failure)


@public
def wavelet(
    y: Tensor,
    op: Any,
    *,
    weight: float | Tensor,
    moments: int = 4,
    levels: int = 3,
    solver: Solver = SOLVER,
    adjoint: Adjoint = ADJOINT,
    on_failure: OnFailure = "warn",
) -> Solution:
    r"""The image of least $\frac12 |A x - y|^2 + \lambda \sum_j 2^{-j} |c_j|_1$, $c$ being its details in wavelets.

    Daubechies' wavelets without decimation, of which the sum is the mean, over all shifts of the image, of the
    orthogonal transform's $\ell_1$ norm: so nothing depends on where blocks begin, and any size will do. Not for images
    with few pixels: a level's filters are `moments * 2**level` long and go around the edges.

    Source: M. Lustig, D. Donoho, J. Pauly, Magn. Reson. Med. 58 (2007) 1182; see `Wavelets` for the transform.

    Args:
        y: see `total_variation`.
        op: see `total_variation`.
        weight: see `total_variation`.
        moments: that vanish, 1 to 10: 1 is Haar, more are smoother.
        levels: of the transform, >= 1.
        solver: see `total_variation`.
        adjoint: see `total_variation`.
        on_failure: see `total_variation`.

    Returns:
        See `total_variation`.

    Raises:
        TypeError: see `total_variation`.
        ValueError: see `total_variation`; or impossible moments or levels.
    """
    return _minimum("wavelet", Wavelets(moments, levels), y, op, weight, solver, adjoint, on_failure)


def _minimum(
    name: str,
    frame: Frame,
    y: Tensor,
    op: Any,
    weight: float | Tensor,
    solver: Solver,
    adjoint: Adjoint,
    on_failure: OnFailure,
) -> Solution:
    b = adjoint_image(name, y, op)
    if b.dim() < 3:
        raise ValueError(f"{name}(op=...): got images {tuple(b.shape)}, expected (B, ..., H, W)")
    weight = check_positive(name, "weight", weight, b)
    with torch.no_grad():
        scale, penalty, x = _units(frame, op, b, weight)
        start = x, penalty.sqrt().unsqueeze(-1) * frame.analyse(x)
    problem = FixedPoint(_step, start, (frame, op, b, weight, scale, penalty))
    options = Options(solver, adjoint, None, on_failure, present=_image)
    return solve_problem(problem, start, options)


def _image(solution: Solution) -> Solution:
    """Without the multipliers, which are no part of the answer."""
    return replace(solution, value=solution.value[0])


def _units(frame: Frame, op: Any, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""What makes $|A|$ less than 1, the penalty, both `(B, 1, ...)`, and the image to start from.

    That is the one along $A^H y$ that fits best; a step's threshold is to be of the size of its coefficients.
    """
    one = (-1, *(1,) * (b.dim() - 1))
    like = plain_like("total_variation or wavelet", op, b)
    top = op.norm(like, rtol=0.02) if isinstance(op, Operator) else largest_singular_value(op, like, 0.02, 64)
    scale = (1.02 * top).square().reciprocal().reshape(one)
    fit = (norm_of(b) / norm_of(_measured(op, b))).square().nan_to_num(0, 0, 0).reshape(one)
    x = fit * b
    v = frame.analyse(x)
    sizes = size_of(frame, v) * frame.weights(b).sign()
    typical = _TYPICAL * sizes.flatten(1).mean(1).reshape(one)
    penalty = scale * weight / torch.where(typical > 0, typical, 1.0)
    return scale, penalty, x


def _measured(op: Any, x: Tensor) -> Tensor:
    seen: Tensor = op.A(x)
    return seen


def _step(
    state: tuple[Tensor, Tensor],
    frame: Frame,
    op: Any,
    b: Tensor,
    weight: Tensor,
    scale: Tensor,
    penalty: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""One step, of $x$ and of $v = \sqrt\rho (K x + u)$, $u$ being the scaled multipliers: all in units of $x$."""
    x, v = state
    root = penalty.sqrt()
    z = shrunk(frame, v, scale * weight / root)
    right = scale * b + root * frame.adjoint(2 * z - v)

    def system(x: Tensor) -> Tensor:
        return scale * gram(op, x) + penalty * frame.gram(x)

    top = 1 + frame.bound * penalty
    for _ in range(_SWEEPS):
        x = x + _chebyshev(system, right - system(x), top)
    return x, v + root.unsqueeze(-1) * frame.analyse(x) - z


def _chebyshev(system: Any, residual: Tensor, top: Tensor) -> Tensor:
    """What a few steps add, from 0, for eigenvalues up to `top`; those below a part of it go down more slowly."""
    centre, radius = (top + top / _SPREAD) / 2, (top - top / _SPREAD) / 2
    ratio = (1 + 1 / _SPREAD) / (1 - 1 / _SPREAD)  # the same for all samples
    previous, move = 1 / ratio, residual / centre
    total = move
    for _ in range(_STEPS - 1):
        residual = residual - system(move)
        current = 1 / (2 * ratio - previous)
        move = current * previous * move + 2 * current / radius * residual
        previous, total = current, total + move
    return total
