r"""Plug and play: a denoiser where a proximal map would stand, and its fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core import ConvergenceError, OnFailure, Solution
from torchimplicit.core.public import public
from torchimplicit.equations import fixed_point
from torchimplicit.imaging.baselines.check import adjoint_image
from torchimplicit.imaging.physics.check import check_positive
from torchimplicit.imaging.physics.normal import gram, normal_equations, proximal
from torchimplicit.imaging.physics.operator import SOLVER as INNER
from torchimplicit.imaging.physics.operator import Operator
from torchimplicit.linear import CG
from torchimplicit.solve import Anderson, PreparedMap, Solver
from torchimplicit.solve.splitting import refuse_mapped

Splitting = Literal["hqs", "gradient"]


@public
def plug_and_play(
    y: Tensor,
    op: Any,
    denoiser: Callable[[Tensor], Tensor],
    *,
    step: float | Tensor = 1.0,
    splitting: Splitting = "hqs",
    start: Tensor | None = None,
    solver: Solver = Anderson(window=6, rtol=1e-4, max_steps=200),
    inner: CG = INNER,
    adjoint: Adjoint = Implicit(),
    on_failure: OnFailure = "warn",
) -> Solution:
    r"""The fixed point of a denoiser after a step to the data: no training for the operator, and no energy, either.

    With half quadratic splitting $z = D(\mathrm{prox}_{\tau f}(z))$, with the proximal gradient $z = D(z - \tau
    \nabla f(z))$, where $f(x) = |A x - y|^2 / 2$. A fixed point exists and is found where $D$ is averaged, as proximal
    maps are; a denoiser that was trained for denoising alone seldom is, and then the report says what came of it. For
    each sample that has converged, more steps change nothing.

    Not for comparison by a number of steps: what an unconverged iteration gives depends on where it was stopped.

    Source: S. Venkatakrishnan, C. Bouman, B. Wohlberg, GlobalSIP (2013) 945; E. Ryu et al., ICML (2019, arXiv
    1905.05406), for when it converges.

    Args:
        y: measurements, `(B, ...)`.
        op: $A$, with `A` and `A_adjoint`.
        denoiser: $D$, images `(B, ...)` to images; a module's parameters are differentiated.
        step: $\tau > 0$, a number or one per sample, `(B,)`. With "gradient" below $2 / |A|^2$. The noise that the
            denoiser removes wants to be larger for longer steps.
        splitting: "hqs" or "gradient".
        start: images; None is $A^H y$.
        solver: of the fixed point. `Picard` is the classical iteration.
        inner: of the proximal map of the data, with "hqs", where it has no closed form: the fixed point is as
            accurate as this, and a sample where this fails has not converged.
        adjoint: how it is differentiated.
        on_failure: "raise", "warn" or "ignore" samples that do not converge, forward and backward.

    Returns:
        A `Solution`, whose `value` is `(B, ...)`.

    Raises:
        TypeError: no operator or denoiser, or measurements that are not floating or complex.
        ValueError: an impossible step, or another splitting.
        ConvergenceError: a sample did not converge (with `on_failure="raise"`).

    Examples:
        >>> import torch, torchimplicit as ti
        >>> op = ti.imaging.Inpainting(torch.arange(6) % 3 > 0)
        >>> smooth = lambda x: (x.roll(1, -1) + 2 * x + x.roll(-1, -1)) / 4
        >>> y = op.A(torch.ones(1, 6))
        >>> solution = ti.imaging.plug_and_play(y, op, smooth)
        >>> solution.report.converged, bool((solution.value - 1).abs().max() < 1e-2)
        (True, True)
    """
    if splitting not in get_args(Splitting):
        raise ValueError(f"plug_and_play(splitting={splitting!r}): expected 'hqs' or 'gradient'")
    if not callable(denoiser):
        raise TypeError(f"plug_and_play(denoiser=...): got a {type(denoiser).__name__}, expected a callable")
    b = adjoint_image("plug_and_play", y, op)
    tau = check_positive("plug_and_play", "step", step, b)
    start = b if start is None else start
    if start.shape != b.shape:
        raise ValueError(f"plug_and_play(start=...): got {tuple(start.shape)}, expected {tuple(b.shape)}, as A^H y")
    cell = _HalfQuadratic() if splitting == "hqs" else _gradient
    args = (y, b, tau, op, denoiser, inner)
    return fixed_point(cell, start, *args, solver=solver, adjoint=adjoint, on_failure=on_failure)


class _HalfQuadratic(PreparedMap):
    """The denoiser after the proximal map of the data, which is a solve of its own where it has no closed form."""

    def forward(self, z: Tensor, y: Tensor, b: Tensor, step: Tensor, op: Any, denoiser: Any, inner: CG) -> Tensor:
        return denoiser(_data_step(z, y, b, step, op, inner, "ignore"))

    def begin(self, z0: Tensor, args: tuple, batch_dims: int) -> PreparedMap:
        """Itself."""
        refuse_mapped(self, (z0, args))
        return self

    def inner(self, z: Tensor, args: tuple, batch_dims: int) -> Tensor | None:
        y, b, step, op, _, inner = args
        try:
            with torch.no_grad():
                _data_step(z, y, b, step, op, inner, "raise")
        except ConvergenceError as error:
            return error.report.status
        return None

    def advice(self, z: Tensor, args: tuple, batch_dims: int) -> str:
        status = self.inner(z, args, batch_dims)
        failed = [] if status is None else status.nonzero().flatten().tolist()[:5]
        told = f"The proximal map of the data was not found for samples {failed}: try inner=CG(...) with more max_steps"
        return f"{told}, or a shorter step." if failed else ""


def _data_step(z: Tensor, y: Tensor, b: Tensor, step: Tensor, op: Any, inner: CG, on_failure: OnFailure) -> Tensor:
    if isinstance(op, Operator):  # it may have a closed form
        return proximal(op, z, y, step, inner, on_failure=on_failure)
    return normal_equations(op, z + step * b, 1.0, step, inner, on_failure).value


def _gradient(z: Tensor, y: Tensor, b: Tensor, step: Tensor, op: Any, denoiser: Any, inner: CG) -> Tensor:
    return denoiser(z - step * (gram(op, z) - b))
