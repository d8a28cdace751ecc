"""Functions whose value has another shape later than at first are refused: it would broadcast, in silence."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit import ode, sde

D = torch.float64
TS = torch.tensor([0.0, 0.3, 1.0], dtype=D)
SHAPES = {
    "(B, 1)": lambda value: value[:, :1],
    "(n,)": lambda value: value[0],
    "()": lambda value: value.sum(),
    "(1, n)": lambda value: value[:1],
    "(n, B)": lambda value: value.transpose(0, 1).contiguous(),
    "(B, n, 1)": lambda value: value.unsqueeze(2),
    "a tuple": lambda value: (value, value),
}


class Later:
    """A function that is itself for the first evaluations, and then `spoil` of itself."""

    def __init__(self, f, spoil, after):
        self.f, self.spoil, self.left = f, spoil, after

    def __call__(self, *args):
        self.left -= 1
        value = self.f(*args)
        return value if self.left >= 0 else self.spoil(value)


def start(width=2):
    return torch.linspace(0.5, 1.5, 4 * width, dtype=D).view(4, width)


def path(solver, width=2, **options):
    return lambda later: ti.odeint(later(lambda t, y: -y), start(width), TS, solver=solver, **options)


def nested(later):
    value = later(lambda t, y: -y)
    return ti.odeint(lambda t, y: {"a": value(t, y["a"])}, {"a": start()}, TS)


def split(later):
    field = ti.Split(later(lambda t, y: -y), lambda t, y: -2 * y)
    return ti.odeint(field, start(), TS, solver=ti.KenCarp4())


def noisy(method, noise="diagonal", drifts=True):
    solver = method(dt=0.1)

    def spread(t, y):
        value = 0.1 * torch.ones_like(y)
        return value.unsqueeze(-1).expand(*y.shape, 3) if noise == "general" else value

    def solve(later):
        drift, diffusion = (later(lambda t, y: -y), spread) if drifts else (lambda t, y: -y, later(spread))
        options = {"solver": solver, "noise": noise, "calculus": solver.calculus}
        return ti.sdeint(drift, diffusion, start(), TS, **options)

    return solve


def differentiated(adjoint):
    return lambda later: ti.odeint(later(lambda t, y: -y), start().requires_grad_(), TS, adjoint=adjoint)


CASES = {
    "Tsit5": path(ti.Tsit5()), "Dopri8": path(ti.Dopri8()), "RK4": path(ode.RK4(dt=0.1)),
    "ESDIRK54": path(ti.ESDIRK54()), "joint": path(ti.Tsit5(), stepping="joint"), "nested": nested, "KenCarp4": split,
    "Direct": differentiated(ti.Direct()), "Checkpointed": differentiated(ti.Checkpointed()),
    "Reversible": differentiated(ti.Reversible()), "Backsolve": differentiated(ti.Backsolve()),
    "drift": noisy(sde.EulerMaruyama), "drift of Heun": noisy(sde.ReversibleHeun), "drift of SRID2": noisy(sde.SRID2),
    "diffusion": noisy(sde.EulerMaruyama, drifts=False), "general": noisy(sde.EulerMaruyama, "general", drifts=False),
    "Anderson": lambda later: ti.fixed_point(later(lambda z: 0.5 * torch.cos(z)), start()),
    "Picard": lambda later: ti.fixed_point(later(lambda z: 0.5 * torch.cos(z)), start(), solver=ti.Picard()),
    "Newton": lambda later: ti.root(later(lambda z: z - 0.5 * torch.cos(z)), start()),
    "Broyden": lambda later: ti.root(later(lambda z: z - 0.5 * torch.cos(z)), start(), solver=ti.Broyden()),
    "SteadyState": lambda later: ti.root(later(lambda z: z**3 - z), start(), solver=ti.SteadyState()),
}  # fmt: skip


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("spoil", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("solve", CASES.values(), ids=CASES)
def test_a_shape_that_changes_is_an_error(solve, spoil, after):
    with pytest.raises((ValueError, TypeError), match=r"returned|diffusion: got|Split: got"):
        solve(lambda f: Later(f, spoil, after))


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("spoil", [lambda e: e.sum(), lambda e: e.unsqueeze(1), lambda e: e[:1]])
def test_an_energy_whose_shape_changes(spoil, after):
    with pytest.raises(ValueError, match=r"the energy returned shape .*, expected \(4,\)"):
        ti.argmin(Later(lambda z: (z * z + z.cos()).sum(1), spoil, after), start())


def test_an_events_condition_whose_shape_changes():
    event = ti.Event(Later(lambda t, y: y[:, 0] - 0.3, lambda value: value[:1], 2))
    with pytest.raises(ValueError, match=r"condition returned shape \(1,\), expected \(4,\)"):
        ti.odeint(lambda t, y: -y, start(), TS, event=event)
