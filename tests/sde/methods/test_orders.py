"""Strong orders, measured on one path at several steps, against exact solutions or far finer steps."""

import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import torchimplicit as ti
from tests.sde.cases import D
from torchimplicit import sde
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import scaled

BATCH, COARSE, FINE, REFERENCE = 400, 4, 8, 12  # steps of 2^-4 to 2^-8
UNIT = torch.tensor([0.0, 1.0], dtype=D)
Y0 = 0.5 + 0.1 * torch.arange(3, dtype=D).expand(BATCH, 3)
SOURCE = sde.Brownian(seed=5, base=2.0**-COARSE)
WITH_AREAS = sde.Brownian(seed=5, base=2.0**-REFERENCE)  # of steps that are made of such, see `joined`
A = torch.tensor([[0.0, 0.8, 0.0], [-0.2, 0.0, 0.5], [0.0, 0.0, 0.3]], dtype=D)
ADDITIVE = torch.tensor([[0.5, 0.1], [0.0, 0.4], [0.2, -0.3]], dtype=D)
M = torch.tensor([[[0, 0.5, 0], [0, 0, 0.4], [0.2, 0, 0]], [[0.3, 0, 0], [0.5, 0, 0], [0, 0.4, 0.1]]], dtype=D)
ROWS = torch.tensor([[0.5, 0.2, 0.1], [0.1, -0.4, 0.3]], dtype=D)


def nothing(t, y):
    return torch.zeros_like(y)


def brownian(channels):
    noise = SOURCE.bind(torch.empty(BATCH, channels, dtype=D))
    return sum(noise.increment(number, 2.0**-COARSE).W for number in range(2**COARSE))


# Of each the noise, the Ito and the Stratonovich drift, the diffusion, and the end where that is known.
PROBLEMS = {
    "geometric": (
        "diagonal", lambda t, y: 0.3 * y, lambda t, y: 0.12 * y, lambda t, y: 0.6 * y,
        lambda: Y0 * torch.exp(0.12 + 0.6 * brownian(3)),
    ),
    "scalar, Jacobian not symmetric": (
        "scalar", lambda t, y: 0.5 * y @ (A @ A).T, nothing, lambda t, y: (y @ A.T).unsqueeze(-1),
        lambda: (torch.linalg.matrix_exp(A * brownian(1).unsqueeze(2)) @ Y0.unsqueeze(2)).squeeze(2),
    ),
    "diagonal that sees others": (
        "diagonal", lambda t, y: -0.5 * y, lambda t, y: -0.5 * y, lambda t, y: 0.5 * y.roll(-1, 1).sin() + 0.6, None,
    ),
    "additive, of time": (
        "additive", lambda t, y: (4 * y).sin(), lambda t, y: (4 * y).sin(),
        lambda t, y: 2 * (1 + 0.5 * torch.sin(3 * t)).unsqueeze(2) * ADDITIVE, None,
    ),
    "general": (
        "general", lambda t, y: 0.5 * y @ (M[0] @ M[0] + M[1] @ M[1]).T, nothing,
        lambda t, y: torch.stack((y @ M[0].T, y @ M[1].T), -1), None,
    ),
    "commuting": (
        "general", lambda t, y: 0.5 * y * ROWS.square().sum(0), nothing,
        lambda t, y: y.unsqueeze(2) * ROWS.T, lambda: Y0 * torch.exp(brownian(2) @ ROWS),
    ),
}  # fmt: skip
ORDERS = {
    ("geometric", sde.EulerMaruyama): 0.5,
    ("geometric", sde.Milstein): 1.0,
    ("geometric", sde.SRID2): 1.5,
    ("geometric", sde.ReversibleHeun): 1.0,
    ("geometric", sde.Heun): 1.0,
    ("geometric", sde.Midpoint): 1.0,
    ("scalar, Jacobian not symmetric", sde.EulerMaruyama): 0.5,
    ("scalar, Jacobian not symmetric", sde.Milstein): 1.0,
    ("scalar, Jacobian not symmetric", sde.SRID2): 1.5,
    ("scalar, Jacobian not symmetric", sde.ReversibleHeun): 1.0,
    ("scalar, Jacobian not symmetric", sde.Heun): 1.0,
    ("scalar, Jacobian not symmetric", sde.Midpoint): 1.0,
    ("diagonal that sees others", sde.EulerMaruyama): 0.5,
    ("diagonal that sees others", sde.Milstein): 0.5,
    ("diagonal that sees others", sde.SRID2): 0.5,
    ("diagonal that sees others", sde.ReversibleHeun): 0.5,
    ("diagonal that sees others", sde.Heun): 0.5,
    ("diagonal that sees others", sde.Midpoint): 0.5,
    ("additive, of time", sde.EulerMaruyama): 1.0,
    ("additive, of time", sde.Milstein): 1.0,
    ("additive, of time", sde.ReversibleHeun): 1.0,
    ("additive, of time", sde.Heun): 1.0,
    ("additive, of time", sde.Midpoint): 1.0,
    ("additive, of time", sde.SRA1): 1.5,
    ("additive, of time", sde.ShARK): 1.5,
    ("general", sde.EulerMaruyama): 0.5,
    ("general", sde.Milstein): 0.5,
    ("general", sde.ReversibleHeun): 0.5,
    ("general", sde.Heun): 0.5,
    ("general", sde.Midpoint): 0.5,
    ("general", sde.LogODE): 1.0,
    ("diagonal that sees others", sde.LogODE): 1.0,
    ("commuting", sde.EulerMaruyama): 0.5,
    ("commuting", sde.Milstein): 1.0,
    ("commuting", sde.ReversibleHeun): 1.0,
    ("commuting", sde.Heun): 1.0,
    ("commuting", sde.Midpoint): 1.0,
}


