"""Every remedy that a report names turns a failure into success, at least once.

A case solves the same problem as it fails, and with the remedy followed. A remedy that is added anywhere wants a case
here, and a case whose remedy has gone is no longer needed; both are said by name.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.adjoint.unrolled import UNROLLED
from torchimplicit.core.outcome import Status
from torchimplicit.core.status import Report
from torchimplicit.linear.report import LINEAR
from torchimplicit.nn.score.samplers.report import CHOSEN, GIVEN
from torchimplicit.optim import BoxDDP, Cones, cone_program, ilqr, lqr, qp
from torchimplicit.optim.cone.search import CONES
from torchimplicit.optim.cone.sound import DERIVATIVES
from torchimplicit.optim.control.solution import PLANS
from torchimplicit.optim.projection.verdict import PROJECTIONS
from torchimplicit.optim.quadprog.report import PROGRAMS
from torchimplicit.path.report import BACKWARD_SOLVES, BACKWARD_STEPS, GIVEN_STEPS, PATHS
from torchimplicit.sde.report import ADAPTIVE, STEPS, StochasticReport
from torchimplicit.solve.report import POINTS

FAMILIES = {  # one that takes remedies over from another comes behind it
    "linear": LINEAR,
    "points": POINTS,
    "unrolled": UNROLLED,
    "paths": PATHS,
    "solved back": BACKWARD_SOLVES,
    "given steps": GIVEN_STEPS,
    "given steps back": BACKWARD_STEPS,
    "noisy steps": STEPS,
    "noisy adaptive steps": ADAPTIVE,
    "noisy steps back": StochasticReport.tables_back[1],
    "noisy adaptive steps back": StochasticReport.tables_back[0],
    "samples": GIVEN,
    "samples by chosen steps": CHOSEN,
    "programs": PROGRAMS,
    "cones": CONES,
    "derivatives of cones": DERIVATIVES,
    "plans": PLANS,
    "projections": PROJECTIONS,
}
CASES: dict[tuple[str, Status, str], Callable[[bool], Report]] = {}
D = torch.float64


def case(family: str, status: Status, *remedies: str):
    """Keeps `solve(follow)` as the case of remedies; several where one case follows all of them at once."""

    def keep(solve):
        CASES.update({(family, status, remedy): solve for remedy in remedies})
        return solve

    return keep


def tensor(*values):
    return torch.tensor(values, dtype=D)


def named(keys):
    return [f"{family}, {status.name}: {remedy!r}" for family, status, remedy in keys]


def test_every_remedy_has_a_case():
    said, known = set(), set()
    for family, table in FAMILIES.items():
        own = {status: each for status, each in table.items() if id(each) not in known}  # the others are taken over
        said |= {(family, status, remedy) for status, each in own.items() for remedy in each.tries}
        known |= {id(each) for each in own.values()}
    assert not said - CASES.keys(), f"show by a case here that these help: {named(said - CASES.keys())}"
    assert not CASES.keys() - said, f"no report says these any more: {named(CASES.keys() - said)}"


def test_every_table_of_a_report_is_looked_at():
    def below(kind):
        return {kind, *(each for child in kind.__subclasses__() for each in below(child))}

    kinds = below(Report)
    tables = [table for kind in kinds for table in (kind.table, getattr(kind, "table_given", {})) if table]
    strangers = [table for table in tables if not any(table is known for known in FAMILIES.values())]
    assert not strangers, f"add these tables to FAMILIES: {strangers}"


# Points


def picard(weight=0.9, dtype=D, **options):
    def f(z, x, weight):
        return weight * z + x

    start = torch.zeros(2, 3, dtype=dtype)
    options = {"solver": ti.Picard(max_steps=30)} | options
    return ti.fixed_point(f, start, start + 1, torch.tensor(weight, dtype=dtype), on_failure="ignore", **options).report


@case("points", Status.MAX_STEPS, "more max_steps")
def _(follow):
    return picard(solver=ti.Picard(max_steps=300 if follow else 30))


@case("points", Status.MAX_STEPS, "a looser rtol or atol")
def _(follow):
    return picard(solver=ti.Picard(max_steps=30, rtol=1e-1 if follow else 1e-4))


@case("points", Status.MAX_STEPS, "a more contractive map")
def _(follow):
    return picard(weight=0.5 if follow else 0.9)


@case("points", Status.STAGNATED, "a looser rtol or atol")
def _(follow):
    return picard(dtype=torch.float32, solver=ti.Picard(max_steps=900, rtol=1e-5 if follow else 1e-9, atol=0))


@case("points", Status.STAGNATED, "float64")
def _(follow):
    return picard(dtype=D if follow else torch.float32, solver=ti.Picard(max_steps=900, rtol=1e-9, atol=0))


@case("points", Status.STAGNATED, "nn.VariationalDropout")
def _(follow):
    dropout = ti.nn.VariationalDropout(0.3) if follow else nn.Dropout(0.3)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = dropout

        def forward(self, z, x):
            return self.dropout(torch.tanh(0.5 * z + x))

    layer = ti.nn.DEQ(Cell(), ti.Picard(max_steps=200), on_failure="ignore")
    layer(torch.randn(4, 8, dtype=D))
    return layer.report


@case("points", Status.STAGNATED, "Newton()")
def _(follow):
    def shift(z, x):  # nilpotent: the residual grows for as many steps as there are unknowns, and is zero then
        return 1.3 * nn.functional.pad(z[:, 1:], (0, 1)) + x

    x = nn.functional.pad(torch.ones(1, 1, dtype=D), (29, 0))
    solver = ti.Newton() if follow else ti.Picard()
    return ti.fixed_point(shift, torch.zeros_like(x), x, solver=solver, on_failure="ignore").report


@case("points", Status.DIVERGED, "damping < 1")
def _(follow):
    return picard(weight=-3.0, solver=ti.Picard(damping=0.3 if follow else 1.0))


@case("points", Status.DIVERGED, "Newton()")
def _(follow):
    return picard(weight=-3.0, solver=ti.Newton() if follow else ti.Picard())


@case("points", Status.DIVERGED, "smaller weights")
def _(follow):
    return picard(weight=-0.3 if follow else -3.0)


@case("points", Status.DIVERGED, "spectral normalisation")
def _(follow):
    linear = nn.Linear(6, 6, dtype=D)
    nn.init.normal_(linear.weight, std=3.0)
    linear = nn.utils.parametrizations.spectral_norm(linear) if follow else linear

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, z, x):
            return 0.8 * self.linear(z) + x

    layer = ti.nn.DEQ(Cell(), ti.Picard(max_steps=100), on_failure="ignore")
    layer(torch.randn(4, 6, dtype=D))
    return layer.report


def energy(z):
    return z[:, 0].square() - z[:, 1].square() + 0.25 * z.pow(4).sum(1)


@case("points", Status.SADDLE, "another start")
def _(follow):
    start = torch.tensor([[1.0, 1e-3 if follow else 0.0]], dtype=D)
    return ti.argmin(energy, start, solver=ti.LBFGS(), on_failure="ignore").report


@case("points", Status.SADDLE, "a solver that goes down (LBFGS, NewtonCG) in place of Newton()")
def _(follow):
    start = torch.tensor([[0.3, 0.1]], dtype=D)
    return ti.argmin(energy, start, solver=ti.LBFGS() if follow else ti.Newton(), on_failure="ignore").report


@case("points", Status.SADDLE, "check_minimum=False to accept any stationary point")
def _(follow):
    start = torch.tensor([[1.0, 0.0]], dtype=D)
    return ti.argmin(energy, start, solver=ti.LBFGS(), check_minimum=not follow, on_failure="ignore").report


# Linear solves of backward passes


def backward(linear_solver, jacobian=None, dtype=D, adjoint=None):
    jacobian = 0.9 * torch.linalg.qr(torch.randn(8, 8, dtype=D))[0] if jacobian is None else jacobian
    jacobian = jacobian.to(dtype).requires_grad_()
    x = torch.randn(2, len(jacobian), dtype=dtype)
    options = {
        "solver": ti.Newton(linear_solver=ti.LU()),
        "adjoint": adjoint or ti.Implicit(linear_solver),
        "on_failure": "ignore",
    }
    solution = ti.fixed_point(lambda z, J, x: z @ J + x, torch.zeros_like(x), jacobian, x, **options)
    solution.value.square().sum().backward()
    return solution.backward


@case("linear", Status.MAX_STEPS, "GMRES with more max_steps")
def _(follow):
    return backward(ti.GMRES(max_steps=8 if follow else 4, opening=False))


@case("linear", Status.MAX_STEPS, "GMRES with a longer restart")
def _(follow):
    return backward(ti.GMRES(max_steps=9, restart=9 if follow else 3, opening=False))


@case("linear", Status.MAX_STEPS, "a looser rtol")
def _(follow):
    return backward(ti.GMRES(max_steps=6, rtol=0.9 if follow else 1e-4, opening=False))


@case("linear", Status.MAX_STEPS, "LU() for a small state")
def _(follow):
    return backward(ti.LU() if follow else ti.GMRES(max_steps=4, opening=False))


def _turning():
    """`I - J` shifts around: nothing is gained before the Krylov space is whole."""
    return torch.eye(8, dtype=D) - torch.eye(8, dtype=D).roll(1, 0)


@case("linear", Status.STAGNATED, "GMRES with a longer restart")
def _(follow):
    return backward(ti.GMRES(restart=8 if follow else 3, opening=False), _turning())


@case("linear", Status.STAGNATED, "LU() for a small state")
def _(follow):
    return backward(ti.LU() if follow else ti.GMRES(restart=3, opening=False), _turning())


@case("linear", Status.STAGNATED, "a looser rtol")
def _(follow):
    return backward(ti.GMRES(rtol=1e-4 if follow else 1e-9, restart=8), dtype=torch.float32)


@case("linear", Status.DIVERGED, "Implicit(GMRES())")
def _(follow):
    return backward(ti.GMRES() if follow else ti.Neumann(terms=5), -2 * torch.eye(3, dtype=D))


def centred(z, weight, x):
    return torch.tanh(z @ weight + 0.3 * z.mean(0) + x)


def coupled(f=centred, count=4, **options):
    weight, x = (0.15 * torch.randn(5, 5, dtype=D)).requires_grad_(), torch.randn(count, 5, dtype=D)
    solution = ti.fixed_point(f, torch.zeros_like(x), weight, x, on_failure="ignore", **options)
    solution.value.square().sum().backward()
    return solution.backward


@case("linear", Status.COUPLED, "batch_dims=0 for one coupled problem")
def _(follow):
    return coupled(batch_dims=0 if follow else 1)


@case("linear", Status.COUPLED, "z0[None] and x[None] for one sample")
def _(follow):
    weight, x = (0.15 * torch.randn(5, 5, dtype=D)).requires_grad_(), torch.randn(5, 1, dtype=D)
    x = x[:, 0][None] if follow else x  # five features, taken for five samples of one
    f = (lambda z, W, x: torch.tanh(z @ W.T + x)) if follow else (lambda z, W, x: torch.tanh(W @ z + x))
    solution = ti.fixed_point(f, torch.zeros_like(x), weight, x, on_failure="ignore")
    solution.value.square().sum().backward()
    return solution.backward


@case("linear", Status.COUPLED, "eval(), GroupNorm or LayerNorm in place of batch statistics")
def _(follow):
    def normed(z, weight, x):
        y = z @ weight + x
        mean = y.mean(1, keepdim=True) if follow else y.mean(0)
        return torch.tanh(0.4 * (y - mean))

    return coupled(normed)


def unrolled(rtol=1e-2, max_steps=50, adjoint=ti.Unrolled()):
    weight, x = tensor(0.9).requires_grad_(), torch.ones(1, 3, dtype=D)
    solver = ti.Picard(rtol=rtol, max_steps=max_steps)
    solution = ti.fixed_point(lambda z, w, x: w * z + x, 9.99 * x, weight, x, solver=solver, adjoint=adjoint,
                              on_failure="ignore")  # fmt: skip
    solution.value.sum().backward()
    return solution.backward


@case("unrolled", Status.MAX_STEPS, "a solver with a smaller rtol and more max_steps")
def _(follow):
    return unrolled(1e-8, 1000) if follow else unrolled()


@case("unrolled", Status.MAX_STEPS, "Implicit()")
def _(follow):
    return unrolled(adjoint=ti.Implicit()) if follow else unrolled()


# Paths


def path(field, solver, end=1.0, dtype=D, **options):
    y0, ts = torch.ones(1, 1, dtype=dtype), torch.tensor([0.0, end], dtype=dtype)
    return ti.odeint(field, y0, ts, solver=solver, on_failure="ignore", **options)


def stiff(t, y):
    return -1e4 * (y - t.cos())


def turn(t, y):
    return torch.cos(10 * t) * y


@case("paths", Status.MAX_STEPS, "a stiff solver, such as ESDIRK54()")
def _(follow):
    solver = ti.ESDIRK54 if follow else ti.Tsit5
    return path(stiff, solver(max_steps=200)).report


@case("paths", Status.MAX_STEPS, "more max_steps")
def _(follow):
    return path(turn, ti.Tsit5(max_steps=1000 if follow else 3)).report


@case("paths", Status.MAX_STEPS, "a looser rtol or atol")
def _(follow):
    tolerance = 1e-3 if follow else 1e-11
    return path(turn, ti.Tsit5(rtol=tolerance, atol=tolerance, max_steps=20)).report


def jumping(t, y):
    return torch.where(t < 0.5, -y, 1e9 - y)


@case("paths", Status.STEP_TOO_SMALL, "jumps=... with the times at which the field jumps")
def _(follow):
    return path(jumping, ti.Tsit5(rtol=1e-11, atol=1e-11), jumps=tensor(0.5) if follow else None).report


@case("paths", Status.STEP_TOO_SMALL, "a looser rtol or atol")
def _(follow):
    tolerance = 1e-3 if follow else 1e-11
    return path(jumping, ti.Tsit5(rtol=tolerance, atol=tolerance)).report


@case("paths", Status.STEP_TOO_SMALL, "float64")
def _(follow):
    return path(
        lambda t, y: torch.where(t < 0.5, -y, 1e4 - y), ti.Tsit5(rtol=1e-6, atol=1e-6),
        dtype=D if follow else torch.float32,
    ).report  # fmt: skip


@case("paths", Status.STEP_TOO_SMALL, "times in float64")
def _(follow):
    y0, ts = torch.ones(1, 1), torch.tensor([1.7e9, 1.7e9 + 1024], dtype=D if follow else torch.float32)
    return ti.odeint(lambda t, y: -0.1 * y, y0, ts, on_failure="ignore").report


@case("paths", Status.STEP_TOO_SMALL, "a smaller dt_min")
def _(follow):
    return path(turn, ti.Tsit5(rtol=1e-8, atol=1e-8, dt_min=1e-6 if follow else 0.2)).report


@case("given steps", Status.MAX_STEPS, "a larger dt")
def _(follow):
    return path(turn, ti.RK4(dt=0.1 if follow else 1e-3, max_steps=50)).report


@case("given steps", Status.MAX_STEPS, "more max_steps")
def _(follow):
    return path(turn, ti.RK4(dt=0.1, max_steps=10 if follow else 9)).report


@case("given steps", Status.MAX_STEPS, "a solver that chooses its steps, such as Tsit5()")
def _(follow):
    return path(turn, ti.Tsit5(max_steps=50) if follow else ti.RK4(dt=1e-3, max_steps=50)).report


def growing(t, y):  # a step of 0.5 from y = 1 has no stages
    return 0.9 * y**2


@case("given steps", Status.STEP_TOO_SMALL, "a smaller dt for stage equations")
def _(follow):
    return path(growing, ti.ESDIRK54(control=ti.Fixed(0.1 if follow else 0.5))).report


@case("given steps", Status.STEP_TOO_SMALL, "control=PID() for steps that the solver chooses")
def _(follow):
    return path(growing, ti.ESDIRK54(control=ti.PID() if follow else ti.Fixed(0.5))).report


@case("given steps", Status.STEP_TOO_SMALL, "a larger dt for the rounding")
def _(follow):
    solver, ts = ti.Tsit5(control=ti.Fixed(1e-6 if follow else 1e-9)), tensor(1e9, 1e9 + 1e-5)
    return ti.odeint(lambda t, y: -y, torch.ones(1, 1, dtype=D), ts, solver=solver, on_failure="ignore").report


@case("given steps", Status.STEP_TOO_SMALL, "times in float64")
def _(follow):
    y0, ts = torch.ones(1, 1), torch.tensor([1.7e9, 1.7e9 + 1024], dtype=D if follow else torch.float32)
    return ti.odeint(lambda t, y: -0.1 * y, y0, ts, solver=ti.RK4(dt=32.0), on_failure="ignore").report


@case("given steps", Status.NON_FINITE, "a smaller dt")
def _(follow):
    return path(lambda t, y: -100 * y**3, ti.RK4(dt=0.01 if follow else 0.1)).report


@case("given steps", Status.NON_FINITE, "a stiff solver, such as ESDIRK54()")
def _(follow):
    return path(stiff, ti.ESDIRK54() if follow else ti.RK4(dt=0.01)).report


def noisy(drift, diffusion, ts=(0.0, 1.0), y0=((1.0,), (2.0,)), dtype=D, **options):
    """By a method of Euler and Maruyama with these options."""
    y0, ts = torch.tensor(y0, dtype=dtype), torch.tensor(ts, dtype=options.pop("times", dtype))
    solver = ti.sde.EulerMaruyama(**options)
    return ti.sdeint(drift, diffusion, y0, ts, solver=solver, brownian=1, on_failure="ignore").report


def fall(t, y):
    return -y


def small(t, y):
    return 0.1 * y


@case("noisy steps", Status.MAX_STEPS, "a larger dt")
def _(follow):
    return noisy(fall, small, dt=0.1 if follow else 0.01, max_steps=50)


@case("noisy steps", Status.MAX_STEPS, "more max_steps")
def _(follow):
    return noisy(fall, small, dt=0.1, max_steps=10 if follow else 9)


@case("noisy steps", Status.STEP_TOO_SMALL, "a larger dt")
def _(follow):
    return noisy(fall, small, ts=(1e9, 1e9 + 1e-4), dt=1e-5 if follow else 1e-9)


@case("noisy steps", Status.STEP_TOO_SMALL, "times in float64")
def _(follow):
    return noisy(
        small, small, ts=(1.7e9, 1.7e9 + 1024), dt=32.0, dtype=torch.float32, times=D if follow else torch.float32
    )


@case("noisy steps", Status.NON_FINITE, "a smaller dt")
def _(follow):
    return noisy(lambda t, y: -100 * y**3, small, dt=0.001 if follow else 0.1)


def contracting(rate=5.0, until=2.0, dt=0.02, solver=None, adjoint=None):
    """On a drift that contracts, by a method whose states part."""
    return ti.sdeint(
        lambda t, y: -rate * y, lambda t, y: torch.full_like(y, 0.3), torch.ones(2, 1, dtype=D), tensor(0.0, until),
        solver=solver or ti.sde.ReversibleHeun(dt=dt), noise="additive", adjoint=adjoint or ti.Reversible(),
        calculus="stratonovich", brownian=1, on_failure="ignore",
    ).report  # fmt: skip


@case("noisy steps", Status.DRIFTED, "Heun() with Checkpointed(), which carries one state")
def _(follow):
    return contracting(solver=ti.sde.Heun(dt=0.02), adjoint=ti.Checkpointed()) if follow else contracting()


@case("noisy steps", Status.DRIFTED, "a smaller coupling with Heun()")
def _(follow):
    return contracting(until=5.0, solver=ti.sde.Heun(dt=0.02), adjoint=ti.Reversible(0.9 if follow else 0.999))


@case("noisy steps", Status.DRIFTED, "a smaller dt")
def _(follow):
    return contracting(until=1.0, dt=0.0005 if follow else 0.1)


@case("noisy steps", Status.COUPLED, "eval(), GroupNorm or LayerNorm for batch statistics")
def _(follow):
    norm = nn.BatchNorm1d(2, dtype=D)
    norm.train(not follow)
    return noisy(norm_of(norm), small, y0=((1.0, 2.0), (0.5, -1.0), (3.0, 0.1)), dt=0.1)


def norm_of(norm):
    """A drift of a module whose own second argument it is."""

    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, t, y):
            return -self.norm(y)

    return Drift()


def wandering(diffusion, **options):
    """By steps that Heun's method chooses."""
    y0, solver = tensor(1.0, 2.0).unsqueeze(1), ti.sde.Heun(**options)
    return ti.sdeint(
        fall, diffusion, y0, tensor(0.0, 1.0), solver=solver, calculus="stratonovich", brownian=1, on_failure="ignore"
    ).report


