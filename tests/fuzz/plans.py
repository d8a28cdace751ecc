"""`lqr`: plans for systems, unstable or not, with and without bounds, beside a dense program in the controls."""

import math

import torch

import torchimplicit as ti
from tests.fuzz.formulas import Formula, play
from tests.fuzz.programs import contradiction, on_rows, symmetric

one = torch.float64


def cost(u, horizon, A, B, Q, R, x0):
    """What the controls `(T * nu,)` of one sample cost."""
    total, x = 0.0, x0
    for control in u.reshape(horizon, -1):
        total = total + 0.5 * (x @ Q @ x + control @ R @ control)
        x = A @ x + B @ control
    return total + 0.5 * x @ Q @ x


def program(horizon, A, B, Q, R, x0):
    """The cost's Hessian and slope at rest, a sample each."""
    width = horizon * B.shape[-1]
    rest, Q, R = torch.zeros(width, dtype=one), symmetric(Q), symmetric(R)
    H, g = [], []
    for x in x0:
        by = lambda u, x=x: cost(u, horizon, A, B, Q, R, x)  # noqa: E731
        H.append(torch.func.hessian(by)(rest))
        g.append(torch.func.grad(by)(rest))
    return torch.stack(H), torch.stack(g)


def lqr(dice, known):
    batch, nx, nu, horizon = dice.between(1, 3), dice.between(1, 3), dice.between(1, 2), dice.between(1, 5)
    dtype = dice.weighted({one: 3, torch.float32: 1})
    bounded = dice.chance(0.5)
    units = not bounded or "A3" not in known
    s, price = (dice.power(-8, 8) if dice.chance(0.4) and units else 1.0 for _ in range(2))
    A, B = dice.pick(0.3, 0.9, 1.3) * dice.normal(nx, nx) / nx**0.5, dice.normal(nx, nu)
    root = dice.normal(nx, nx)
    Q, R = price * (root @ root.T), price * dice.power(-2, 1) * torch.eye(nu, dtype=one)
    x0 = s * dice.normal(batch, nx)
    limit = s * dice.power(-1, 1)
    invalid = torch.zeros(batch, dtype=torch.bool)
    if dice.chance(0.1):
        invalid[dice.between(0, batch - 1)] = True
        x0[invalid, 0] = math.nan
    options = {"on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1})}
    bounds = {"lower": -limit, "upper": limit} if bounded else {}
    width = horizon * nu
    rows = torch.cat((torch.eye(width, dtype=one), -torch.eye(width, dtype=one))).expand(batch, -1, -1)
    sides = torch.full((batch, 2 * width), limit, dtype=one)

    def weights(solution):
        if not bounded:
            return torch.zeros(batch, 2 * width, dtype=one)
        duals = solution.control_duals.detach().double().flatten(1)
        return torch.cat((duals.clamp_min(0), (-duals).clamp_min(0)), 1)

    def look(solution, *tensors):
        if dtype != one:
            return ""
        kept = solution.status == ti.Status.CONVERGED
        H, g = program(horizon, *tensors)
        far = sides if bounded else torch.full_like(sides, torch.inf)
        parts = (solution.value.detach().flatten(1), H, g, rows, far, weights(solution))
        return contradiction(*(part[kept] for part in parts))

    def exact(solution, *tensors):
        H, g = program(horizon, *tensors)
        met = (weights(solution) > 0) & ~invalid[:, None]
        H, g = (
            torch.where(invalid[:, None, None], torch.eye(width, dtype=one), H),
            torch.where(invalid[:, None], 0.0, g),
        )
        value, formula.condition = on_rows(H, g, rows, sides, met)
        return value.reshape(batch, horizon, nu)

    def solve(A, B, Q, R, x0):
        return ti.lqr(A, B, symmetric(Q), symmetric(R), x0, horizon, **bounds, **options)

    title = f"{batch} x {nx}, {nu} controls, {horizon} steps, units {s:.2g} {price:.2g}, {dtype}, {options}"
    title += f", within {limit:.2g}" if bounded else ""
    formula = Formula(
        title, solve, exact, [A, B, Q, R, x0], dtype, dice.normal(batch, horizon, nu), look, options=options,
        invalid=invalid,
    )  # fmt: skip
    return title, lambda: play(formula)
