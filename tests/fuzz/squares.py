"""`least_squares`: curves with and without a remainder, in any units, short of rank or nearly so."""

import torch

import torchimplicit as ti
from tests.fuzz import forms, minima, nearness, options
from tests.fuzz.points import Call, Condition, play, slope
from tests.fuzz.roots import units

one = torch.float64


def _line(dice, batch, width):
    """Linear, of any condition."""
    rows = width + dice.between(0, 3)
    u, _, v = torch.linalg.svd(dice.normal(width, rows), full_matrices=False)
    w = u @ torch.diag(torch.logspace(0, -dice.uniform(0, 5), width, dtype=one)) @ v
    return lambda y, x, w: (y - x) @ w, w, "linear"


def _decay(dice, batch, width):
    """Exponentials of unknown rates; half of the unknowns are the heights."""
    times = torch.linspace(0.1, 2, 3 * width, dtype=one)

    def terms(y, x, w):
        def curve(y):
            return (y[:, ::2, None] * torch.exp(-y[:, 1::2, None].abs() * w)).sum(1) if width > 1 else torch.exp(-y * w)

        return curve(y) - curve(x)

    return terms, times, "decay"


def _bent(dice, batch, width):
    """Residuals that bend and do not vanish."""
    w = dice.normal(width, 2 * width)

    def terms(y, x, w):
        return torch.cat((torch.tanh((y - x) @ w) + 0.1, (y - x) @ w - 0.3), 1)

    return terms, w, "bent"


def _double(dice, batch, width):
    return lambda y, x, w: (y - x).square() @ w, torch.eye(width, dtype=one), "double root"


KINDS = {_line: 4, _decay: 3, _bent: 3, _double: 1}


def solver(dice, form, size):
    if dice.chance(0.3):
        return ti.LevenbergMarquardt()
    if dice.chance(0.7):
        linear = dice.pick(None, ti.LU(), ti.CG(rtol=1e-8))
        return ti.LevenbergMarquardt(
            damping=dice.pick(1e-3, 1e-3, 1.0, 0.0), linear_solver=linear, **options.tolerances(dice, form, size)
        )
    return minima.solver(dice, form, size) or ti.LBFGS()


def least_squares(dice, known):
    kind = dice.weighted(KINDS)
    batch, width = dice.between(1, 4), dice.pick(2, 4) if kind is _decay else dice.pick(1, 2, 3, 4)
    form = forms.draw(dice, width)
    x = dice.normal(batch, width).abs() + 0.5
    base, w, drawn = kind(dice, batch, width)
    t, size = units(dice, form, width)
    ridge = dice.power(-4, 0)
    start = t * x * (1 + dice.pick(0.01, 0.1, 0.5) * dice.normal(batch, width))

    def terms(z, probe, x, w):  # the ridge holds the probe
        y = z / t.to(z.dtype)
        return torch.cat((size * base(y, x, w), size * ridge * y + probe), 1)

    def energy(z, *args):
        return 0.5 * terms(z, *args).square().sum(1)

    title = f"{drawn}, ridge {ridge:.1g}, units {[f'{v:.1g}' for v in t.tolist()]}, {size:.1g}, {batch} x {width}"
    problem = Condition(
        title,
        terms,
        slope(energy),
        [torch.zeros_like(x), x, w],
        start,
        t,
        (size / t) ** 2,
        extra={"minimum": True, "sign": -t / (size * ridge)},
    )
    chosen = options.around(dice, form, solver(dice, form, float(t.min())), problem.own)
    cotangent = options.cotangent(dice, form, problem.start.shape)
    call = Call(ti.least_squares, problem, form, chosen, dice.chance(0.3), "rows", cotangent, dice.chance(0.1))
    return call.title, lambda: play(call, nearness.minima)