def wild(t, y):
    return 2 * y


@case("noisy adaptive steps", Status.MAX_STEPS, "more max_steps")
def _(follow):
    return wandering(wild, max_steps=5000 if follow else 20)


@case("noisy adaptive steps", Status.MAX_STEPS, "a looser rtol or atol")
def _(follow):
    return wandering(wild, rtol=0.1 if follow else 1e-3, atol=0.1 if follow else 1e-3, max_steps=100)


@case("noisy adaptive steps", Status.STEP_TOO_SMALL, "a looser rtol or atol")
def _(follow):
    return wandering(wild, rtol=0.5 if follow else 1e-4, atol=0.5 if follow else 1e-4, dt_min=1e-2)


@case("noisy adaptive steps", Status.STEP_TOO_SMALL, "a smaller dt_min")
def _(follow):
    return wandering(wild, dt_min=0.0 if follow else 0.1)


def limit_cycle(adjoint, tolerance=1e-4):
    def van_der_pol(t, y, mu):
        return torch.stack((y[:, 1], mu[:, 0] * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)

    y0 = torch.linspace(0.5, 2, 8, dtype=D).reshape(4, 2).requires_grad_()
    mu = torch.full((4, 1), 2.0, dtype=D, requires_grad=True)
    solver = ti.Tsit5(rtol=tolerance, atol=tolerance)
    solution = ti.odeint(van_der_pol, y0, tensor(0.0, 10.0), mu, solver=solver, adjoint=adjoint, on_failure="ignore")
    solution.value[1].sum().backward()
    return solution.report if solution.backward is None else solution.backward


@case("paths", Status.DRIFTED, "Checkpointed(), which is exact for the steps taken")
def _(follow):
    return limit_cycle(ti.Checkpointed() if follow else ti.Backsolve())


@case("paths", Status.DRIFTED, "Backsolve(checkpoints=...) with more states on the way")
def _(follow):
    return limit_cycle(ti.Backsolve(checkpoints=64) if follow else ti.Backsolve())


DRAWN = "random numbers drawn before the solve and passed as an argument"


def drawing(solve, follow):
    """Of a field that draws at every evaluation, or is given what was drawn."""
    y0 = torch.ones(2, 3, dtype=D, requires_grad=True)
    torch.manual_seed(0)
    size = torch.rand(3, dtype=D)
    solution = solve(lambda t, y, size: -y * (size if follow else torch.rand_like(size)), y0, size)
    solution.value.sum().backward()
    return solution.backward or solution.report


@case("paths", Status.DRIFTED, DRAWN)
def _(follow):
    solver = ti.RK4(dt=0.1)
    return drawing(
        lambda f, y0, size: ti.odeint(f, y0, tensor(0.0, 1.0), size, solver=solver, on_failure="ignore"), follow
    )


def drawing_with_noise(follow, **options):
    def solve(f, y0, size):
        return ti.sdeint(
            f, lambda t, y, size: 0.1 * y, y0, tensor(0.0, 1.0), size, calculus="stratonovich", brownian=1,
            solver=ti.sde.Heun(**options), on_failure="ignore",
        )  # fmt: skip

    return drawing(solve, follow)


@case("noisy steps", Status.DRIFTED, DRAWN)
def _(follow):
    return drawing_with_noise(follow, dt=0.1)


@case("noisy adaptive steps", Status.DRIFTED, DRAWN)
def _(follow):
    return drawing_with_noise(follow, rtol=0.1, atol=0.1)


@case("paths", Status.DRIFTED, "a smaller coupling")
def _(follow):
    rate, ts = tensor([8.0]).requires_grad_(), tensor(0.0, 10.0)
    return ti.odeint(
        lambda t, y, rate: rate * (torch.sin(t) - y), torch.ones(1, 1, dtype=D), ts, rate,
        adjoint=ti.Reversible(0.2 if follow else 0.999), on_failure="ignore",
    ).report  # fmt: skip


def mingled(normed=False, **options):
    def field(t, y):
        return (y.mean(1, keepdim=True) if normed else y.mean(0)) - 3 * y

    y0 = torch.linspace(-1, 2, 6, dtype=D).view(3, 2)
    return ti.odeint(field, y0, tensor(0.0, 5.0), on_failure="ignore", **options).report


@case("paths", Status.COUPLED, 'stepping="joint", one step size for one coupled system')
def _(follow):
    return mingled(stepping="joint" if follow else "per-sample")


@case("paths", Status.COUPLED, "eval(), GroupNorm or LayerNorm for batch statistics")
def _(follow):
    return mingled(normed=follow)


# Quadratic programs


def program(*args, **options):
    return qp(*args, on_failure="ignore", **options).report


EYE, ONES = torch.eye(2, dtype=D), torch.ones(2, dtype=D)
CROSSED = {"G": tensor([1.0, 0.0], [-1.0, 0.0]), "h": tensor(-1.0, -1.0)}


@case("programs", Status.INFEASIBLE, "closest_feasible=True for the program with the smallest change of bounds")
def _(follow):
    return program(EYE, ONES, **CROSSED, closest_feasible=follow)


@case("programs", Status.INFEASIBLE, "a looser h, b, l or u")
def _(follow):
    return program(EYE, ONES, **(CROSSED | {"h": tensor(2.0, -1.0)} if follow else CROSSED))


@case("programs", Status.UNBOUNDED, "bounds on z")
def _(follow):
    bounds = {"l": -ONES, "u": ONES} if follow else {"u": ONES}
    return program(None, ONES, **bounds)


@case("programs", Status.UNBOUNDED, "a positive definite Q")
def _(follow):
    return program(0.1 * EYE if follow else None, ONES, u=ONES)


@case("programs", Status.NONCONVEX, "Q = L @ L.mT + 1e-4 * I")
def _(follow):
    L = tensor([1.0, 0.0], [3.0, -0.2])
    return program(L @ L.mT + 1e-4 * EYE if follow else (L + L.mT) / 2, ONES)


@case("programs", Status.NONCONVEX, "a multiple of the identity added to it")
def _(follow):
    return program(tensor([1.0, 2.0], [2.0, 1.0]) + (2 * EYE if follow else 0), ONES)


@case("programs", Status.MAX_STEPS, "more max_steps where all were taken")
def _(follow):
    eye = torch.eye(4, dtype=D)  # an assignment: many bounds meet in every corner
    A, b = torch.cat((eye.repeat_interleave(4, 1), eye.repeat(1, 4))), torch.ones(8, dtype=D)
    costs = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=D)
    options = {"solver": ti.optim.InteriorPoint(), "max_steps": 100 if follow else 1}
    return program(None, costs, A=A, b=b, l=torch.zeros(16, dtype=D), **options)


