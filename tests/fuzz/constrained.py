"""`argmin` under constraints: bowls on planes, spheres and curves, beside Newton's method on the KKT system."""

import torch

import torchimplicit as ti
from tests.fuzz.formulas import Formula, play
from tests.fuzz.nearness import inverse
from tests.fuzz.programs import balance

one = torch.float64

ENERGIES = {
    "bowl": lambda y, x: 0.5 * (y - x).square().sum(-1),
    "cosh": lambda y, x: torch.cosh(0.5 * (y - x)).sum(-1),
    "quartic": lambda y, x: ((y - x).square() + 0.25 * (y - x) ** 4).sum(-1),
}
CONSTRAINTS = {
    "plane": lambda y, w: y @ w - 1,
    "sphere": lambda y, w: y.square().sum(-1, keepdim=True) - 1 - w.square().sum(0)[:1],
    "curve": lambda y, w: y[..., :1] + y[..., 1:2] ** 3 - w[0, :1],
}


def polished(condition, w, steps=30):
    """The root near `w` (a sample's state and multipliers), detached, the inverse Jacobian, its condition number."""
    for _ in range(steps):
        jacobian = torch.autograd.functional.jacobian(condition, w)
        back = inverse(jacobian.nan_to_num(0, 0, 0), 1e-13)
        w = w - back @ condition(w).detach()
    units = balance(jacobian)
    return w, back, float(torch.linalg.cond((jacobian * units[:, None] * units).nan_to_num()))


def constrained(dice, known):
    batch, n = dice.between(1, 3), dice.between(2, 4)
    dtype = dice.weighted({one: 3, torch.float32: 1})
    reach = 15 if dtype == one else 6
    s, size = (dice.power(-reach, reach) if dice.chance(0.3) else 1.0 for _ in range(2))
    energy, condition = dice.pick(*ENERGIES), dice.pick(*CONSTRAINTS)
    x, w = s * dice.normal(batch, n), dice.normal(n, dice.between(1, n - 1) if condition == "plane" else 1)

    def value(z, x, w):
        return size * ENERGIES[energy](z / s, x / s)

    def constraints(z, x, w):
        return CONSTRAINTS[condition](z / s, w)

    rtol = max(dice.power(-10, -4), 10 * torch.finfo(dtype).eps)
    solver = ti.Newton(
        rtol=rtol, max_steps=200, linear_solver=dice.pick(None, ti.LU()), halvings=dice.pick(10, 10, 0)
    )  # fmt: skip
    krylov = dtype == one and s == size == 1  # whose residual is in units
    linear = dice.pick(None, ti.LU(), ti.GMRES(rtol=1e-8, restart=12) if krylov else ti.LU())
    promised = 1e-8 if isinstance(linear, ti.GMRES) else 0.0
    chosen = {"solver": solver, "on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1})}
    chosen["adjoint"] = None if linear is None else ti.Implicit(linear)
    start = x.to(dtype) + s * (0.1 * dice.normal(batch, n)).to(dtype)
    warm = dice.chance(0.1)

    def solve(x, w):
        call = lambda **more: ti.argmin(value, start, x, w, constraints=constraints, **chosen | more)  # noqa: E731
        return call(warm_start=call(on_failure="ignore")) if warm else call()

    def exact(solution, x, w):
        points, numbers = [], []
        for b in range(batch):

            def slope(state, x=x[b], w=w):  # in units in which all are near one
                y, multipliers = state[:n], state[n:]
                lagrangian = lambda y: ENERGIES[energy](y, x / s) + multipliers @ CONSTRAINTS[condition](y, w)  # noqa: E731
                return torch.cat((torch.func.grad(lagrangian)(y), CONSTRAINTS[condition](y, w)))

            z, multipliers = solution.value[b].detach().double() / s, solution.multipliers[b].detach().double() / size
            still = lambda state, slope=slope, b=b: slope(state, x[b].detach(), w.detach())  # noqa: E731
            root, back, number = polished(still, torch.cat((z, multipliers.flatten())))
            numbers.append(number)
            points.append(s * (root - back @ slope(root))[:n])
        formula.condition = 10 * torch.tensor(numbers, dtype=one)
        formula.accuracy = 10 * max(rtol, promised) * torch.tensor(numbers, dtype=one)
        return torch.stack(points)

    title = f"{energy} on a {condition}, units {s:.2g} {size:.2g}, {batch} x {n}, {dtype}, warm {warm}, {chosen}"
    formula = Formula(title, solve, exact, [x, w], dtype, dice.normal(batch, n), options=chosen)
    return title, lambda: play(formula)
