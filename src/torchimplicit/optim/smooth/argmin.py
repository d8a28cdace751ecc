"""The public functions of smooth minimisation: an energy, a sum of squares, an energy under equality constraints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torchimplicit.adjoint import Adjoint
from torchimplicit.core import transforms
from torchimplicit.core.public import public
from torchimplicit.core.stationary import LeastSquares, Stationary
from torchimplicit.core.status import OnFailure, Solution
from torchimplicit.equations import solve_problem
from torchimplicit.optim.smooth import second_order
from torchimplicit.optim.smooth.constrained import ConstrainedSolution, first_multipliers, lagrangian
from torchimplicit.point import Options
from torchimplicit.solve import LBFGS, LevenbergMarquardt, Minimiser, Newton, Solver


@public
@transforms.outside_inference_mode
def argmin(
    energy: Callable,
    z0: Any,
    *args: Any,
    constraints: Callable | None = None,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    check_minimum: bool = True,
    batch_dims: int = 1,
    warm_start: Solution | None = None,
    trace: bool = False,
    batched_args: Sequence[int] | None = None,
    save_steps: Sequence[int] = (),
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Minimises $E(z, a)$ over $z$, where $c(z, a) = 0$ if asked to; differentiably in the arguments $a$.

    Sample by sample. With the Hessian $H = \partial^2 E / \partial z^2$ the minimum has the derivative $\dot z^* =
    -H^{-1} (\partial^2 E / \partial z\, \partial a)\, \dot a$, which is how the gradient of a validation loss by
    hyperparameters follows from one linear solve (J. Lorraine, P. Vicol, D. Duvenaud, arXiv:1911.02590, theorem 1).

    The condition that is solved and differentiated is that of a stationary point. `LBFGS` and `NewtonCG` go down from
    `z0` to one; `Newton` goes to whatever is near. Afterwards the Hessian's smallest eigenvalue is looked at: a
    sample where the energy falls to a side (a saddle, a maximum) gets `Status.SADDLE`. For up to 256 unknowns that is
    exact; beyond it is estimated from 16 products, and a saddle may be missed. That the minimum is a global one is
    never claimed. A sample has converged when the Newton step from it is no longer than `atol + rtol * |z|`, unknown by
    unknown (see `Solver`): however unknowns and energy are scaled.

    With `constraints` the state is $(z, \lambda)$ and the condition the gradient of the Lagrangian $E + \lambda^\top
    c$ by both (the KKT conditions), solved by `Newton` from $\lambda = 0$ and differentiated through the same system
    (J. Nocedal and S. Wright, Numerical Optimization (2nd ed. 2006), equations 18.1 to 18.6). The curvature is then
    looked at along the constraints' tangents. Their gradients must be linearly independent at the solution.

    The Hessian is symmetric. Where it is positive definite, `CG` suits both `Newton(linear_solver=...)` and
    `Implicit(...)`: less memory than `GMRES`; not with constraints, for which it is indefinite. Not for energies with
    kinks (`ProximalGradient`), inequalities (`qp`, `ProjectedGradient`), nor flat directions (more weights than the
    data determine): there the Hessian is missing or singular.

    Args:
        energy: `energy(z, *args)`, one real number per sample, `(B,)`; a scalar with `batch_dims=0`. Needs second
            derivatives. Inside `torch.func` transforms it is differentiated by `torch.func.grad`.
        z0: see `fixed_point`.
        *args: see `fixed_point`.
        constraints: `c(z, *args)`, nested, any shapes `(B, ...)`, to be zero; no more than there are unknowns.
        solver: None takes `LBFGS()`, with constraints `Newton()`; `NewtonCG()`, `Newton()`, and those of `fixed_point`,
            to which the gradient is the residual: `Picard(damping=...)` is gradient descent of that step.
        adjoint: None takes `Implicit(LU())` up to 256 unknowns per sample, which is exact in whatever units these are,
            and `Implicit()` beyond; see `fixed_point`.
        check_minimum: False accepts any stationary point, and saves the eigenvalues, or products.
        batch_dims: see `fixed_point`.
        warm_start: see `fixed_point`; with constraints, the multipliers are taken over, too.
        trace: see `fixed_point`.
        batched_args: see `fixed_point`.
        save_steps: see `fixed_point`.
        on_failure: see `fixed_point`.

    Returns:
        A `Solution`; `solution.value` is like `z0`. Evaluations are those of the gradient. With constraints a
        `ConstrainedSolution`, which has `multipliers`.

    Raises:
        TypeError: the energy is not a real floating tensor, or see `fixed_point`.
        ValueError: the energy has another shape or does not depend on the state, or see `fixed_point`.
        ConvergenceError: some sample did not converge, or not to a minimum; see `fixed_point`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> center = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> sol = ti.argmin(lambda z, c: torch.cosh(z - c).sum(1), torch.zeros(1, 2), center)
        >>> torch.allclose(sol.value, center, atol=1e-3)
        True
        >>> sol.value.sum().backward()
        >>> torch.allclose(center.grad, torch.ones(1, 2), atol=1e-3)
        True
        >>> sol = ti.argmin(  # the nearest point on the unit circle
        ...     lambda z, p: (z - p).square().sum(1),
        ...     torch.ones(1, 2),
        ...     torch.tensor([[3.0, 4.0]]),
        ...     constraints=lambda z, p: z.square().sum(1) - 1,
        ... )
        >>> [round(v, 3) for v in (*sol.value[0].tolist(), *sol.multipliers.tolist())]
        [0.6, 0.8, 4.0]
    """
    _check_bool(check_minimum)
    if constraints is None:
        problem = Stationary(energy, z0, args, batch_dims, batched_args)
        solver = LBFGS() if solver is None else solver
        review = second_order.check_minimum if check_minimum else None
        return solve_problem(problem, z0, Options(solver, adjoint, warm_start, on_failure, trace, save_steps, review))
    if isinstance(solver, Minimiser):
        raise ValueError(
            f"argmin(constraints=..., solver={type(solver).__name__}()): a constrained minimum is a saddle of the "
            "Lagrangian, which going down does not find; expected Newton(), or another solver for a root"
        )
    multipliers, count = first_multipliers(energy, constraints, z0, args, batch_dims)
    if isinstance(warm_start, ConstrainedSolution):
        warm_start = replace(warm_start, value=(warm_start.value, warm_start.multipliers))
    elif isinstance(warm_start, Solution):
        warm_start = replace(warm_start, value=(warm_start.value, multipliers), state=None)
    state = (z0, multipliers)
    problem = Stationary(partial(lagrangian, energy, constraints), state, args, batch_dims, batched_args)
    solver = Newton() if solver is None else solver
    review = partial(second_order.check_minimum, constraints=count) if check_minimum else None
    options = Options(solver, adjoint, warm_start, on_failure, trace, save_steps, review, ConstrainedSolution.of)
    return solve_problem(problem, state, options)


