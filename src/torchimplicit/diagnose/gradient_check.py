"""Is the gradient of a layer right? Against unrolling and against finite differences, in double precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Adjoint
from torchimplicit.core import Report, Status
from torchimplicit.core.independence import mixes
from torchimplicit.core.options import require_count
from torchimplicit.diagnose.advice import advice
from torchimplicit.diagnose.bench import Bench, widened
from torchimplicit.diagnose.probe import (
    linearised,
    relative_error,
    require_layer,
    untouched,
)
from torchimplicit.nn import DEQ
from torchimplicit.solve import Solver

LOST = 1e-8  # RMS residual above which an unconverged reference solve is no reference


@dataclass(frozen=True)
class GradientCheck:
    """How far a layer's gradient is off. All errors are relative.

    Attributes:
        unrolled: error of the layer's gradient against that of unrolling, over all tensors together.
        finite_difference: error of the layer's directional derivatives against central differences, by RMS.
        reference: disagreement of unrolling and central differences: what the two are to be trusted to.
        tensors: the error against unrolling by tensor, worst first, each relative to that tensor's own gradient.
        tolerance: what `ok` asks for.
        directions: number of random directions.
        adjoint: the layer's adjoint.
        solver: the layer's solver.
        report: how the layer's own solve went, in double precision, with its backward solve.
        reference_report: how the unrolled solve went.
        coupled: which samples depend on others' states, `(B,)` bool; none may.
    """

    unrolled: float
    finite_difference: float
    reference: float
    tensors: dict[str, float]
    tolerance: float
    directions: int
    adjoint: Adjoint
    solver: Solver
    report: Report
    reference_report: Report = field(repr=False)
    coupled: Tensor = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether samples are independent and the gradient agrees with both forms of a reference to the tolerance."""
        agrees = self.unrolled <= self.tolerance and self.finite_difference <= self.tolerance
        return self.has_reference and agrees and not bool(self.coupled.any())

    @property
    def has_reference(self) -> bool:
        """Whether unrolling came to a fixed point near the layer's answer."""
        reference = self.reference_report
        return not bool(((reference.status != Status.CONVERGED) & (reference.residual > LOST)).any())

    def __str__(self) -> str:
        """The errors, the tensor that is worst, how the solves went, and what to try when the gradient is off."""
        verdict = "right" if self.ok else "OFF"
        name, worst = next(iter(self.tensors.items()))
        lines = [
            f"Gradient check: {verdict} (relative errors, float64; asked for {self.tolerance:.0e})",
            f"  layer against unrolling             {self.unrolled:.1e}   worst tensor {name}: {worst:.1e}",
            f"  layer against finite differences    {self.finite_difference:.1e}   {self.directions} directions",
            f"  unrolling against the differences   {self.reference:.1e}   what the references are good for",
            f"  {self.adjoint}, {self.solver}",
            f"  {self.report}",
        ]
        return "\n".join(lines + [f"  Try: {text}" for text in advice(self)])


def check_gradient(
    layer: DEQ, x: Any, *args: Any, directions: int = 4, tolerance: float = 1e-2, seed: int = 0
) -> GradientCheck:
    r"""Compares a layer's gradient with what it should be.

    For $\ell(a) = \langle w, z^*(a) \rangle$ with random $w$, where $a$ stands for all parameters and floating inputs:

    1. $\nabla \ell$ as the layer computes it, with its own solver, adjoint and tolerances;
    2. $\nabla \ell$ by unrolling a solver from close to the solution until it is converged to rounding;
    3. $(\ell(a + h d) - \ell(a - h d)) / 2h$ along random directions $d$, both solved to rounding.

    The second sees each tensor's error; the third shares no derivative with the layer, so that it also sees a cell that
    cuts its own graph. Everything runs in float64 on a copy: the layer, its report and its buffers stay as they are.
    Costs many solves, and the memory of hundreds of unrolled steps: give it a few samples, not a training batch.

    Args:
        layer: the layer.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.
        directions: random directions for finite differences, >= 1.
        tolerance: relative error up to which the gradient counts as right. The default finds what is wrong, not what is
            loose: at the default tolerances of the solves a right gradient has an error of about 1e-4.
        seed: of $w$, the directions and random numbers in the cell.

    Returns:
        A `GradientCheck`; print it to read what to try.

    Raises:
        TypeError: `layer` is no `DEQ`, or its cell returns float32 for float64 inputs and parameters.
        ValueError: an impossible option, an empty batch, no tensor to differentiate by, or a cell that returns another
            shape than the state's.

    Examples:
        >>> import torch
        >>> from torchimplicit import Phantom, diagnose, nn
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x)
        >>> diagnose.check_gradient(layer, torch.ones(2, 3)).ok
        True
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x, adjoint=Phantom())
        >>> diagnose.check_gradient(layer, torch.ones(2, 3)).ok
        False
    """
    layer = require_layer(layer, "check_gradient")
    require_count("check_gradient", directions=directions)
    if not tolerance > 0:
        raise ValueError(f"check_gradient(tolerance={tolerance!r}): expected a number > 0")
    with untouched(layer, (x, *args), seed), torch.enable_grad():
        layer, x, args = widened(layer, x, args)
        bench = Bench(layer, x, args, seed)
        own, value, report = bench.own_gradient()
        with linearised(layer, value, x, args) as (jacobian, z):
            coupled = mixes(jacobian.rmatvec, z)
        bench.refine(value)
        unrolled, reference_report = bench.unrolled_gradient()
        slopes, differences = bench.differences(directions)
    along_own, along_unrolled = ([_dot(gradient, d) for d in slopes] for gradient in (own, unrolled))
    by_tensor = {name: relative_error([own[name]], [unrolled[name]]) for name in own}
    return GradientCheck(
        unrolled=relative_error(list(own.values()), list(unrolled.values())),
        finite_difference=relative_error([torch.stack(along_own)], [differences]),
        reference=relative_error([torch.stack(along_unrolled)], [differences]),
        tensors=dict(sorted(by_tensor.items(), key=lambda item: -item[1])),
        tolerance=tolerance,
        directions=directions,
        adjoint=layer.adjoint,
        solver=layer.solver,
        report=report,
        reference_report=reference_report,
        coupled=coupled,
    )


def _dot(gradient: dict[str, Tensor], direction: dict[str, Tensor]) -> Tensor:
    """Directional derivative, `()`."""
    products = [(gradient[name].conj() * direction[name]).sum().real for name in gradient]
    return torch.stack([product.to(products[0].device) for product in products]).sum()