def source_of(method):
    return WITH_AREAS if method.levy else SOURCE


def solved(problem, method, dt, adjoint=ti.Checkpointed()):
    noise, ito, stratonovich, diffusion, _ = PROBLEMS[problem]
    drift = ito if method.calculus == "ito" else stratonovich
    options = {"noise": noise, "calculus": method.calculus, "brownian": source_of(method), "solver": method(dt=dt)}
    options["adjoint"] = adjoint
    return ti.sdeint(drift, diffusion, Y0, UNIT, **options)


def end(problem, method, dt, adjoint=ti.Checkpointed()):
    return solved(problem, method, dt, adjoint).value[-1]


@lru_cache
def reference(problem, levy):
    noise, *_, exact = PROBLEMS[problem]
    if levy:  # the areas of the path are those of these steps, taken together
        return end(problem, sde.LogODE, WITH_AREAS.base)
    return end(problem, sde.ShARK if noise == "additive" else sde.Heun, 2.0**-REFERENCE) if exact is None else exact()


def slope(problem, method, adjoint=ti.Checkpointed()):
    level = torch.arange(COARSE, FINE + 1, dtype=D)
    errors = [
        (end(problem, method, 2.0**-k, adjoint) - reference(problem, method.levy)).square().sum(1).mean().sqrt()
        for k in level.tolist()
    ]
    return -((level - level.mean()) * torch.stack(errors).log2()).sum() / (level - level.mean()).square().sum()


@pytest.mark.parametrize(("problem", "method"), ORDERS, ids=lambda each: getattr(each, "__name__", each))
def test_strong_order(problem, method):
    order = slope(problem, method)
    assert abs(order - ORDERS[problem, method]) < 0.1, f"{order:.3f}"
    assert solved(problem, method, 1.0 / 8).report.strong_order == ORDERS[problem, method]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", [sde.Heun, sde.Midpoint])
def test_reversible_keeps_the_strong_order(problem, method):
    order = slope(problem, method, ti.Reversible())
    assert abs(order - ORDERS[problem, method]) < 0.1, f"{order:.3f}"