@case("programs", Status.MAX_STEPS, "bounds on z")
def _(follow):
    options = {"solver": ti.optim.InteriorPoint(), "l": -1e3 * ONES if follow else None}
    return program(torch.diag(tensor(1.0, 0.0)), tensor(1.0, 1e-9), **options)


def edge(Q=None):
    """Every point of an edge costs the same."""
    cost = tensor([-1.0, -1.0]).requires_grad_()
    solution = qp(Q, cost, torch.ones(1, 2, dtype=D), torch.ones(1, dtype=D), l=0 * ONES, on_failure="ignore")
    solution.value[0, 1].backward()
    return solution.backward


@case("programs", Status.STAGNATED, "smoothed=1e-3 for a linear program")
def _(follow):
    if not follow:
        return edge()
    cost = tensor([-1.0, -1.0]).requires_grad_()
    solution = qp(None, cost, torch.ones(1, 2, dtype=D), torch.ones(1, dtype=D), l=0 * ONES, smoothed=1e-3)
    solution.value[0, 1].backward()  # a failure would raise
    assert float(cost.grad.abs().min()) > 1, "one vertex for another"
    return solution.report


@case("programs", Status.STAGNATED, "a multiple of the identity added to Q")
def _(follow):
    return edge(Q=0.1 * EYE) if follow else edge()


