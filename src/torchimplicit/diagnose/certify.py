"""Certifying a layer: how far its value and its gradient can be trusted at an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Implicit
from torchimplicit.core import Status
from torchimplicit.core.independence import mixes
from torchimplicit.core.options import require_count
from torchimplicit.core.tree import norm
from torchimplicit.diagnose.certificate import Certificate
from torchimplicit.diagnose.conditioning import Conditioning, Difference, conditioning, is_definite, spectral_norm
from torchimplicit.diagnose.probe import relative_error, require_layer, untouched
from torchimplicit.diagnose.trial import Answer, Trial
from torchimplicit.linear import CG, GMRES, LU, Jacobian, LinearSolver
from torchimplicit.nn import DEQ
from torchimplicit.solve import Anderson, ForwardBackward, Newton, Solver

REFINE = 5  # Newton steps from the layer's answer to the reference
SLOW = 10_000  # products of an accurate solve with a symmetric matrix, and steps of Anderson's method to its point
PATIENT = 200  # steps of Anderson's method to it, where a cell has no product for Newton's
REACH, APART = 10.0, 0.05  # ends are one point within REACH error bounds; else APART of the spread, or what the
# smallest singular value at the point makes of the residuals


def certify(
    layer: DEQ,
    x: Any,
    *args: Any,
    cotangent: Any = None,
    starts: int = 4,
    tolerance: float = 1e-2,
    dense: int = 128,
    seed: int = 0,
) -> Certificate:
    r"""Measures in one call how far a layer's value and gradient can be trusted at an input.

    With the residual $r(z, a) = z - \mathrm{cell}(z, a)$, $B = \partial r / \partial z = I - J$, a cotangent $g$, and
    $u$ the solution of $B^\top u = g$ as the layer's own adjoint finds it, the layer's gradient is
    $G = -(\partial r / \partial a)^\top u$. The layer stops at $z$, not at $z^*$, and its backward solve leaves a
    residual. Subtracting the exact equation $B_*^\top u_* = g$, where $B_*$ belongs to $z^*$, gives

    $$ B_*^\top (u_* - u) = \underbrace{(g - B^\top u)}_{\text{backward residual}}
       + \underbrace{(B - B_*)^\top u}_{\text{error of the point}} \qquad\Rightarrow\qquad
       |u_* - u| \le \frac{\beta}{1 - h} \bigl( |g - B^\top u| + |(B - B_*)^\top u| \bigr), $$

    with $\beta = \|B^{-1}\| = 1 / \sigma_{\min}(B)$ and $h = \beta \|B_* - B\| < 1$, since then
    $\|B_*^{-1}\| \le \beta / (1 - h)$ (Banach's lemma). A relative backward residual is amplified by about the
    condition of $B$ at most. For the gradient by all tensors together, with $\partial_a r$ at $z^*$,

    $$ |G_* - G| \le \|\partial_a r\| \, |u_* - u| + |G + (\partial_a r)^\top u|. $$

    The *bounds* are these. What stands for $z^*$ in them is the point that a few Newton steps reach from $z$, so the
    change of $B$ is measured there and not bounded: to that extent a bound is an estimate. So are $\beta$ beyond
    `dense` unknowns and $\|\partial_a r\|$, found by power iteration. Where the linear solves behind that estimate of
    $\beta$ fail, as they do on badly conditioned layers, but $B$ is strongly monotone, $v^\top B v \ge \mu |v|^2$ with
    $\mu > 0$ as for every strictly convex layer, $\beta \le 1 / \mu$ takes its place. The *estimated* errors are plain
    differences, of $u$ and of $G$ to those found again at that point by an accurate linear solve. For an adjoint other
    than `Implicit`, $u$ is the gradient by an offset of the cell's output: a bias by design shows in the backward
    residual and in the errors. Measured on 960 small float64 cases (four maps, forward tolerances 1e-1 to 1e-12,
    backward 1e-2 to 1e-12): the gradient's true error was never above its bound, which was twice as large in the
    median, and within 20 % of the estimate; beyond `dense` unknowns the estimate sees nothing below 1e-10, where its
    accurate solve ends.

    That a fixed point is the only one cannot be seen at one point: it takes a contraction everywhere. The claim made is
    local: where $\sigma_{\min}(B)$ is above rounding and $h < 1/2$, the point is isolated. Solves from random starts,
    of the spread `1 + rms(z)`, are evidence for more, or show the contrary where they end elsewhere. A layer with a
    method `contraction(x, *args)` may have a Lipschitz constant $c$ below one: `MonotoneDEQ`, and an
    `imaging.Reconstruction` whose energy is convex with an `eps` or whose denoiser is averaged. That is a proof, and is
    claimed, and $1 / (1 - c)$ bounds $\|B_*^{-1}\|$: of a convex energy $(L + \epsilon) / \epsilon$. A layer with a
    method `proof(z, x, *args)` proves of its answer a duality gap and a distance, which `report` then has.

    Costs the layer's solve and backward pass, `starts` solves more, a few Newton steps, and the singular values: up to
    `dense` unknowns the matrices, beyond some hundred products and up to 25 linear solves by GMRES. Not for every
    training step. Nothing is raised for samples that fail: the certificate says so.

    Args:
        layer: the layer; stays as it is.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.
        cotangent: the incoming gradient $g$, like the layer's output; None draws normal numbers.
        starts: random starts to solve from, >= 0.
        tolerance: relative error of the gradient up to which a sample is certified.
        dense: most unknowns per sample for which the matrices are built.
        seed: of the cotangent, the starts and random numbers in the cell.

    Returns:
        A `Certificate`: print it, its `table()`, take its `as_dict()`, or draw its `plot()`.

    Raises:
        TypeError: `layer` is no `DEQ`, or the state or the cotangent is no floating tensor.
        ValueError: an impossible option, an empty batch, a cotangent of another shape than the output's, or a cell
            that returns another shape than the state's.

    Examples:
        >>> import torch
        >>> from torchimplicit import diagnose, nn
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x)
        >>> certificate = diagnose.certify(layer, torch.linspace(-1, 1, 12).reshape(4, 3))
        >>> certificate.ok, certificate.gradient_error <= certificate.gradient_bound
        (True, True)
    """
    layer = require_layer(layer, "certify")
    require_count("certify", least=0, starts=starts, dense=dense)
    if not tolerance > 0:
        raise ValueError(f"certify(tolerance={tolerance!r}): expected a number > 0")
    with untouched(layer, (x, *args), seed):
        return _certificate(Trial(layer, x, args, cotangent, seed), starts, tolerance, dense)


def _certificate(trial: Trial, starts: int, tolerance: float, dense: int) -> Certificate:
    """Everything that is measured, put together."""
    layer, eps, width = trial.layer, trial.layout.eps, trial.layout.width
    own = trial.prove(trial.solve(trial.z0, _solver(layer), layer.adjoint))
    reference = _refined(trial, own, dense)
    known, solved = _trusted(own, reference, eps)

    here, there = trial.jacobian(own.value), trial.jacobian(reference.value)
    measured, regular, inverse, everywhere = _inverse(trial, own.z, here, there, dense)
    product, residual = here.rmatvec(own.u), norm(here.value.detach())
    left, turned = norm(trial.g - product), norm(there.rmatvec(own.u) - product)
    rounding = eps * (norm(trial.g) + measured.largest * norm(own.u))
    bound = _unless(known, inverse * (left + turned + rounding))

    parts = torch.stack([inverse * left, inverse * turned])
    gradient_error, gradient_bound, shares = _gradient_errors(trial, own, reference, bound, parts, known)
    gradient_error = gradient_error if bool(solved[known].all()) else gradient_bound
    adjoint_bound = _relative(bound, norm(reference.u))
    arrived, elsewhere = _compare_starts(trial, starts, own, residual, (inverse, measured.smallest))
    return Certificate(
        report=own.report,
        size=norm(own.z) / width**0.5,
        residual=_relative(residual, norm(own.z)),
        backward=_relative(left, norm(trial.g)),
        point_error=_unless(known, _relative(norm(reference.z - own.z), norm(reference.z))),
        adjoint_error=torch.where(solved, _relative(norm(reference.u - own.u), norm(reference.u)), adjoint_bound),
        adjoint_bound=adjoint_bound,
        shares=shares,
        gradient_error=gradient_error,
        gradient_bound=gradient_bound,
        conditioning=measured,
        regular=(own.report.status == Status.CONVERGED) & regular,
        starts=starts,
        arrived=arrived,
        elsewhere=elsewhere,
        tolerance=tolerance,
        adjoint=layer.adjoint,
        solver=layer.solver,
        everywhere=everywhere,
        coupled=mixes(here.rmatvec, own.z),
    )


def _inverse(
    trial: Trial, z: Tensor, here: Jacobian, there: Jacobian, dense: int
) -> tuple[Conditioning, Tensor, Tensor, float | None]:
    """How `I - J` is conditioned, whether it is regular, a bound of its inverse, and what is known of `J`.

    Args:
        trial: the layer and its input.
        z: the layer's own answer, `(B, n)`.
        here: the Jacobian there.
        there: that at the reference's.
        dense: see `certify`.

    Returns:
        The conditioning; whether `(B,)`; the bound from `here` to `there`, `(B,)`; the layer's own bound of `J`.
    """
    measured = conditioning(here, z, dense)
    h = spectral_norm(Difference(there, here), z, dense) / measured.smallest
    rounding = 10 * trial.layout.eps * trial.layout.width**0.5  # 1 and J have been rounded before I - J
    sound = measured.smallest > rounding * (1 + measured.norm)
    inverse = torch.where(sound & (h < 1), 1 / (measured.smallest * (1 - h)), torch.inf)
    everywhere: float | None = getattr(trial.layer, "contraction", _unknown)(trial.x, *trial.args)
    if everywhere is not None and everywhere < 1:  # the norm of J is at most that, at every state
        return measured, torch.ones_like(sound), inverse.clamp(max=1 / (1 - everywhere)), everywhere
    return measured, sound & (h < 0.5), inverse, everywhere


def _solver(layer: DEQ) -> Solver:
    """The layer's solver with the tolerances that `fixed_point` gives it, which does not know the trial's cell."""
    if not isinstance(layer.cell, ForwardBackward):
        return layer.solver
    layer.cell.begin_solve()
    return layer.cell.tolerances(layer.solver)


def _refined(trial: Trial, own: Answer, dense: int) -> Answer:
    """The answer that stands for the exact one: by Newton steps from the layer's own, and an accurate linear solve."""
    eps = trial.layout.eps
    linear = LU() if trial.layout.width <= dense else _accurate(trial, own, max(1e-10, 50 * eps))
    newton = Newton(linear_solver=linear, rtol=10 * eps, atol=0, max_steps=REFINE)
    try:
        answer = trial.solve(own.value, newton, Implicit(linear))
        if answer.report.converged or not isinstance(linear, CG):
            return answer
        # From afar Newton's steps may lead astray where the curvature saturates; a convex layer's plain ones do not.
        return trial.solve(own.value, Anderson(window=10, rtol=linear.rtol, atol=0, max_steps=SLOW), Implicit(linear))
    except NotImplementedError:  # a cell with one derivative only
        return trial.solve(own.value, Anderson(rtol=10 * eps, atol=0, max_steps=PATIENT), Implicit(linear))


