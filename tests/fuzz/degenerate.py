"""`qp` on programs of no rank, no interior or no scale, made around a known solution.

With a point, its multipliers and the bounds they belong to, the cost that makes the point optimal is a formula. So is
its derivative, by a pseudoinverse, where the bounds with a multiplier determine the point.
"""

from dataclasses import dataclass, replace

import torch

import torchimplicit as ti
from tests.fuzz.watch import Fault

one, INF = torch.float64, torch.inf
RIGHT = 1e-9  # of values, by their units
SLOPE = 1e-7  # of derivatives


@dataclass
class Known:
    """`min z'Qz/2 + q'z` on `l <= R z <= u`, and what is known of it: a solution, its multipliers, its verdict."""

    Q: torch.Tensor
    R: torch.Tensor
    l: torch.Tensor  # noqa: E741
    u: torch.Tensor
    z: torch.Tensor
    y: torch.Tensor
    q: torch.Tensor
    units: torch.Tensor
    status: ti.Status = ti.Status.CONVERGED

    def solve(self, **options):
        """What `qp` finds."""
        return ti.qp(self.Q, self.q, C=self.R, l=self.l, u=self.u, on_failure="ignore", **options)

    def scaled(self, unknowns, rows):
        """The same program in other units."""
        across = unknowns[:, None] * unknowns
        return replace(
            self, Q=self.Q * across, q=self.q * unknowns, R=self.R * rows[:, None] * unknowns, l=self.l * rows,
            u=self.u * rows, z=self.z / unknowns, y=self.y / rows, units=self.units / unknowns,
        )  # fmt: skip


def program(Q, R, l, u, z, y):  # noqa: E741
    return Known(Q, R, l, u, z, y, -(Q @ z) - R.T @ y, torch.ones_like(z))


def low_rank(dice, n, rank):
    root = dice.normal(n, rank)
    return root @ root.T


def whole(dice, low, high, *shape):
    """Small integers: so that rows meet in one point exactly."""
    return (dice.normal(*shape) * (high - low) / 3 + (high + low) / 2).round().clamp(low, high)


def around(dice, R, z, met):
    """Bounds that a point meets on some rows, at the side given, and that leave it room on the others."""
    reached, room = R @ z, dice.normal(len(R)).abs() + 0.1
    upper = torch.where(met > 0, reached, torch.where(met < 0, INF, reached + room))
    lower = torch.where(met < 0, reached, torch.where(dice.normal(len(R)) > 0.5, reached - room, -INF))
    return lower, upper


def repeated_rows(dice, curved=False):
    n = dice.between(2, 12)
    R = whole(dice, -3, 3, n + dice.between(2, 12), n)
    R[R.abs().sum(1) == 0, 0] = 1
    for _ in range(dice.between(1, 4)):
        first, second = R[dice.between(0, len(R) - 1)], R[dice.between(0, len(R) - 1)]
        more = dice.pick(first, first * dice.power(-4, 4), first + second, -first)
        R = torch.cat((R, (more if bool(more.any()) else first)[None]))
    z, met = whole(dice, -2, 2, n), dice.normal(len(R)).sign()
    met = met * (dice.normal(len(R)) > 0)
    lower, upper = around(dice, R, z, met)
    Q = low_rank(dice, n, n) + 0.1 * torch.eye(n, dtype=one) if curved else torch.zeros(n, n, dtype=one)
    y = met * dice.normal(len(R)).abs() * (dice.normal(len(R)) > -1) / R.abs().amax(1)
    return program(Q, R, lower, upper, z, y)


