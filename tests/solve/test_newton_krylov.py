"""Newton's method with an iterative linear solver: how exactly it solves, and what that saves."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

import torchimplicit as ti
from torchimplicit.linear import Jacobian
from torchimplicit.solve.newton import ETA_FIRST, ETA_MAX, GAMMA

TIGHT = {"rtol": 1e-8, "atol": 1e-10}


@dataclass(frozen=True, kw_only=True)
class Listening(ti.GMRES):
    """Notes the tolerances that it is asked for."""

    def run(self, product, b, rtol=None):
        ASKED.append(rtol)
        return super().run(product, b, rtol)


ASKED = []


@pytest.fixture(autouse=True)
def _deaf():
    ASKED.clear()


@pytest.fixture
def products(monkeypatch):
    """Counts the products of Jacobians with vectors."""
    count = [0]
    product = Jacobian.matvec

    def counting(self, v):
        count[0] += 1
        return product(self, v)

    monkeypatch.setattr(Jacobian, "matvec", counting)
    return count


def laplacian(n):
    eye = torch.eye(n, dtype=torch.float64)
    line = 2 * eye - eye.roll(1, 0).tril() - eye.roll(1, 1).triu()
    return torch.kron(line, eye) + torch.kron(eye, line)


def bratu(z, heat):
    """Bratu's equation on a square of 18 by 18 points, for which the diagonal scaling is 1."""
    return (z @ laplacian(18) - heat * z.exp() / 19**2) / 4


def graded(z, x):
    """A reaction whose rates span two decades."""
    rates = torch.logspace(0, 2, z.shape[1], dtype=z.dtype)
    return (rates * z + z**3 - 0.5 * torch.tanh(z.roll(1, 1) + z.roll(7, 1)) * rates.sqrt() - 5 * x) / 100


PROBLEMS = {
    "bratu": (bratu, torch.zeros(3, 324).double(), torch.tensor([[1.0], [3.0], [6.0]]).double()),
    "graded": (graded, torch.zeros(2, 300).double(), torch.linspace(-1, 1, 600).double().view(2, 300)),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("linear", [None, ti.GMRES(rtol=1e-8, restart=40, max_steps=400), ti.BiCGStab()], ids=str)
def test_forcing_saves_products_and_finds_the_same_root(name, linear, products):
    g, z0, a = PROBLEMS[name]
    counts, values = [], []
    for forcing in (True, False):
        products[0] = 0
        solver = ti.Newton(linear_solver=linear, forcing=forcing, **TIGHT)
        # As a fixed point: no root is claimed without a linear solve more.
        solution = ti.fixed_point(lambda z, a: z - g(z, a), z0, a, solver=solver)
        counts.append(products[0])
        values.append(solution.value)
    assert torch.allclose(*values, atol=1e-6)
    assert 0 < counts[0] < 0.8 * counts[1]


def test_the_sequence_is_that_of_eisenstat_and_walker():
    g, z0, a = PROBLEMS["graded"]
    solver = ti.Newton(linear_solver=Listening(rtol=1e-3), halvings=0, rtol=0.0, atol=1e-30, max_steps=7)
    solution = ti.root(g, z0, a, solver=solver, trace=True, on_failure="ignore")
    assert len(ASKED) == 7
    for sample in range(2):
        sizes, expected = solution.trace[:, sample].tolist(), [ETA_FIRST]
        for before, now in pairwise(sizes[:-1]):
            eta, slowest = GAMMA * (now / before) ** 2, GAMMA * expected[-1] ** 2
            expected.append(min(max(eta, slowest if slowest > 0.1 else 0), ETA_MAX))
        assert [asked[sample].item() for asked in ASKED] == pytest.approx(expected)
    assert not torch.equal(ASKED[2][0], ASKED[2][1]), "each sample has its own"


def test_the_linear_solver_s_own_tolerance_is_the_tightest():
    g, z0, a = PROBLEMS["graded"]
    options = {"linear_solver": ti.GMRES(rtol=0.3, opening=False), "rtol": 0.0, "atol": 1e-9, "max_steps": 40}
    trace = ti.root(g, z0, a, solver=ti.Newton(**options), trace=True).trace
    ratio = trace[1:] / trace[:-1]
    assert ratio[-6:-2].nanquantile(0.5) > 0.01, "linear convergence: no step may be much better than the linear solve"
    quadratic = ti.root(g, z0, a, solver=ti.Newton(**(options | {"linear_solver": ti.GMRES(rtol=1e-9)})))
    assert (quadratic.steps < 0.8 * len(trace)).all()


def test_the_last_step_is_no_tighter_than_the_tolerance_needs():
    g, z0, a = PROBLEMS["graded"]
    tightest = []
    for rtol in (1e-3, 1e-9):
        ASKED.clear()
        solver = ti.Newton(linear_solver=Listening(rtol=1e-12), rtol=rtol, atol=0.0)
        solution = ti.fixed_point(lambda z, a: z - g(z, a), z0, a, solver=solver, trace=True)
        tightest.append(min(asked.min().item() for asked in ASKED))
        last = int(solution.steps[0])
        enough = 0.5 * rtol * solution.value[0].square().mean().sqrt() / solution.trace[last - 1, 0]
        assert ASKED[last - 1][0] >= 0.9 * enough
    assert tightest[0] > 10 * tightest[1]


def test_forcing_off_asks_for_nothing():
    g, z0, a = PROBLEMS["graded"]
    ti.root(g, z0, a, solver=ti.Newton(linear_solver=Listening(), forcing=False))
    assert ASKED
    assert all(rtol is None for rtol in ASKED)


def test_a_linear_solve_takes_a_tolerance_for_each_sample():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(20) + 0.15 * torch.randn(3, 20, 20, generator=generator)
    matrix, b = matrix.double(), torch.randn(3, 20, generator=generator).double()
    asked = torch.tensor([1e-1, 1e-4, 1e-12], dtype=torch.float64)
    for solver in (ti.GMRES(rtol=1e-8), ti.GMRES(rtol=1e-8, opening=False), ti.BiCGStab(rtol=1e-8)):
        x, report = solver.prepare(ti.linear.Matrix(matrix)).solve(b, asked)
        left = (b - (matrix @ x.unsqueeze(2)).squeeze(2)).norm(dim=1) / b.norm(dim=1)
        assert report.converged
        assert (left <= torch.tensor([1e-1, 1e-4, 1e-8])).all()
        assert (left[:2] > torch.tensor([1e-4, 1e-8])).all(), "and no more than it"
        assert report.steps.tolist() == sorted(set(report.steps.tolist()))


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r"Newton\(forcing=0\.5\): expected True or False"):
        ti.Newton(forcing=0.5)