def _accurate(trial: Trial, own: Answer, rtol: float) -> LinearSolver:
    """A method that solves with `I - J` accurately: of a convex layer by CG, which does not stall."""
    try:
        definite = is_definite(trial.jacobian(own.value), own.z)
    except NotImplementedError:
        definite = False
    return CG(rtol=rtol, max_steps=SLOW) if definite else GMRES(rtol=rtol, restart=100, max_steps=1000)


def _trusted(own: Answer, reference: Answer, eps: float) -> tuple[Tensor, Tensor]:
    """For which samples the reference is one, `(B,)` each: its point, and also its backward solve.

    A point that is far closer to a fixed point, or at rounding. Where the system is too badly conditioned for its dtype
    to be solved more accurately than the layer did, there is a bound of the gradient's error, but no estimate.
    """
    report, backward = reference.report, reference.report.backward
    rounding = 1e3 * eps * norm(reference.z) / reference.z.shape[1] ** 0.5
    known = (report.residual <= 0.1 * own.report.residual) | (report.residual <= rounding)
    known = known & (report.status != Status.NON_FINITE) & reference.u.isfinite().all(1)
    return known, known if backward is None else known & (backward.status == Status.CONVERGED)


def _gradient_errors(
    trial: Trial, own: Answer, reference: Answer, bound: Tensor, parts: Tensor, known: Tensor
) -> tuple[float, float, tuple[float, float]]:
    """The relative error of the gradient by all tensors, as estimated and as bounded; infinite when unknown.

    The last is what the backward residual and the error of the point add to that bound, absolutely, from their `parts`
    `(2, B)` of the bound of `u`.
    """
    nonfinite = own.report.status == Status.NON_FINITE  # such samples add nothing to either gradient
    backward, point = (float(norm(part[None])) for part in parts)
    if not bool((known | nonfinite).all()) or bool(nonfinite.all()):
        return torch.inf, torch.inf, (backward, point)
    estimate, whole = relative_error(own.gradient, reference.gradient), float(norm(bound[None]))
    if bool(nonfinite.any()):
        return estimate, torch.inf, (backward, point)
    if not trial.tensors:
        return estimate, _quotient(whole, _size([reference.u])), (backward, point)
    pulled, size = trial.sensitivity(reference.value, own.u)
    rest = _size([a - b for a, b in zip(own.gradient, pulled, strict=True)])
    shares = (size * backward, size * point + rest)
    return estimate, _quotient(size * whole + rest, _size(reference.gradient)), shares


