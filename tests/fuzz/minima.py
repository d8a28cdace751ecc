"""`argmin`: energies in any units and of any offset, bowls, valleys, saddles, and such without a minimum."""

import torch

import torchimplicit as ti
from tests.fuzz import forms, nearness, options
from tests.fuzz.points import Call, Condition, play, slope
from tests.fuzz.roots import units

one = torch.float64


def _bowl(dice, batch, width):
    """A quadratic of any condition."""
    basis = torch.linalg.qr(dice.normal(width, width))[0]
    w = basis @ torch.diag(torch.logspace(0, -dice.uniform(0, 6), width, dtype=one)) @ basis.T
    return lambda y, x, w: 0.5 * ((y - x) @ w * (y - x)).sum(1), dice.normal(batch, width), w, "bowl"


def _valley(dice, batch, width):
    """A quadratic that does not bend along one direction."""
    basis = torch.linalg.qr(dice.normal(width, width))[0]
    bends = torch.ones(width, dtype=one)
    bends[0] = 0
    w = basis @ torch.diag(bends) @ basis.T
    return lambda y, x, w: 0.5 * ((y - x) @ w * (y - x)).sum(1), dice.normal(batch, width), w, "valley"


def _cosh(dice, batch, width):
    w = torch.eye(width, dtype=one) + 0.3 * dice.normal(width, width)
    return (
        lambda y, x, w: torch.nn.functional.softplus(2 * ((y - x) @ w)).sum(1) - ((y - x) @ w).sum(1),
        (3 * dice.normal(batch, width)),
        w,
        "log cosh",
    )


def _quartic(dice, batch, width):
    w = torch.eye(width, dtype=one)
    return lambda y, x, w: ((y - x) @ w).pow(4).sum(1), dice.normal(batch, width) + 2, w, "quartic"


def _rosenbrock(dice, batch, width):
    w = torch.eye(width, dtype=one)

    def energy(y, x, w):
        y = y @ w
        return (100 * (y[:, 1:] - y[:, :-1].square()).square() + (1 + x[:, :1] * 0.1 - y[:, :-1]).square()).sum(1)

    return energy, dice.normal(batch, width), w, "Rosenbrock"


def _wells(dice, batch, width):
    w = torch.eye(width, dtype=one) + 0.1 * dice.normal(width, width)
    return (
        lambda y, x, w: ((y @ w).square() - 1).square().sum(1) + 0.1 * (x * y).sum(1),
        (dice.normal(batch, width)),
        w,
        "double wells",
    )


def _falling(dice, batch, width):
    """No minimum: down to a value that is never reached, or for ever."""
    w = torch.eye(width, dtype=one)
    kind = dice.pick("exp", "logistic", "linear", "hill", "inverse")
    energies = {
        "exp": lambda y, x, w: torch.exp(-(y - x) @ w).sum(1),
        "logistic": lambda y, x, w: torch.nn.functional.softplus(-(y @ w) * (1 + x.abs())).mean(1),
        "linear": lambda y, x, w: ((y - x) @ w).sum(1) + 0.1 * torch.sin(y[:, 0]),
        "hill": lambda y, x, w: -((y - x) @ w).square().sum(1),
        "inverse": lambda y, x, w: (1 / (1 + ((y - x) @ w).exp())).sum(1),
    }
    return energies[kind], dice.normal(batch, width), w, f"no minimum, {kind}"


KINDS = {_bowl: 5, _valley: 1, _cosh: 3, _quartic: 1, _rosenbrock: 2, _wells: 2, _falling: 2}


def solver(dice, form, size):
    """A solver of `argmin`, its own or one of the equation's."""
    common = options.tolerances(dice, form, size)
    kind = dice.weighted({"default": 2, "lbfgs": 4, "newtoncg": 3, "newton": 2, "equation": 1})
    if kind == "default":
        return None
    if kind == "lbfgs":
        return ti.LBFGS(memory=dice.between(1, 12), **common)
    if kind == "newtoncg":
        return ti.NewtonCG(products=dice.pick(50, 5), **common | {"max_steps": min(common["max_steps"], 100)})
    if kind == "newton":
        return ti.Newton(linear_solver=dice.pick(None, ti.LU(), options.linear_solver(dice, form)), **common)
    return options.equation_solver(dice, form, size)


def argmin(dice, known):
    kind = dice.weighted(KINDS)
    batch, width = dice.between(1, 4), dice.pick(2, 3, 4) if kind is _rosenbrock else dice.pick(1, 2, 3, 4)
    form = forms.draw(dice, width)
    base, x, w, drawn = kind(dice, batch, width)
    t, size = units(dice, form, width)
    offset = 0.0 if dice.chance(0.7) else dice.power(-3, 3) * dice.pick(1, -1)
    start = t * (x * (1 + 0.1 * dice.normal(batch, width)) if dice.chance(0.3) else dice.normal(batch, width))
    check = dice.chance(0.8)

    def energy(z, probe, x, w):
        return size * (base(z / t.to(z.dtype), x, w) + offset) + (probe * z).sum(1)

    title = f"{drawn}, units {[f'{v:.1g}' for v in t.tolist()]}, energy {size:.1g} + {offset:.2g}, {batch} x {width}"
    problem = Condition(
        title,
        energy,
        slope(energy),
        [torch.zeros_like(x), x, w],
        start,
        t,
        size / t**2,
        100.0 if kind is _rosenbrock else 1.0,
        nowhere=kind is _falling and check,
        extra={"minimum": check, "flat": kind is _valley},
    )
    chosen = options.around(dice, form, solver(dice, form, float(t.min())), problem.own) | {"check_minimum": check}
    cotangent = options.cotangent(dice, form, problem.start.shape)
    call = Call(ti.argmin, problem, form, chosen, dice.chance(0.3), "number", cotangent, dice.chance(0.1))
    return call.title, lambda: play(call, nearness.minima)