# Cone programs


def cone(P=EYE, q=ONES, A=None, b=None, cones=None, **options):
    A = tensor([1.0, 0.0]) if A is None else A
    A = A if A.dim() == 2 else A[None]
    b = torch.ones(len(A), dtype=D) if b is None else b
    return cone_program(P, q, A, b, cones or Cones(nonneg=len(A)), on_failure="ignore", **options).report


@case("cones", Status.INFEASIBLE, "to relax them with slack variables that cost something")
def _(follow):
    A, b = CROSSED["G"], CROSSED["h"]
    if not follow:
        return cone(A=A, b=b)
    wide = torch.cat([A, -EYE], 1)  # A x - s <= b, s >= 0, each s costing 10
    rows = torch.cat([wide, torch.cat([0 * EYE, -EYE], 1)])
    P = torch.block_diag(EYE, 0 * EYE)
    return cone(P, torch.cat([ONES, 10 * ONES]), rows, torch.cat([b, 0 * ONES]))


@case("cones", Status.INFEASIBLE, "to leave such samples out")
def _(follow):
    b = torch.stack([ONES, CROSSED["h"]])
    return cone(A=CROSSED["G"], b=b[:1] if follow else b)


@case("cones", Status.UNBOUNDED, "bounds on the variables")
def _(follow):
    return cone(None, ONES, torch.cat([EYE, -EYE]) if follow else EYE)


