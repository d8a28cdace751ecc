"""Bounds on a linear-quadratic problem, by a quadratic program in the controls alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.linear.batched import times
from torchimplicit.optim.control.linear_quadratic import LinearQuadratic, put
from torchimplicit.optim.control.riccati import Policy, Stages
from torchimplicit.optim.quadprog import QPSolution, qp


def constrained(data: LinearQuadratic, policy: Policy, weak: Tensor) -> tuple[Tensor, QPSolution]:
    r"""What bounds add to the feedforward of a policy, `(B, T, nu)`, and the program solved for it.

    With $u_t = K_t x_t + k_t + L_t^{-\top} w_t$ the whole cost is $\tfrac12 \|w\|^2$ and a constant, as each stage's
    cost to go is a square about its minimum. States and controls are affine in `w`, along the closed loop, so that
    nothing grows with the horizon. Samples whose cost to go is not strictly convex have no such form: for them `w` are
    the controls, and the program gets the whole cost, convex or not.

    Args:
        data: the problems.
        policy: of a sweep back without bounds; zero where `weak`.
        weak: samples without such a policy, `(B,)` bool.
    """
    stages = data.stages
    batch, horizon, nu, _ = policy.K.shape
    count = horizon * nu
    spread = _spread(policy, weak)  # L^-T of every stage, and where it stands: (B, T, nu, T nu)
    X, U = _along(stages, policy.K, spread)
    x, u = _along(stages, policy.K, policy.k.unsqueeze(-1), data.x0.unsqueeze(-1), stages.c)
    eye = torch.eye(count, dtype=x.dtype, device=x.device)
    Q, q = eye.expand(batch, count, count), x.new_zeros(batch, count)
    if bool(weak.any()):
        whole, slope = _whole_cost(stages, X, U, x.squeeze(-1), u.squeeze(-1))
        Q, q = put(~weak, whole, eye), put(~weak, slope, 0.0)
    rows, low, high = [], [], []
    for pair, by, base in ((data.control_bounds, U, u), (data.state_bounds, X[:, 1:], x[:, 1:])):
        if pair is not None:
            rows.append(by.flatten(1, 2))
            low.append((pair[0] - base.squeeze(-1)).flatten(1))
            high.append((pair[1] - base.squeeze(-1)).flatten(1))
    l, h = torch.cat(low, 1), torch.cat(high, 1)  # noqa: E741
    solution = qp(Q, q, C=torch.cat(rows, 1), l=l, u=h, on_failure="ignore")
    return times(spread.flatten(1, 2), solution.value).unflatten(1, (horizon, nu)), solution


def held(data: LinearQuadratic, policy: Policy, side: Tensor | None) -> Policy:
    """The policy with its controls at the bounds that they meet, to the bit.

    `K x + k` would be beside them by its rounding: where a plan without bounds were far larger, many digits.

    Args:
        data: the problems.
        policy: that of the solved program.
        side: 1 for controls at their upper bound, -1 for those at their lower one, `(B, T, nu)`; None without bounds.
    """
    if side is None or data.control_bounds is None:
        return policy
    low, high = data.control_bounds
    k = torch.where(side > 0, high, torch.where(side < 0, low, policy.k))
    return policy._replace(K=torch.where((side != 0).unsqueeze(-1), 0.0, policy.K), k=k)


def by_kind(data: LinearQuadratic, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Splits the constraints' multipliers `(B, r)` into those of controls `(B, T, nu)` and of states `(B, T, nx)`."""
    parts: list[Any] = []
    for pair in (data.control_bounds, data.state_bounds):
        size = 0 if pair is None else pair[0].shape[1:].numel()
        parts.append(None if pair is None else rows[:, :size].view(pair[0].shape))
        rows = rows[:, size:]
    return parts[0], parts[1]


def _spread(policy: Policy, weak: Tensor) -> Tensor:
    batch, horizon, nu, _ = policy.K.shape
    eye = torch.eye(nu, dtype=policy.K.dtype, device=policy.K.device)
    factor = torch.linalg.cholesky(put(weak, policy.curvature, eye))
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT
    place = torch.eye(horizon, dtype=eye.dtype, device=eye.device)
    return torch.einsum("btij,ts->btisj", inverse, place).reshape(batch, horizon, nu, horizon * nu)


def _along(
    stages: Stages, K: Tensor, k: Tensor, start: Tensor | None = None, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """States `(B, T + 1, nx, m)` and controls `(B, T, nu, m)` of `u = K x + k` for `m` feedforwards `(B, T, nu, m)`."""
    x = k.new_zeros(len(k), stages.F.shape[2], k.shape[-1]) if start is None else start
    states, controls = [x], []
    for t, F in enumerate(stages.F.unbind(1)):
        u = K[:, t] @ x + k[:, t]
        x = F @ torch.cat((x, u), 1)
        x = x if c is None else x + c[:, t].unsqueeze(-1)
        states.append(x)
        controls.append(u)
    return torch.stack(states, 1), torch.stack(controls, 1)


def _whole_cost(stages: Stages, X: Tensor, U: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Curvature `(B, m, m)` and slope `(B, m)` of the cost by what states and controls are affine in."""
    Z, z = torch.cat((X[:, :-1], U), 2), torch.cat((x[:, :-1], u), 2)
    last, final = X[:, -1], stages.P
    curvature = (Z.mT @ stages.H @ Z).sum(1) + last.mT @ final @ last
    slope = times(Z.mT, times(stages.H, z) + stages.g).sum(1)
    slope = slope + times(last.mT, times(final, x[:, -1]) + stages.p)
    return 0.5 * (curvature + curvature.mT), slope
