r"""Proofs that programs have no solution, each of which is the solution of another program, found to rounding.

With $\sigma(y) = u^\top y^+ - \ell^\top y^-$, all points $z$ within the bounds have $y^\top R z \le \sigma(y)$. So
weights with $R^\top y = 0$ and $\sigma(y) < 0$ contradict themselves (J. Farkas). The shortest ones minimise
$\tfrac12 \|y\|^2 + \sigma(y)$ on $R^\top y = 0$, and vanish where some point meets all bounds. Where the objective
falls for ever, it does so along the projection of $-q$ onto the directions that nothing bends and no bound stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.far import ever_further, within
from torchimplicit.optim.quadprog.program import Program, largest, times, times_transposed
from torchimplicit.optim.quadprog.units import Units
from torchimplicit.optim.quadprog.verdict import feasible

_PLAUSIBLE = 1e6  # no point lies further out, measured by the bounds that contradict
_GAP = 1e3  # between sizes of bounds, the smaller of which are tried alone
_ROUNDING = 1e-11
_RANK = 1e-9
_RISE = 1e-9
_NONE = 1e-8  # a projection of that length, of something of length one, is zero


def contradiction(program: Program, z: Tensor, find: Callable[[Program], Tensor]) -> Tensor:
    """Weights of the rows that prove that no point meets all bounds, `(B, r)`; zero where there is no proof.

    Args:
        program: the programs.
        z: points; where one meets all bounds nothing is proved against it.
        find: solves definite programs.
    """
    blamed = torch.zeros_like(program.lower)
    left = torch.nonzero(~feasible(program, z)).flatten() if program.rows.shape[1] else blamed.new_zeros(0).long()
    for reach in ever_further(program, _GAP):  # bounds that contradict each other need no others for it
        if not len(left):
            break
        part = program.take(left)
        blamed[left] = _proof(part if reach is None else within(part, reach[left]), find)
        left = left[(blamed[left] == 0).all(1)]
    return blamed


def _proof(program: Program, find: Callable[[Program], Tensor]) -> Tensor:
    """As `contradiction`, of programs and nothing else."""
    units = Units.of(program)
    scaled = units.scaled(program)
    y = weights(scaled, find)
    return torch.where(proves(scaled, y).unsqueeze(1), as_shortest(program, y * units.rows), 0.0)


def as_shortest(program: Program, y: Tensor) -> Tensor:
    r"""Weights as long as the shortest ones would be: $\|y\|^2 = -\sigma(y)$. `(B, r)`."""
    length = _support(program, y) / y.square().sum(1).clamp_min(torch.finfo(y.dtype).tiny)
    return -length.unsqueeze(1) * y


def weights(program: Program, find: Callable[[Program], Tensor]) -> Tensor:
    """The shortest weights that contradict, `(B, r)`, exactly balanced: so that they prove it, however short."""
    r, n = program.rows.shape[1:]
    upper, lower = program.upper, program.lower
    Q = torch.eye(2 * r, dtype=upper.dtype, device=upper.device).expand(program.batch, -1, -1)
    q = torch.cat((upper, -lower), 1)
    has = q.isfinite()
    both = torch.cat((program.rows.mT, -program.rows.mT), 2)
    low = torch.cat((torch.zeros_like(program.q), torch.zeros_like(q)), 1)
    high = torch.cat((torch.zeros_like(program.q), torch.where(has, torch.inf, 0.0)), 1)
    found = find(Program(Q, torch.where(has, q, 0.0), torch.cat((both, Q), 1), low, high, n))
    above, below = torch.where(has, found.clamp_min(0), 0.0).chunk(2, 1)
    return _exactly_balanced(program, above - below)


def _exactly_balanced(program: Program, y: Tensor) -> Tensor:
    r"""Weights with $R^\top y = 0$ to the last digit of their own, however small they are: the nearest ones."""
    for _ in range(3):
        y = torch.where(y.abs() > _ROUNDING * largest(y).unsqueeze(1), y, 0.0)
        working = program.rows * (y != 0).unsqueeze(2)
        y = y - times(torch.linalg.pinv(working.mT, rtol=_RANK), times_transposed(working, y))
        y = torch.where(torch.where(y > 0, program.upper, program.lower).isfinite(), y, 0.0)
    return y


def proves(program: Program, y: Tensor) -> Tensor:
    r"""Whether weights contradict for all plausible points: $-\sigma(y) > |R^\top y|\, |z|$, `(B,)`."""
    bound = torch.where(y > 0, program.upper, torch.where(y < 0, program.lower, 0.0))
    terms, short = bound * y, -_support(program, y)
    reach = _PLAUSIBLE * largest(bound)
    return (short > _ROUNDING * terms.abs().sum(1)) & (short > reach * times_transposed(program.rows, y).abs().sum(1))


def _support(program: Program, y: Tensor) -> Tensor:
    r"""$\sigma(y)$, `(B,)`."""
    return (torch.where(y > 0, program.upper, torch.where(y < 0, program.lower, 0.0)) * y).sum(1)


def ray(program: Program, find: Callable[[Program], Tensor]) -> Tensor:
    """Directions along which the objective falls for ever and no bound is ever met, `(B, n)`; zero without such."""
    n, zero, far = program.q.shape[1], torch.zeros_like(program.q), torch.full_like(program.lower, torch.inf)
    lower, upper = torch.where(program.lower.isfinite(), 0.0, -far), torch.where(program.upper.isfinite(), 0.0, far)
    rows = torch.cat((program.Q, program.rows), 1)  # whatever the cost's unit, what does not bend is an equation
    cone = Program(
        torch.zeros_like(program.Q), program.q, rows, torch.cat((zero, lower), 1), torch.cat((zero, upper), 1), n
    )
    units = Units.of(cone)
    cone = units.scaled(cone)
    steep = largest(cone.q).unsqueeze(1)
    eye = torch.eye(n, dtype=cone.q.dtype, device=cone.q.device).expand(program.batch, -1, -1)
    d = find(replace(cone, Q=eye, q=torch.where(steep > 0, cone.q / steep, 0.0)))
    d = torch.where((largest(d) > _NONE).unsqueeze(1), d * units.z, 0.0)
    return torch.where(falls(program, d).unsqueeze(1), d, 0.0)


def falls(program: Program, d: Tensor) -> Tensor:
    """Whether the objective falls along directions for ever, and no bound is met on the way, `(B,)`."""
    size = d.abs()
    moved, reach = times(program.rows, d), _ROUNDING * times(program.rows.abs(), size)
    blocked = ((moved > reach) & program.upper.isfinite()) | ((moved < -reach) & program.lower.isfinite())
    bent = times(program.Q, d).abs() > _ROUNDING * times(program.Q.abs(), size)
    slope = (program.q * d).sum(1)
    return (slope < -_RISE * (program.q * d).abs().sum(1)) & ~blocked.any(1) & ~bent.any(1)
