"""`qp` and `nn.QP`: feasible, without a feasible point, unbounded, in any units, with NaN, active rows known by signs.

That a point is optimal is seen from the Karush-Kuhn-Tucker conditions, which are sufficient; which rows are met, from
the multipliers. On these rows the solution is that of one linear system, whose derivatives are autograd's.
"""

import math

import torch

import torchimplicit as ti
from tests.fuzz.formulas import Formula, play

one = torch.float64
SIGNS = 1e-6  # of their size, by which multipliers and slacks may have the wrong sign


def symmetric(matrix):
    return (matrix + matrix.mT) / 2


def on_rows(Q, q, rows, sides, met):
    """The minimum of every program on the rows `(B, m, n)` that it meets, `(B, n)`, and its condition number."""
    points, conditions = [], []
    for b in range(len(q)):
        active, n = rows[b][met[b]], Q.shape[-1]
        zero = torch.zeros(len(active), len(active), dtype=one)
        system = torch.cat((torch.cat((Q[b], active.T), 1), torch.cat((active, zero), 1)), 0)
        right = torch.cat((-q[b], sides[b][met[b]]))
        units = balance(system.detach())
        system = system * units[:, None] * units
        conditions.append(10 * torch.linalg.cond(system.detach()))  # more steps than one have rounded
        points.append((units * torch.linalg.solve(system, units * right))[:n])
    return torch.stack(points), torch.stack(conditions)


def balance(matrix):
    """Units in which the largest entry of every row and column of a symmetric matrix is one, nearly."""
    units = torch.ones(len(matrix), dtype=one)
    for _ in range(20):
        units = units / (matrix * units[:, None] * units).abs().amax(1).sqrt()
    return units


def contradiction(z, Q, q, rows, sides, weights):
    """Which condition of an optimum is not met, in words: rows are `rows z <= sides`, weights the multipliers."""
    slope = (Q @ z[:, :, None])[:, :, 0] + q + (rows.mT @ weights[:, :, None])[:, :, 0]
    scale = (Q.abs() @ z.abs()[:, :, None])[:, :, 0] + q.abs() + (rows.abs().mT @ weights.abs()[:, :, None])[:, :, 0]
    excess = (rows @ z[:, :, None])[:, :, 0] - sides
    size = (rows.abs() @ z.abs()[:, :, None])[:, :, 0] + sides.abs()
    if not (slope.abs().amax(1) <= SIGNS * scale.amax(1)).all():
        return f"the slope is {float(slope.abs().max()):.3g}"
    if not (excess <= SIGNS * size).all():
        return f"a row is exceeded by {float(excess.max()):.3g}"
    if not (weights >= -SIGNS * weights.abs().amax(1, keepdim=True)).all():
        return f"a multiplier is {float(weights.min()):.3g}"
    if not ((weights == 0) | (excess.abs() <= SIGNS * size)).all():
        return "a row has a multiplier and is not met"
    return ""


def qp(dice, known):
    batch, n = dice.between(1, 4), dice.between(1, 6)
    rows = dice.between(1, 6)
    dtype = dice.weighted({one: 3, torch.float32: 1})
    unit, cost, row = (dice.power(-6, 6) if dice.chance(0.3) else 1.0 for _ in range(3))
    root = dice.normal(batch, n, n)
    Q = cost / unit**2 * (root @ root.mT / n + 0.1 * torch.eye(n, dtype=one))
    q, G = cost / unit * dice.normal(batch, n) * 2, row / unit * dice.normal(batch, rows, n)
    inside = unit * dice.normal(batch, n)
    h = (G @ inside[:, :, None])[:, :, 0] + row * dice.normal(batch, rows).abs()
    invalid = torch.zeros(batch, dtype=torch.bool)
    fate = dice.weighted({"feasible": 12, "infeasible": 1, "NaN": 1, "not convex": 0.5})
    if fate != "feasible":
        invalid[dice.between(0, batch - 1)] = True
    if fate == "infeasible" and rows > 1:
        G[invalid, 1], h[invalid, 1] = -G[invalid, 0], -h[invalid, 0] - row
    elif fate == "NaN":
        q[invalid, 0] = math.nan
    elif fate == "not convex":
        Q[invalid] = -Q[invalid]
    else:
        invalid[:] = False
    options = {"on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1})}

    def look(solution, Q, q, G, h):
        kept = solution.status == ti.Status.CONVERGED
        weights = solution.duals.inequality.detach().double()
        if dtype != one:  # weights are rounded: they are judged by their signs alone
            return "" if bool((weights[kept] >= 0).all()) else "a multiplier is negative"
        return contradiction(*(part[kept] for part in (solution.value.detach(), Q, q, G, h, weights)))

    def exact(solution, Q, q, G, h):
        Q = symmetric(Q)
        met = solution.active.inequality.bool()
        held = torch.where(invalid[:, None, None], torch.eye(n, dtype=one), Q), torch.where(invalid[:, None], 0.0, q)
        value, formula.condition = on_rows(*held, G, h, met & ~invalid[:, None])
        return value

    title = f"{fate}, {batch} x {n}, {rows} rows, units {unit:.2g} {cost:.2g} {row:.2g}, {dtype}, {options}"
    formula = Formula(
        title, lambda Q, *rest: ti.qp(symmetric(Q), *rest, **options), exact, [Q, q, G, h], dtype,
        dice.normal(batch, n), look, options=options, invalid=invalid,
    )  # fmt: skip
    return title, lambda: play(formula)