@case("cones", Status.UNBOUNDED, "a small multiple of their square in the objective")
def _(follow):
    return cone(1e-2 * EYE if follow else None, ONES, EYE)


@case("cones", Status.NONCONVEX, "L @ L.mT in its place")
def _(follow):
    L = tensor([1.0, 0.0], [3.0, -0.2])
    return cone(L @ L.mT if follow else (L + L.mT) / 2)


@case("cones", Status.NONCONVEX, "a multiple of the identity added to it")
def _(follow):
    return cone(2 * EYE - EYE.flip(0) if follow else EYE.flip(0))


@case("cones", Status.MAX_STEPS, "more max_steps")
def _(follow):
    A = torch.cat([torch.randn(30, 6, dtype=D), torch.eye(6, dtype=D), -torch.eye(6, dtype=D)])
    return cone(None, torch.randn(6, dtype=D), A, max_steps=100 if follow else 1)


@case("cones", Status.STAGNATED, "a larger tol if that is enough")
def _(follow):
    A = torch.cat([torch.zeros(1, 4, dtype=D), -torch.randn(4, 4, dtype=D)])
    b = torch.cat([torch.ones(1, dtype=D), torch.randn(4, dtype=D) / 9])
    q = torch.randn(4, dtype=D)
    return cone(torch.eye(4, dtype=D), q, A, b, Cones(soc=(5,)), tol=1e-8 if follow else 1e-18)