def _compare_starts(
    trial: Trial, starts: int, own: Answer, residual: Tensor, known: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """From how many random starts each sample converged, and from how many to another point, `(B,)` each.

    Known of `I - J` are a bound of its inverse, and its smallest singular value at the point.
    """
    inverse, smallest = known
    root = trial.layout.width**0.5
    spread = 1 + norm(own.z) / root
    converged = own.report.status == Status.CONVERGED
    arrived = torch.zeros_like(own.report.status)
    elsewhere = arrived.clone()
    for _ in range(starts):
        solution = trial.solve_from(spread.unsqueeze(1) * trial.noise())
        both = residual + solution.residual * root
        reach = REACH * inverse * both
        guess = torch.where(smallest > 100 * trial.layout.eps, REACH * both / smallest, 0)
        near = torch.where(reach.isfinite(), reach, torch.fmax(guess, APART * spread * root))
        near = near + 100 * trial.layout.eps * norm(own.z)
        found = solution.status == Status.CONVERGED
        far = norm(trial.layout.flatten(solution.value) - own.z) > near
        arrived += found
        elsewhere += found & far & converged
    return arrived, elsewhere


def _unknown(*_args: Any) -> float | None:
    """What a layer without a structure knows of its contraction."""
    return None


def _relative(gap: Tensor, size: Tensor) -> Tensor:
    """A quotient `(B,)`, in double precision; zero where both are zero."""
    return torch.where(gap == 0, 0, gap.double() / size.double())


def _unless(known: Tensor, values: Tensor) -> Tensor:
    """Infinite where it is not known."""
    return torch.where(known, values, torch.inf)


def _quotient(gap: float, size: float) -> float:
    return gap / size if size > 0 else (0.0 if gap == 0 else torch.inf)


def _size(tensors: list[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return sum(float(tensor.abs().square().sum()) for tensor in tensors) ** 0.5
