r"""Which bounds cannot be met together: the least squares of their violation.

$t = R z - \mathrm{clip}(R z, \ell, u)$ at a minimum of $\|t\|^2$ is zero where the program is feasible. Elsewhere
$R^\top t = 0$, so $t$ is a proof that no point meets all the bounds (Farkas): the weights with which they contradict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, largest, times, times_transposed
from torchimplicit.optim.quadprog.saddle import factor

_HALVINGS = 30
_ZERO = 1e-7


def violation(program: Program, z: Tensor, max_steps: int = 100) -> tuple[Tensor, Tensor]:
    """The smallest violation of the bounds in the sense of least squares, by Newton's method from `z`.

    Returns:
        `t`, `(B, r)`, zero for rows that are met; and whether it proves that the program is infeasible, `(B,)`.
    """
    rows = program.rows
    shift = 1e-12 * rows.square().sum((1, 2)).clamp_min(1e-30)
    z = z.clone()
    t = _missed(program, z)
    for _ in range(max_steps):
        slope = times_transposed(rows, t)
        going = largest(slope) > 1e-13 * largest(t) * rows.abs().flatten(1).sum(1)
        if not bool(going.any()):
            break
        violated = rows * (t != 0).unsqueeze(2)
        system = violated.mT @ violated
        system.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(1))
        step = -torch.cholesky_solve(slope.unsqueeze(2), factor(system)[0]).squeeze(2)
        z = torch.where(going.unsqueeze(1), _descend(program, z, t, slope, step), z)
        t = _missed(program, z)
    bounds = (torch.nan_to_num(bound, posinf=0, neginf=0) for bound in (program.lower, program.upper))
    size = torch.stack([*map(largest, bounds), largest(times(rows, z))]).amax(0)
    contradicts = largest(times_transposed(rows, t)) <= 1e-5 * largest(t) * rows.abs().flatten(1).sum(1).clamp_min(
        1e-30
    )
    return t, (largest(t) > _ZERO * size) & contradicts


def _missed(program: Program, z: Tensor) -> Tensor:
    reached = times(program.rows, z)
    t = reached - torch.minimum(torch.maximum(reached, program.lower), program.upper)
    return torch.where(t.abs() > 1e-12 * reached.abs(), t, 0.0)


def _descend(program: Program, z: Tensor, t: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    """The longest of the halved steps that lowers the violation by a part of what its slope promises."""
    length = torch.ones_like(z[:, :1])
    start, promise = t.square().sum(1, keepdim=True), (slope * step).sum(1, keepdim=True)
    for _ in range(_HALVINGS):
        now = _missed(program, z + length * step).square().sum(1, keepdim=True)
        short = now > start + 0.2 * length * promise
        if not bool(short.any()):
            break
        length = torch.where(short, length / 2, length)
    return z + length * step