@public
@transforms.outside_inference_mode
def least_squares(
    residuals: Callable,
    z0: Any,
    *args: Any,
    solver: Solver = LevenbergMarquardt(),
    adjoint: Adjoint | None = None,
    check_minimum: bool = True,
    batch_dims: int = 1,
    warm_start: Solution | None = None,
    trace: bool = False,
    batched_args: Sequence[int] | None = None,
    save_steps: Sequence[int] = (),
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Minimises $|r(z, a)|^2 / 2$ over $z$, sample by sample, differentiably in the arguments $a$.

    As `argmin` of that energy, for a solver that uses the residuals. Values and gradients are those of the energy: the
    derivative takes the whole Hessian, the second derivatives of the residuals included, so it is exact also where they
    do not vanish at the minimum.

    Args:
        residuals: `residuals(z, *args)`, nested, any shapes `(B, ...)`, real; not squared, not summed.
        z0: see `fixed_point`.
        *args: see `fixed_point`.
        solver: `LevenbergMarquardt()`, or any solver of `argmin`.
        adjoint: see `argmin`.
        check_minimum: see `argmin`.
        batch_dims: see `fixed_point`.
        warm_start: see `fixed_point`.
        trace: see `fixed_point`.
        batched_args: see `fixed_point`.
        save_steps: see `fixed_point`.
        on_failure: see `fixed_point`.

    Returns:
        A `Solution`; `solution.value` is like `z0`. Its `residual` is the RMS of the energy's gradient $J^\top r$.

    Raises:
        TypeError: the residuals are no real floating tensors, or see `fixed_point`.
        ValueError: they have another batch, or see `fixed_point`.
        ConvergenceError: see `argmin`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> t = torch.linspace(0, 2, 9, dtype=torch.float64)
        >>> y = 3 * torch.exp(-0.5 * t)[None]
        >>> def residuals(z, t, y):
        ...     return z[:, :1] * torch.exp(-z[:, 1:] * t) - y
        >>> sol = ti.least_squares(residuals, torch.ones(1, 2, dtype=torch.float64), t, y)
        >>> [round(v, 3) for v in sol.value[0].tolist()]
        [3.0, 0.5]
    """
    _check_bool(check_minimum)
    problem = LeastSquares(residuals, z0, args, batch_dims, batched_args)
    review = second_order.check_minimum if check_minimum else None
    options = Options(solver, adjoint, warm_start, on_failure, trace, save_steps, review)
    return solve_problem(problem, z0, options)


def _check_bool(check_minimum: Any) -> None:
    if not isinstance(check_minimum, bool):
        raise ValueError(f"check_minimum: got {check_minimum!r}, expected True or False")