def segment(P=None, repeated=False):
    """min x_0 + x_1 for x_0 + x_1 >= 1, |x| <= 2: a segment of solutions."""
    A, b = tensor([-1.0, -1.0], [0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]), tensor(-1.0, 2.0, 0.0, 0.0)
    q = ONES.clone().requires_grad_()
    solution = cone_program(P, q, A, b, Cones(nonneg=1, soc=(3,)), on_failure="ignore")
    solution.value[0].backward()
    return solution.backward


@case("derivatives of cones", Status.STAGNATED, "a small multiple of the variables' squares in the objective")
def _(follow):
    return segment(1e-2 * EYE if follow else None)


@case("derivatives of cones", Status.STAGNATED, "to take constraints out that repeat each other")
def _(follow):
    rows = 1 if follow else 2
    A = torch.cat([torch.ones(rows, 2, dtype=D), tensor([0.0, 0.0], [-1.0, 0.0], [0.0, -1.0])])
    b = torch.cat([torch.ones(rows, dtype=D), tensor(5.0, 0.0, 0.0)])
    q = ONES.clone().requires_grad_()
    solution = cone_program(EYE, q, A, b, Cones(zero=rows, soc=(3,)), on_failure="ignore")
    solution.dual[0].backward()
    return solution.backward


# Plans


