r"""The one verdict on a point and its multipliers: every condition of the stated program, by the size of its own terms.

Convex programs are solved exactly where the Karush-Kuhn-Tucker conditions hold. Each of them is compared with what it
is made of: a row with $\sum_j |R_{ij} z_j|$ and its bound, a component of the slope with
$\sum_k |Q_{jk} z_k| + |q_j| + \sum_i |R_{ij} y_i|$. So neither units nor a single large number can hide a violation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, Terms, largest, part, times, times_transposed
from torchimplicit.optim.quadprog.units import Units

TOLERANCE = 1e-9
_NOTHING = 1e-15  # of the largest that a row could reach: what cancels to this is zero
_ZERO = 1e-13  # of the largest, in units in which all is about one
_CANCELS = 1e3


def judge(program: Program, z: Tensor, y: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How far a point is from a solution, and whether it is one.

    Args:
        program: as stated.
        z: solution, `(B, n)`.
        y: multipliers of the rows, positive at the upper and negative at the lower bound, `(B, r)`.
        known: what `at_least` gives for them, `(B,)`.

    Returns:
        The largest violation of a condition over the size of its terms, `(B,)`, and whether that is below the
        tolerance, bool `(B,)`.
    """
    residual = at_least(program, Terms.of(program, z, y)) if known is None else known
    solved = residual <= TOLERANCE
    if bool(solved.all()):
        return residual, solved
    doubtful = torch.nonzero(~solved).flatten()
    stated = program.take(doubtful)
    units = Units.of(stated)
    residual[doubtful] = _exactly(units.scaled(stated), z[doubtful] / units.z, y[doubtful] / units.y)
    return residual, residual <= TOLERANCE


def feasible(program: Program, z: Tensor) -> Tensor:
    """Whether points meet all bounds, by the size of what rows reach and of the bounds, `(B,)`."""
    reached = times(program.rows, z)
    bound = torch.clamp(reached, program.lower, program.upper)
    return largest(part(reached - bound, torch.maximum(reached.abs(), bound.abs()))) <= TOLERANCE


def met(program: Program, z: Tensor) -> Tensor:
    """Which rows meet one of their bounds, bool `(B, r)`."""
    reached = times(program.rows, z)
    size = times(program.rows.abs(), z.abs())
    return torch.minimum((program.upper - reached).abs(), (reached - program.lower).abs()) <= TOLERANCE * size


def at_least(program: Program, terms: Terms) -> Tensor:
    """No less than the residual: with the largest term, or the sum of them, for the sum of their magnitudes. `(B,)`."""
    forces = torch.stack((terms.curved, terms.pulled, program.q)).abs().amax(0)
    missed = terms.missed * (terms.missed > _NOTHING * torch.minimum(terms.extent, _CANCELS * terms.most))
    return part(torch.cat((terms.slope.abs(), missed), 1), torch.cat((forces, terms.size), 1)).amax(1)


def _exactly(program: Program, z: Tensor, y: Tensor) -> Tensor:
    """The residual of programs in units in which rows and columns are alike, `(B,)`."""
    Q, R = program.Q.abs(), program.rows.abs()
    curved, pulled, reached = times(program.Q, z), times_transposed(program.rows, y), times(program.rows, z)
    bound = _passed(program, reached).abs()
    force = torch.maximum(torch.maximum(curved.abs(), pulled.abs()), program.q.abs())
    force = _honest(force, times(Q, z.abs()) + program.q.abs() + times_transposed(R, y.abs()), program.q)
    known = torch.cat((program.lower, program.upper), 1)
    reach = _honest(torch.maximum(reached.abs(), bound), times(R, z.abs()) + bound, known)
    apart = part((reached - torch.clamp(reached, program.lower, program.upper)).abs(), reach)
    gap = part(_gap(program, reached, y), reach)
    # A multiplier that moves no component of the slope by more than the tolerance may as well be zero.
    multiplier = torch.where(y == 0, 0.0, _most(R, 1 / force.clamp_min(torch.finfo(force.dtype).tiny)) * y.abs())
    slope = part(curved + program.q + pulled, force)
    return torch.stack((largest(slope), largest(apart), largest(torch.minimum(gap, multiplier)))).amax(0)


def _most(matrix: Tensor, sizes: Tensor) -> Tensor:
    """The largest term of every row of a product of magnitudes, `(B, r)`."""
    return (matrix * sizes.unsqueeze(1)).amax(2) if matrix.shape[2] else matrix.new_zeros(matrix.shape[:2])


def _passed(program: Program, reached: Tensor) -> Tensor:
    """The bounds that are violated; zero where none is. `(B, r)`."""
    return torch.where(reached > program.upper, program.upper, torch.where(reached < program.lower, program.lower, 0.0))


def _honest(net: Tensor, terms: Tensor, known: Tensor) -> Tensor:
    """The size of terms, of which no more may cancel than a factor of the largest that is left; with a floor. `(B, k)`.

    Points and multipliers that are huge along directions which nothing determines would hide any violation. Where all
    is zero but for rounding, the smallest of the program's own numbers says how small that is.
    """
    most = largest(net).unsqueeze(1)
    known = torch.where(known.isfinite() & (known != 0), known.abs(), torch.inf)
    least = known.amin(1, keepdim=True) if known.shape[1] else torch.full_like(most, torch.inf)
    floor = torch.maximum(most.clamp_max(_CANCELS), torch.where(least.isfinite(), least, 1.0))
    return torch.minimum(terms, net + _CANCELS * most) + _ZERO / TOLERANCE * floor


def _gap(program: Program, reached: Tensor, y: Tensor) -> Tensor:
    """How far the rows are from the bounds that their multipliers belong to, `(B, r)`."""
    return torch.where(y > 0, program.upper - reached, torch.where(y < 0, reached - program.lower, 0.0)).abs()