def test_areas_are_worth_their_price():
    """At steps of 1/16: a tenth of the error of Euler's, and less, where noise is small beside the drift."""
    y0 = torch.linspace(-1, 1, 300, dtype=D).reshape(100, 3)

    def end(method, dt):
        return ti.sdeint(
            lambda t, y: y.sin() - y, lambda t, y: torch.full_like(y, 0.4), y0, UNIT, noise="additive",
            calculus=method.calculus, solver=method(dt=dt), brownian=SOURCE,
        ).value[-1]  # fmt: skip

    fine = end(sde.ShARK, 2.0**-REFERENCE)
    error = {method: (end(method, 1 / 16) - fine).square().mean().sqrt() for method in (*EVERY,)}
    assert error[sde.SRA1] < 0.1 * error[sde.EulerMaruyama]
    assert error[sde.ShARK] < 0.1 * error[sde.EulerMaruyama]


EVERY = (sde.EulerMaruyama, sde.SRA1, sde.ShARK)


def test_areas_are_right():
    """On the Heisenberg group the third unknown is the area: steps of any size find that of the path."""
    y0, source = torch.zeros(50, 3, dtype=D), sde.Brownian(seed=2, base=2.0**-6)

    def diffusion(t, y):
        turn = 0.5 * torch.stack((-y[:, 1], y[:, 0]), 1).unsqueeze(1)
        return torch.cat((torch.eye(2, dtype=D).expand(len(y), 2, 2), turn), 1)

    path = source.bind(torch.empty(50, 2, dtype=D), levy=True).increment(0, 1.0)
    for dt in (1.0, 0.25, 2.0**-6):
        found = ti.sdeint(
            nothing, diffusion, y0, UNIT, noise="general", calculus="stratonovich", solver=sde.LogODE(dt=dt),
            brownian=source,
        ).value[-1]  # fmt: skip
        assert torch.allclose(found[:, :2], path.W, rtol=1e-12)
        assert torch.allclose(found[:, 2], path.A[:, 0, 1], rtol=0, atol=1e-12)


def test_without_areas_it_is_another_path():
    """Methods with and without areas go to one limit, but those without at order 1/2."""
    fine, errors = reference("general", True), []
    for k in (4, 7):
        noise, _, drift, diffusion, _ = PROBLEMS["general"]
        found = ti.sdeint(
            drift, diffusion, Y0, UNIT, noise=noise, calculus="stratonovich", solver=sde.Heun(dt=2.0**-k),
            brownian=WITH_AREAS,
        ).value[-1]  # fmt: skip
        errors.append(float((found - fine).square().sum(1).mean().sqrt()))
    assert abs(math.log2(errors[0] / errors[1]) / 3 - 0.5) < 0.1
    assert errors[1] > 3 * float((end("general", sde.LogODE, 2.0**-7) - fine).square().sum(1).mean().sqrt())


def test_weak_moments_of_the_log_ode():
    """Of a linear equation by quadrature over a step's normals: areas without their variance would miss the squares."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = torch.cartesian_prod(*[torch.tensor(nodes, dtype=D)] * 5)
    weight = torch.cartesian_prod(*[torch.tensor(weights / weights.sum(), dtype=D)] * 5).prod(1)
    mean = 0.5 * (M[0] @ M[0] + M[1] @ M[1])
    columns, kron, eye = PROBLEMS["general"][3], torch.kron, torch.eye(3, dtype=D)
    square = kron(mean, eye) + kron(eye, mean) + kron(M[0], M[0]) + kron(M[1], M[1])
    errors = []
    for h in (0.25, 0.125, 0.0625):
        path = scaled(grid[:, :2], grid[:, 2:4], h, grid[:, 4:])
        t = torch.zeros(len(grid), dtype=D)
        field = SimpleNamespace(diffusion=columns, both=lambda t, y: (torch.zeros_like(y), columns(t, y)))
        size = torch.full((len(grid), 1), h, dtype=D)
        ends = [sde.LogODE().advance(field, Span.of(t, t + h), size, e.expand(len(grid), 3), path)[0] for e in eye]
        P = torch.stack(ends, 2)
        P = torch.einsum("b,bij,bkl->ikjl", weight, P, P).reshape(9, 9)
        errors.append(float((torch.linalg.matrix_power(P, round(1 / h)) - torch.linalg.matrix_exp(square)).norm()))
    orders = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert min(orders) > 0.9, orders
    assert errors[-1] < 0.02, errors