def regulate(x0=(0.9, 0.3), R=1.0, r=0.0, **bounds):
    A, B = tensor([1.0, 0.1], [0.0, 1.0]), tensor([0.0], [0.1])
    Q = bounds.pop("Q", EYE)
    options = {"r": tensor(r)} if r else {}
    return lqr(A, B, Q, tensor([R]), tensor(x0), 8, **options, **bounds, on_failure="ignore").report


LIMITS = {"lower": -1.0, "upper": 1.0}


@case("plans", Status.INFEASIBLE, "looser state bounds")
def _(follow):
    bound = tensor(5.0 if follow else 1.0, math.inf)
    return regulate((0.9, 3.0), **LIMITS, state_upper=bound)


@case("plans", Status.INFEASIBLE, "a penalty in the cost in place of them")
def _(follow):
    bounds = {"Q": torch.diag(tensor(100.0, 1.0))} if follow else {"state_upper": tensor(1.0, math.inf)}
    return regulate((0.9, 3.0), **LIMITS, **bounds)


@case("plans", Status.INFEASIBLE, "another first state")
def _(follow):
    return regulate((0.5, 0.1) if follow else (0.9, 3.0), **LIMITS, state_upper=tensor(1.0, math.inf))


@case("plans", Status.NONCONVEX, "a positive definite R")
def _(follow):
    return regulate(R=1.0 if follow else -100.0)


@case("plans", Status.UNBOUNDED, "a positive definite R")
def _(follow):
    return regulate(R=1.0 if follow else 0.0, r=1.0, Q=0 * EYE, upper=1.0)


