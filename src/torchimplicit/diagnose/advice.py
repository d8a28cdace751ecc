"""What to try when a gradient is off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from torchimplicit.adjoint import Implicit, Phantom, Shine, Unrolled
from torchimplicit.core.outcome import COUPLED
from torchimplicit.linear import Neumann

BAD = 100.0  # condition from which on it is worth a word

if TYPE_CHECKING:
    from torchimplicit.diagnose.certificate import Certificate
    from torchimplicit.diagnose.gradient_check import GradientCheck


def advice(check: GradientCheck) -> list[str]:
    """The causes that apply, most likely first, each with its remedy; none when the gradient is right.

    Args:
        check: the result of `check_gradient`.
    """
    if check.ok:
        return []
    if bool(check.coupled.any()):
        return _coupled(check.coupled)
    return _references(check) + _forward(check) + (_adjoint(check) or _tolerances(check))


def _coupled(coupled: Tensor) -> list[str]:
    """What no tolerance and no linear solver mends."""
    return [f"coupled, {int(coupled.sum())} of {len(coupled)} samples: {COUPLED}"]


def _references(check: GradientCheck) -> list[str]:
    """Doubts about the references themselves."""
    reference = check.reference_report
    if not check.has_reference:
        return [
            f"no solver came to a fixed point near the layer's answer ({reference}), so there is no reference: look at "
            "convergence(layer, x) and spectral_radius(layer, x) first"
        ]
    if check.reference <= check.tolerance:
        return []
    return [
        "unrolling and finite differences disagree. With kinks nearby (ReLU, max, abs) the differences are to blame: "
        "try a smooth activation for the check. Else autograd does not see how the cell depends on its inputs: look "
        "for detach(), .data, no_grad or rounding in the cell, for weights that hold a quantity constant (the power "
        "iteration of a spectral norm: try layer.eval()), and for randomness that no seed repeats"
    ]


def _forward(check: GradientCheck) -> list[str]:
    """An unconverged solve: its gradient belongs to another point."""
    report = check.report
    if report.converged:
        return []
    remedies = list(report.remedies.values())
    return [
        f"the layer's own solve did not converge for {len(report.failed)} of {len(report.status)} samples, and a "
        f"gradient is only as good as its solution: {'; '.join(remedies)}"
    ]


def _adjoint(check: GradientCheck) -> list[str]:
    """Approximate adjoints, and a backward solve that failed."""
    adjoint, backward = check.adjoint, check.report.backward
    if isinstance(adjoint, Phantom):
        return [
            f"{adjoint} is approximate by design (relative error up to rho^steps for a contraction by rho): more "
            "steps, or adjoint=Implicit() for the exact gradient"
        ]
    if isinstance(adjoint, Implicit) and isinstance(adjoint.linear_solver, Neumann):
        return [
            f"{adjoint.linear_solver} truncates the backward solve by design: more terms, or Implicit(GMRES()) for the "
            "exact gradient"
        ]
    if backward is not None and not backward.converged and not isinstance(adjoint, Unrolled):
        return [
            f"the backward solve did not converge ({backward}): raise max_steps or restart of GMRES, or take "
            "Implicit(LU()) for small states"
        ]
    return []


def _tolerances(check: GradientCheck) -> list[str]:
    """Nothing failed, so what is left is loose, or a step count that differentiates badly."""
    if not check.report.converged or check.reference > check.tolerance:
        return []
    if isinstance(check.adjoint, Unrolled):
        return [
            f"Unrolled differentiates the {int(check.report.steps.max())} steps taken, whose derivative lags behind "
            "their value: a smaller rtol, or adjoint=Implicit()"
        ]
    return [
        f"tighten the solves: smaller rtol and atol than {check.solver.rtol:g} and {check.solver.absolute:g}, also in "
        "Implicit(GMRES(rtol=...)); errors grow by 1 / (1 - rho), so look at spectral_radius(layer, x), too"
    ]


def certificate_advice(certificate: Certificate) -> list[str]:
    """Why samples are not certified, the most basic cause first, each with its remedy; none when all is well.

    Args:
        certificate: the result of `certify`.
    """
    if certificate.ok:
        return []
    if bool(certificate.coupled.any()):
        return _coupled(certificate.coupled)
    return _unconverged(certificate) or _singular(certificate) or _inexact(certificate)


def _unconverged(certificate: Certificate) -> list[str]:
    report = certificate.report
    return [f"{status.name.lower()}: {remedy}" for status, remedy in report.remedies.items()]


def _singular(certificate: Certificate) -> list[str]:
    count, known = int((~certificate.regular).sum()), certificate.conditioning
    if not count:
        return []
    how = "" if known.exact else ". dense=, as large as the state, measures instead of estimating"
    return [
        f"I - J is singular, or nearly so at this tolerance, for {count} of {len(certificate.regular)} samples: fixed "
        "points may meet there, and gradients explode. A smaller rtol and float64 tell which; a contraction (spectral "
        f"normalisation, weight decay) cannot be singular{how}"
    ]


def _inexact(certificate: Certificate) -> list[str]:
    if not math.isfinite(certificate.gradient_error):
        return ["no accurate solution was found near the layer's answer to compare with: try float64"]
    if isinstance(certificate.adjoint, Phantom | Unrolled | Shine):
        return [f"{certificate.adjoint} is approximate by design: adjoint=Implicit() for the exact gradient"]
    backward, point = certificate.shares
    why, solver = _badly_conditioned(certificate), certificate.solver
    if backward >= point:
        return [
            f"the backward residual is the larger part: Implicit(GMRES(rtol=...)) with a smaller rtol, or LU(){why}"
        ]
    what = f"a smaller rtol than the solver's {solver.rtol:g}"
    if solver.absolute > solver.rtol * float(certificate.size.min()):
        what = f"atol=0, for the solver's atol={solver.absolute:g} is met long before its rtol"
    return [f"the error of the point is the larger part: {what}{why}"]


def _badly_conditioned(certificate: Certificate) -> str:
    condition = float(certificate.condition.max())
    if not BAD < condition < math.inf:
        return ""
    return (
        f". The layer is badly conditioned, not broken: errors are up to {condition:.3g} times the residuals, so for "
        f"{certificate.tolerance:g} residuals of {certificate.tolerance / condition:.0e} are wanted, both ways"
    )
