"""Linear-quadratic problems by dynamic programming: one sweep back in time, one forward, `O(T (nx + nu)^3)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.linear.batched import times


class Stages(NamedTuple):
    r"""A batch of linear-quadratic problems in $z_t = (x_t, u_t)$, `n = nx + nu`.

    $\min \sum_t \tfrac12 z_t^\top H_t z_t + g_t^\top z_t + \tfrac12 x_T^\top P x_T + p^\top x_T$ subject to
    $x_{t+1} = F_t z_t + c_t$.

    Attributes:
        F: dynamics, `(B, T, nx, n)`.
        c: offsets of the dynamics, `(B, T, nx)`; None for zero.
        H: curvature of the cost, symmetric, `(B, T, n, n)`.
        g: slope of the cost, `(B, T, n)`.
        P: curvature of the last state's cost, `(B, nx, nx)`.
        p: its slope, `(B, nx)`.
    """

    F: Tensor
    c: Tensor | None
    H: Tensor
    g: Tensor
    P: Tensor
    p: Tensor


class Policy(NamedTuple):
    """The affine policy `u_t = K_t x_t + k_t` of a backward sweep, and what its stages looked like.

    Attributes:
        K: feedback, `(B, T, nu, nx)`.
        k: feedforward, `(B, T, nu)`.
        curvature: of the cost to go by the control, `(B, T, nu, nu)`.
        slope: of the cost to go by the control, at a state of zero, `(B, T, nu)`.
        sound: whether that curvature was positive definite at every stage, `(B,)`.
    """

    K: Tensor
    k: Tensor
    curvature: Tensor
    slope: Tensor
    sound: Tensor


# `(t, quu, qux, qu) -> (K, k, sound)`: the policy of one stage, from the cost to go around it.
Choice = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def unconstrained(t: int, quu: Tensor, qux: Tensor, qu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The minimum of a stage over every control."""
    return regular(quu, qux, qu)


def regular(quu: Tensor, qux: Tensor, qu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`-quu^{-1} qux`, `-quu^{-1} qu`, and whether `quu` was positive definite; where it was not, any finite policy."""
    factor, info = torch.linalg.cholesky_ex(quu)
    sound = info == 0
    eye = torch.eye(quu.shape[-1], dtype=quu.dtype, device=quu.device)
    factor = torch.where(sound[:, None, None], factor, eye)
    both = torch.cholesky_solve(torch.cat((qux, qu.unsqueeze(-1)), -1), factor)
    return -both[..., :-1], -both[..., -1], sound


def holding(free: Tensor) -> Choice:
    """The minimum of a stage over those controls that are free, `(B, T, nu)` bool; the others stay zero."""
    stages = free.unbind(1)

    def choose(t: int, quu: Tensor, qux: Tensor, qu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return regular(*only(stages[t], quu, qux, qu))

    return choose


def only(free: Tensor, quu: Tensor, qux: Tensor, qu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A stage in which the controls that are not `free`, `(B, nu)` bool, find their minimum at zero."""
    pair = free.unsqueeze(-1) & free.unsqueeze(-2)
    quu = torch.where(pair, quu, torch.eye(free.shape[-1], dtype=quu.dtype, device=quu.device))
    return quu, torch.where(free.unsqueeze(-1), qux, 0), torch.where(free, qu, 0)


def sweep_back(stages: Stages, choose: Choice = unconstrained) -> Policy:
    r"""The policy that is best from every stage on, for a way to choose it at one stage.

    With the cost to go $\tfrac12 x^\top V x + v^\top x$ from stage `t + 1` on, stage `t` costs
    $\tfrac12 z^\top (H + F^\top V F) z + (g + F^\top (v + V c))^\top z$; the policy put in for `u` gives the cost to go
    from `t`. Any policy may be chosen, so that bounds and regularisation are the caller's. D. Bertsekas, Dynamic
    Programming and Optimal Control (2017), section 3.1. Every operation can be differentiated.

    Args:
        stages: the problems.
        choose: the policy of a stage from the curvature and slope of the cost to go.
    """
    nx, horizon = stages.p.shape[-1], stages.F.shape[1]
    V, v = stages.P, stages.p
    fs, hs, gs = stages.F.unbind(1), stages.H.unbind(1), stages.g.unbind(1)
    cs = None if stages.c is None else stages.c.unbind(1)
    found: list[tuple[Tensor, ...]] = []
    for t in reversed(range(horizon)):
        slope = v if cs is None else v + times(V, cs[t])
        qzz, qz = hs[t] + fs[t].mT @ V @ fs[t], gs[t] + times(fs[t].mT, slope)
        qux, quu, qu = qzz[:, nx:, :nx], qzz[:, nx:, nx:], qz[:, nx:]
        K, k, sound = choose(t, quu, qux, qu)
        v = qz[:, :nx] + times(K.mT, qu + times(quu, k)) + times(qux.mT, k)
        V = qzz[:, :nx, :nx] + K.mT @ (qux + quu @ K) + qux.mT @ K
        V = 0.5 * (V + V.mT)
        found.append((K, k, quu, qu, sound))
    K, k, quu, qu, sound = (torch.stack(each[::-1], 1) for each in zip(*found, strict=True))
    return Policy(K, k, quu, qu, sound.all(1))


def rollout(stages: Stages, policy: Policy, x: Tensor) -> tuple[Tensor, Tensor]:
    """States `(B, T + 1, nx)` and controls `(B, T, nu)` of a policy from `x` `(B, nx)` along the linear dynamics."""
    states, controls = [x], []
    fs, gains, feeds = stages.F.unbind(1), policy.K.unbind(1), policy.k.unbind(1)
    cs = None if stages.c is None else stages.c.unbind(1)
    for t in range(len(fs)):
        u = times(gains[t], x) + feeds[t]
        x = times(fs[t], torch.cat((x, u), -1))
        x = x if cs is None else x + cs[t]
        states.append(x)
        controls.append(u)
    return torch.stack(states, 1), torch.stack(controls, 1)


def costates(F: Tensor, slopes: Tensor, final: Tensor) -> Tensor:
    """What it costs to move each next state, `(B, T, nx)`: the multipliers of the dynamics.

    Args:
        F: dynamics by the state, `(B, T, nx, nx)`; what else stands in further columns is left out.
        slopes: of the cost by the states before each step, `(B, T, nx)`; that of the first is not used.
        final: slope of the cost by the last state, `(B, nx)`.
    """
    nx = final.shape[-1]
    along, costate = [final], final
    for t in reversed(range(1, F.shape[1])):
        costate = slopes[:, t] + times(F[:, t, :, :nx].mT, costate)
        along.append(costate)
    return torch.stack(along[::-1], 1)