@case("plans", Status.UNBOUNDED, "bounds on all controls")
def _(follow):
    return regulate(R=0.0, r=1.0, Q=0 * EYE, upper=1.0, **({"lower": -1.0} if follow else {}))


def swing(x0, horizon=20, gravity=9.81, slope=None, solver=BoxDDP(), effort=0.02, dtype=D, **options):
    def pendulum(x, u):
        speed = x[:, 1] + 0.1 * (gravity * x[:, 0].sin() + u[:, 0])
        return torch.stack((x[:, 0] + 0.1 * speed, speed), 1)

    def cost(x, u):
        return 0.1 * (1 - x[:, 0].cos() + 0.1 * x[:, 1] ** 2 + effort * u[:, 0] ** 2)

    def final(x):
        return 5 * (1 - x[:, 0].cos()) + x[:, 1] ** 2

    options = {"final_cost": final, "solver": solver, "on_failure": "ignore"} | options
    return ilqr(pendulum, slope or cost, torch.as_tensor(x0, dtype=dtype)[None], horizon, -4.0, 4.0, **options)


@case("plans", Status.SADDLE, "another u0 (not one where symmetry holds the system in place)")
def _(follow):
    return swing((math.pi, 0.0), u0=torch.full((1, 20, 1), 0.1 if follow else 0.0, dtype=D)).report


@case("plans", Status.SADDLE, "more cost on controls")
def _(follow):
    return swing((math.pi, 0.0), effort=100.0 if follow else 0.02).report


@case("plans", Status.MAX_STEPS, "more max_steps")
def _(follow):
    return swing((2.5, 0.0), solver=BoxDDP(max_steps=100 if follow else 2)).report


@case("plans", Status.MAX_STEPS, "a start closer to the plan (u0, warm_start)")
def _(follow):
    near = swing((2.5, 0.0)).value if follow else None
    return swing((2.5, 0.01), solver=BoxDDP(max_steps=3), u0=near).report


@case("plans", Status.MAX_STEPS, "a shorter horizon")
def _(follow):
    return swing((0.4, 0.0), horizon=2 if follow else 20, solver=BoxDDP(max_steps=3)).report


def kinked(x, u):
    return (x[:, 0] - 0.1).abs() + 0.1 * u[:, 0] ** 2


def smooth(x, u):
    return ((x[:, 0] - 0.1).square() + 1e-2).sqrt() + 0.1 * u[:, 0] ** 2


@case("plans", Status.MAX_STEPS, "smoother costs")
def _(follow):
    return swing((0.4, 0.0), slope=smooth if follow else kinked, final_cost=None).report


@case("plans", Status.STAGNATED, "smooth functions in place of those with a kink")
def _(follow):
    return swing((0.05, 0.3), horizon=10, slope=smooth if follow else kinked, final_cost=None).report


@case("plans", Status.STAGNATED, "a looser rtol")
def _(follow):
    return swing((0.4, -0.5), solver=BoxDDP(rtol=1e-6 if follow else 1e-30, atol=0)).report


@case("plans", Status.STAGNATED, "float64")
def _(follow):
    dtype = D if follow else torch.float32
    return swing((0.4, -0.5), dtype=dtype, solver=BoxDDP(rtol=1e-10, atol=0)).report


def explode(horizon, push):
    def cost(x, u):
        return x[:, 0] ** 2 + u[:, 0] ** 2

    u0 = torch.zeros(1, horizon, 1, dtype=D)
    u0[:, 0] = push
    return ilqr(lambda x, u: x + x**3 + u, cost, tensor([2.0]), horizon, u0=u0, on_failure="ignore").report


@case("plans", Status.NON_FINITE, "a better u0")
def _(follow):
    return explode(10, -10.0 if follow else 0.0)


@case("plans", Status.NON_FINITE, "a shorter horizon")
def _(follow):
    return explode(2 if follow else 10, 0.0)


# Samples


class Twice:
    """Measures the same entry twice."""

    def A(self, x):
        return x[:, [0, 0]]

    def A_adjoint(self, y):
        return torch.stack((y.sum(1), torch.zeros_like(y[:, 0])), 1)


@case("samples", Status.STAGNATED, "std=... of the noise, above 0")
def _(follow):
    model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0, on_failure="ignore").double()
    measured = ti.nn.Guidance(Twice(), tensor([0.2, 0.4]), std=0.01 if follow else 0.0)
    model.sample(3, ti.nn.DPMSolverMultistep(steps=10), condition=measured)
    return model.report


# At the end, for it wants all of them


@pytest.mark.parametrize(("key", "solve"), CASES.items(), ids=named(CASES))
def test_following_it_helps(key, solve):
    _, status, remedy = key
    torch.manual_seed(0)
    failed = solve(False)
    assert bool((failed.status == status).any()), failed
    assert remedy in failed.remedies[status]
    torch.manual_seed(0)
    mended = solve(True)
    assert mended.converged, mended