def no_interior(dice):
    n = dice.between(3, 15)
    G = dice.normal(dice.between(1, n), n)
    z = dice.normal(n) * (dice.normal(n) > 0)
    R = torch.cat((G, -G[: max(1, len(G) // 2)], torch.eye(n, dtype=one)))
    reached, rest = R @ z, len(R) - n
    fixed = dice.normal(n) > 0.8
    lower = torch.cat((torch.full((rest,), -INF, dtype=one), torch.where(fixed | (z == 0), z, z - 1)))
    upper = torch.cat((reached[:rest], torch.where(fixed, z, z + 1)))
    pull = dice.normal(n)
    own = torch.where(fixed, pull, torch.where(z == 0, -pull.abs(), 0.0))
    return program(low_rank(dice, n, dice.between(1, n)), R, lower, upper, z, torch.cat((dice.normal(rest).abs(), own)))


def implied_zeros(dice):
    n = dice.between(3, 12)
    k = dice.between(2, n - 1)
    A, some = dice.normal(2, n), torch.arange(n) < k
    z = torch.where(some, 0.0, dice.normal(n).abs())
    R = torch.cat((some.to(one)[None] * (dice.normal(1, n).abs() + 0.5), A, torch.eye(n, dtype=one)))
    lower = torch.cat((torch.tensor([-INF], dtype=one), A @ z, 0 * z))
    upper = torch.cat((torch.zeros(1, dtype=one), A @ z, torch.full((n,), INF, dtype=one)))
    y = torch.cat((dice.normal(1).abs(), dice.normal(2), -dice.normal(n).abs() * some))
    return program(low_rank(dice, n, max(1, n // 2)) * dice.pick(0.0, 1.0), R, lower, upper, z, y)


def narrow_boxes(dice):
    n = dice.between(3, 12)
    z, side = dice.normal(n), dice.normal(n).sign() * (dice.normal(n) > -0.5)
    width = torch.where(dice.normal(n) > 0.5, 1.0, 1e-9)
    R = torch.cat((dice.normal(1, n), torch.eye(n, dtype=one)))
    lower = torch.where(side < 0, z, torch.where(side > 0, z - width, z - width / 2))
    upper = torch.where(side > 0, z, torch.where(side < 0, z + width, z + width / 2))
    sum_ = R[:1] @ z
    y = torch.cat((dice.normal(1), side * dice.normal(n).abs()))
    Q = low_rank(dice, n, max(1, n // 2)) * dice.pick(0.0, 1.0)
    return program(Q, R, torch.cat((sum_, lower)), torch.cat((sum_, upper)), z, y)


def transport(dice):
    k, j = dice.between(2, 5), dice.between(2, 5)
    eye = torch.eye(max(k, j), dtype=one)
    A = torch.cat((eye[:k, :k].repeat_interleave(j, 1), eye[:j, :j].repeat(1, k)))
    n = k * j
    z = whole(dice, 0, 3, n) * (dice.normal(n) > 0)
    y = torch.cat((dice.normal(k + j), -whole(dice, 0, 2, n) * (z == 0)))
    upper = torch.cat((A @ z, torch.full((n,), INF, dtype=one)))
    return program(
        torch.zeros(n, n, dtype=one), torch.cat((A, torch.eye(n, dtype=one))), torch.cat((A @ z, 0 * z)), upper, z, y
    )


def in_other_units(dice, known):
    """Rows and columns scaled by 1e-4 to 1e4."""
    n, r = len(known.z), len(known.l)
    return known.scaled(10 ** (4 * dice.normal(n).clamp(-1, 1)), 10 ** (4 * dice.normal(r).clamp(-1, 1)))


def contradictory(dice):
    """A bound turned round and moved away, by a millionth and more of its size."""
    known = dice.pick(repeated_rows, no_interior, transport)(dice)
    row = int(torch.nonzero(known.u.isfinite()).flatten()[0])
    # Of its terms, not of what they cancel to: what is no more than 1e-9 of these is solved, as promised.
    gap = dice.power(-6, 2) * max(float(known.u[row].abs()), float(known.R[row].abs().max()))
    scale = dice.power(-3, 3)
    R = torch.cat((known.R, -scale * known.R[row : row + 1]))
    upper = torch.cat((known.u, scale * (-known.u[row : row + 1] - gap)))
    lower = torch.cat((known.l, torch.tensor([-INF], dtype=one)))
    y = torch.cat((known.y, torch.zeros(1, dtype=one)))
    return replace(known, R=R, l=lower, u=upper, y=y, status=ti.Status.INFEASIBLE)


def endless(dice):
    """A cost that falls along a direction which nothing bends and no bound stops."""
    n = dice.between(2, 10)
    Q = low_rank(dice, n, dice.between(1, n - 1))
    along = torch.linalg.eigh(Q).eigenvectors[:, 0]
    R = dice.normal(dice.between(1, 2 * n), n)
    R = torch.where((R @ along > 0)[:, None], -R, R)
    z, q = dice.normal(n), dice.normal(n)
    q = q - (q @ along + 1) * along
    size = dice.power(-3, 3)
    lower = torch.full((len(R),), -INF, dtype=one)
    upper = R @ z + dice.normal(len(R)).abs()
    return Known(size * Q, R, lower, upper, z, 0 * upper, size * q, torch.ones(n, dtype=one), ti.Status.UNBOUNDED)


KINDS = {
    "repeated rows": repeated_rows,
    "repeated rows, curved": lambda dice: repeated_rows(dice, curved=True),
    "repeated rows, in other units": lambda dice: in_other_units(dice, repeated_rows(dice)),
    "curved, in other units": lambda dice: in_other_units(dice, repeated_rows(dice, curved=True)),
    "no interior": no_interior,
    "no interior, in other units": lambda dice: in_other_units(dice, no_interior(dice)),
    "implied zeros": implied_zeros,
    "narrow boxes": narrow_boxes,
    "transport": transport,
    "contradictory": contradictory,
    "endless": endless,
}


def faults_of(known, solution):
    """What is wrong with a verdict and with what it vouches for, in words."""
    status = ti.Status(solution.status.item())
    if ti.Status.CONVERGED not in (status, known.status):
        return [] if status in (known.status, ti.Status.MAX_STEPS) else [f"{status.name}, it is {known.status.name}"]
    if status != known.status:
        return [] if status == ti.Status.MAX_STEPS else [f"{status.name}, it is {known.status.name}"]
    z = solution.value.detach()
    terms = known.q.abs() @ (known.z.abs() + z.abs()) + known.z.abs() @ known.Q.abs() @ known.z.abs()
    terms = terms + 1e-9 * known.q.abs() @ known.units  # of a solution of zero
    cost = [0.5 * x @ known.Q @ x + known.q @ x for x in (z, known.z)]
    reach = known.R.abs() @ (z.abs() + known.z.abs() + 1e-3 * known.units)
    apart = (known.R @ z - known.u).clamp_min(0) + (known.l - known.R @ z).clamp_min(0)
    faults = []
    if not abs(cost[0] - cost[1]) <= RIGHT * terms:
        faults.append(f"the cost is off by {float(abs(cost[0] - cost[1]) / terms):.2g}")
    if not (apart <= RIGHT * reach).all():
        faults.append(f"a row is off by {float((apart / reach).max()):.2g}")
    if bool(solution.determined.value.all()):
        off = ((z - known.z).abs() / (known.z.abs() + known.units)).max()
        force, terms = pull(known, z, solution.duals.bounds.detach())
        if not force.abs().max() <= RIGHT * terms.max():
            faults.append(f"the slope is {float(force.abs().max() / terms.max()):.2g}")
        # A slope within the tolerance moves the solution by as much times the condition of the system. A box of 1e-9
        # may be met with a multiplier of less than 1e-10 of the largest, and then counts as not met.
        moved = slope(known, solution.active.bounds, force / known.units) / (known.z.abs() + known.units)
        if not off <= RIGHT + 2 * moved.abs().max():
            faults.append(f"the solution is off by {float(off):.2g}")
    return faults


def pull(known, z, y):
    """The slope of the Lagrangian, and the size of its terms, in units in which all is alike."""
    force, terms = known.Q @ z + known.q + known.R.T @ y, known.Q.abs() @ z.abs() + known.q.abs()
    return force * known.units, (terms + known.R.abs().T @ y.abs()) * known.units


def slope(known, side, weight):
    """The derivative of `weight' z` by the cost, from the rows that hold, in units in which all is alike."""
    E = known.R[side != 0] * known.units
    E = E / E.abs().amax(1, keepdim=True)
    Q, n = known.Q * known.units[:, None] * known.units, len(weight)
    system = torch.cat((torch.cat((Q, E.T), 1), torch.cat((E, torch.zeros(len(E), len(E), dtype=one)), 1)), 0)
    right = torch.cat((weight * known.units, torch.zeros(len(E), dtype=one)))
    return -(torch.linalg.pinv(system, rtol=1e-11, hermitian=True) @ right)[:n] * known.units


def degenerate(dice, known_faults):
    kind = dice.pick(*KINDS)
    known = KINDS[kind](dice)
    weight = dice.normal(len(known.z)) / known.units

    def case():
        q = known.q.clone().requires_grad_()
        solution = replace(known, q=q).solve()
        faults = faults_of(known, solution)
        converged = solution.report.converged
        if converged and not faults and bool(solution.determined.value.all()):
            (found,) = torch.autograd.grad(weight @ solution.value, q)
            expected = slope(known, solution.active.bounds, weight)
            off = float(((found - expected) / known.units).abs().max() / (1 + (expected / known.units).abs().max()))
            faults += [] if off <= SLOPE else [f"the derivative is off by {off:.2g}"]
        return "converged" if converged else "failed", [Fault("silent", f"{words}") for words in faults]

    return f"{kind}, {tuple(known.R.shape)}", case
