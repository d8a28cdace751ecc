"""The public function of linear-quadratic control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import check_on_failure
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Status, react
from torchimplicit.linear.batched import times
from torchimplicit.optim.control.bounds import Bound
from torchimplicit.optim.control.condense import by_kind, constrained, held
from torchimplicit.optim.control.linear_quadratic import Given, assemble, put, trivial
from torchimplicit.optim.control.riccati import Stages, costates, rollout, sweep_back
from torchimplicit.optim.control.solution import ControlReport, ControlSolution

ACCURATE = 1e-7  # residual of the controls' slope beyond which a plan is not vouched for


@public
@transforms.outside_inference_mode
def lqr(
    A: Tensor,
    B: Tensor,
    Q: Tensor,
    R: Tensor,
    x0: Tensor,
    horizon: int | None = None,
    *,
    c: Tensor | None = None,
    S: Tensor | None = None,
    q: Tensor | None = None,
    r: Tensor | None = None,
    P: Tensor | None = None,
    p: Tensor | None = None,
    lower: Bound = None,
    upper: Bound = None,
    state_lower: Bound = None,
    state_upper: Bound = None,
    on_failure: OnFailure = "raise",
) -> ControlSolution:
    r"""The controls that steer a linear system at least quadratic cost, within bounds, differentiable in everything.

    $$ \min \sum_{t<T} \tfrac12 x_t^\top Q_t x_t + \tfrac12 u_t^\top R_t u_t + x_t^\top S_t u_t + q_t^\top x_t +
    r_t^\top u_t + \tfrac12 x_T^\top P x_T + p^\top x_T \quad\text{s.t.}\quad x_{t+1} = A_t x_t + B_t u_t + c_t $$

    and $l \le u_t \le h$, $l_x \le x_t \le h_x$ where bounds are given. Without bounds this is one sweep back and one
    forward (the discrete Riccati recursion), `O(T (nx + nu)^3)`, which autograd differentiates. With bounds the sweep
    comes first, too: with $u_t = K_t x_t + k_t + L_t^{-\top} w_t$, `K` and `k` its policy and $L_t L_t^\top$ its
    curvature, the cost is $\tfrac12 \|w\|^2$ and a constant, so that only a projection onto the bounds is left, `ti.qp`
    in `T nu` unknowns. Eliminating the states along open loops instead takes about as long, but its rounding grows with
    unstable dynamics (measured with eigenvalues of 1.2: wrong by 2e-8 at `T = 50`, altogether at 100); keeping the
    states as unknowns takes 2 to 18 times as long.

    A control that meets its bound with a multiplier is that bound, to the bit.

    Everything broadcasts to `(B, T, ...)`: a matrix `(nx, nx)` holds always, `(T, nx, nx)` varies in time, `(B, 1, nx,
    nx)` from sample to sample. Computed in float64 whatever the dtype. Costs need not be positive definite, as long as
    the whole cost is strictly convex in the controls; with bounds, convex is enough (then only a solution is found
    whose derivatives may not exist). Second derivatives and `torch.func` but `torch.vmap`: the batch is dimension 0.

    Not for nonlinear dynamics (`ilqr`); not for some hundreds of bounded controls over the whole horizon and more, for
    the quadratic program is dense.

    Args:
        A: dynamics by the state, `(nx, nx)`.
        B: dynamics by the control, `(nx, nu)`.
        Q: cost of states, symmetric, `(nx, nx)`.
        R: cost of controls, symmetric, `(nu, nu)`.
        x0: first states, `(B, nx)`.
        horizon: number of steps, `T`; None where something varies in time.
        c: offset of the dynamics, `(nx,)`.
        S: cross term, `(nx, nu)`.
        q: linear cost of states, `(nx,)`.
        r: linear cost of controls, `(nu,)`.
        P: cost of the last state, symmetric, `(nx, nx)` or `(B, nx, nx)`; None takes the last `Q`.
        p: its linear cost, `(nx,)` or `(B, nx)`; None takes the last `q`.
        lower: lower bounds of controls: a number, or a tensor `(nu,)`; minus infinity, or None, for none.
        upper: upper bounds of controls.
        state_lower: lower bounds of the states `x_1` to `x_T`, `(nx,)`.
        state_upper: upper bounds of the states.
        on_failure: "raise", "warn" or "ignore" samples without a solution, which hold the plan without bounds (rest,
            where there is none) and add nothing to any gradient.

    Returns:
        A `ControlSolution`: `value` the controls, `states`, `cost`, `costates`, `control_duals`, `state_duals`, all
        differentiable; a status per sample.

    Raises:
        ConvergenceError: the bounds of some sample cannot be met, its cost is not convex, or not finite (with
            `on_failure="raise"`); carries the solution.
        TypeError: dtypes differ.
        ValueError: shapes do not fit, costs are not symmetric, or bounds cross.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import lqr
        >>> A, B = (
        ...     torch.tensor([[1.0, 0.1], [0.0, 1.0]]),
        ...     torch.tensor([[0.0], [0.1]]),
        ... )  # a cart: place and speed
        >>> plan = lqr(
        ...     A,
        ...     B,
        ...     torch.eye(2),
        ...     torch.eye(1),
        ...     torch.tensor([[1.0, 0.0]]),
        ...     30,
        ...     lower=-0.5,
        ...     upper=0.5,
        ... )
        >>> [round(u, 2) for u in plan.value[0, :3, 0].tolist()], round(plan.cost.item(), 2)
        ([-0.5, -0.5, -0.5], 9.17)
    """
    given = Given(A, B, Q, R, x0, horizon, c, S, q, r, P, p, lower, upper, state_lower, state_upper)
    check_on_failure(on_failure)
    if any(transforms.is_mapped(transforms.unwrapped(tensor)) for tensor in given.tensors().values()):
        raise NotImplementedError("lqr does not work under torch.vmap; try one batch, in dimension 0 of x0")
    data = assemble(given)
    stages, bounds = data.stages, (data.control_bounds, data.state_bounds)
    policy = sweep_back(stages)
    weak = ~policy.sound
    if bool(weak.any()):
        stand_in = sweep_back(trivial(stages, weak))
        policy = stand_in._replace(K=put(weak, stand_in.K, 0.0), k=put(weak, stand_in.k, 0.0))
    status = Status.NONCONVEX.where(weak, Status.CONVERGED)
    steps, duals, gains = torch.ones_like(status), (None, None), policy.K
    if bounds != (None, None):
        extra, program = constrained(data, policy, weak)
        status, steps = program.status, program.steps
        lost = status != Status.CONVERGED  # whose numbers may be as large as they like
        policy = policy._replace(k=policy.k + put(lost, extra, 0.0))
        policy = held(data, policy, by_kind(data, program.active.bounds)[0])
        duals = by_kind(data, put(lost, program.duals.bounds, 0.0))
    x, u = rollout(stages, policy, data.x0)
    costate, residual = _multipliers(stages, gains, x, u, *duals)
    status = Status.STAGNATED.where((status == Status.CONVERGED) & ~(residual < ACCURATE), status)
    status = Status.NON_FINITE.where(data.nonfinite, status)
    report = ControlReport(status, steps, residual, 1, "lqr")
    values = x, u, _cost(stages, x, u), costate, *duals
    states, controls, *others = (_out(value, status != Status.CONVERGED, given.x0.dtype) for value in values)
    names = ("cost", "costates", "control_duals", "state_duals")
    solution = ControlSolution(controls, report, states=states, **dict(zip(names, others, strict=True)))
    react(report, on_failure, solution)
    return solution


def _cost(stages: Stages, x: Tensor, u: Tensor) -> Tensor:
    z, last = torch.cat((x[:, :-1], u), -1), x[:, -1]
    along = z * (0.5 * times(stages.H, z) + stages.g)
    return along.sum((1, 2)) + (last * (0.5 * times(stages.P, last) + stages.p)).sum(1)


def _multipliers(
    stages: Stages, K: Tensor, x: Tensor, u: Tensor, control_duals: Tensor | None, state_duals: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The costates, and how far from zero the controls' slope is, beside the largest slope of all, `(B,)`.

    The costates run back along the closed loop: as the slope by the controls is zero, any feedback of it may be added,
    and the policy's is the one that keeps rounding from growing where the open loop is unstable.
    """
    nx, last = x.shape[-1], x[:, -1]
    slope = times(stages.H, torch.cat((x[:, :-1], u), -1)) + stages.g
    by_state, by_control = slope[..., :nx], slope[..., nx:]
    final = times(stages.P, last) + stages.p
    if control_duals is not None:
        by_control = by_control + control_duals
    if state_duals is not None:
        by_state = by_state + torch.cat((torch.zeros_like(by_state[:, :1]), state_duals[:, :-1]), 1)
        final = final + state_duals[:, -1]
    A, B = stages.F[..., :nx], stages.F[..., nx:]
    costate = costates(A + B @ K, by_state + times(K.mT, by_control), final)
    left = (by_control + times(B.mT, costate)).detach().abs().amax((1, 2))
    return costate, left / (
        1 + torch.maximum(by_control, costate.abs().amax(2, keepdim=True)).detach().abs().amax((1, 2))
    )


def _out(value: Tensor | None, lost: Tensor, dtype: torch.dtype) -> Any:
    """A value in the caller's dtype; no gradient of samples without a solution."""
    if value is None:
        return None
    value = value.to(dtype)
    return put(lost, value, value.detach()) if bool(lost.any()) else value
