"""`root`: residuals in units of their own, regular, flat, doubled, stiff, kinked, or without a root."""

import torch

import torchimplicit as ti
from tests.fuzz import forms, nearness, options
from tests.fuzz.fixed_points import weight
from tests.fuzz.points import Call, Condition, play

one = torch.float64


def _cell(dice, batch, width):
    w, drawn = weight(dice, width)
    return lambda y, x, w: y - torch.tanh(y @ w) - x, dice.normal(batch, width), w, f"cell {drawn}"


def _linear(dice, batch, width):
    w = dice.normal(width, width) + 2 * torch.eye(width, dtype=one)
    if dice.chance(0.3):  # badly conditioned
        u, s, v = torch.linalg.svd(w)
        w = u @ torch.diag(s * torch.logspace(0, -dice.uniform(2, 10), width, dtype=one)) @ v
    return lambda y, x, w: y @ w - x, dice.normal(batch, width), w, "linear"


def _cubic(dice, batch, width):
    w, _ = weight(dice, width)
    return lambda y, x, w: y**3 + y - x + 0.1 * torch.sin(y @ w), 3 * dice.normal(batch, width), w, "cubic"


def _powers(dice, batch, width):
    degree = dice.pick(2, 3, 5)
    w = torch.eye(width, dtype=one)
    return lambda y, x, w: y**degree @ w - x.abs() - 0.1, dice.normal(batch, width), w, f"power {degree}"


def _double(dice, batch, width):
    w = torch.eye(width, dtype=one)
    return lambda y, x, w: (y - x).square() @ w, dice.normal(batch, width) + 2, w, "double root"


def _flat(dice, batch, width):
    w = torch.eye(width, dtype=one)
    return lambda y, x, w: torch.atan(5 * (y - x)) @ w, 3 * dice.normal(batch, width), w, "arctangent"


def _kink(dice, batch, width):
    w = torch.eye(width, dtype=one)
    return lambda y, x, w: y.abs() + 2 * (y - x) @ w, dice.normal(batch, width), w, "kink"


def _powell(dice, batch, width):
    def residual(y, x, w):
        first, second = y[:, :1], y[:, 1:2]
        rest = (y[:, 2:] - x[:, 2:]) @ w[2:, 2:]
        return torch.cat((1e4 * first * second - 1, torch.exp(-first) + torch.exp(-second) - 1.0001, rest), 1)

    return residual, dice.normal(batch, width), torch.eye(width, dtype=one), "Powell"


def _infinity(dice, batch, width):
    w = torch.eye(width, dtype=one)
    kind = dice.pick("exp", "inverse")
    if kind == "exp":
        return lambda y, x, w: torch.exp(-(y - x)) @ w, dice.normal(batch, width), w, "root at infinity, exp"
    return lambda y, x, w: ((y - x) / (1 + (y - x).square())) @ w + 1, dice.normal(batch, width), w, "no root"


def _positive(dice, batch, width):
    w = torch.eye(width, dtype=one)
    return lambda y, x, w: ((y - x).square() + 1) @ w, dice.normal(batch, width), w, "no root, square"


KINDS = {
    _cell: 4, _linear: 4, _cubic: 3, _powers: 2, _double: 1, _flat: 1, _kink: 1, _powell: 1,
    _infinity: 0.5, _positive: 0.3,
}  # fmt: skip
NOWHERE = (_infinity, _positive)


def units(dice, form, width):
    """The unknowns' units, one by one, and the residual's."""
    reach = {torch.float16: 1, torch.bfloat16: 6}.get(form.dtype, 8)
    t = torch.ones(width, dtype=one) * (dice.power(-reach, reach) if dice.chance(0.4) else 1.0)
    if dice.chance(0.3) and form.eps < 1e-6:
        t = t * torch.tensor([dice.power(-4, 4) for _ in range(width)], dtype=one)
    return t, dice.power(-reach, reach) if dice.chance(0.5) else 1.0


def root(dice, known):
    plain = dice.chance(0.2)  # in units in which a step along the residual leads somewhere
    kind = _cell if plain else dice.weighted(KINDS)
    batch, width = dice.between(1, 4), 4 if kind is _powell else dice.pick(1, 2, 3, 4)
    form = forms.draw(dice, width)
    base, x, w, drawn = kind(dice, batch, width)
    t, size = units(dice, form, width)
    if plain:
        t, size = torch.ones_like(t), 1.0
    sign = -1.0 if dice.chance(0.1) and not plain else 1.0
    start = t * (x * (1 + 0.1 * dice.normal(batch, width)) if dice.chance(0.3) else dice.normal(batch, width))

    def residual(z, probe, x, w):
        return sign * size * base(z / t.to(z.dtype), x, w) + probe

    title = f"{drawn}, units {[f'{v:.1g}' for v in t.tolist()]}, residual {size:.1g}, {batch} x {width}"
    problem = Condition(
        title,
        residual,
        residual,
        [torch.zeros_like(x), x, w],
        start,
        t,
        size / t,
        nowhere=kind in NOWHERE,
    )
    kinds = options.MAPS | options.EQUATIONS if plain else options.EQUATIONS
    solver = options.equation_solver(dice, form, float(t.min()), kinds)
    chosen = options.around(dice, form, solver, problem.own)
    cotangent = options.cotangent(dice, form, problem.start.shape)
    call = Call(ti.root, problem, form, chosen, dice.chance(0.3), "state", cotangent, dice.chance(0.1))
    return call.title, lambda: play(call, nearness.roots)
