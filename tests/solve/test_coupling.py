"""Samples that depend on each other and stop at different steps: who has converged still has, beside all the others."""

import random

import pytest
import torch

import torchimplicit as ti
from torchimplicit.solve import coupling

PLAY, RTOL = 10.0, 1e-6
OPTIONS = {"rtol": RTOL, "max_steps": 200}
FIXED_POINTS = [
    ti.Anderson(**OPTIONS), ti.Broyden(**OPTIONS), ti.Picard(**OPTIONS), ti.Anderson(check_every=3, **OPTIONS),
    ti.Polyalgorithm(after=5, **OPTIONS), ti.Newton(**OPTIONS),
]  # fmt: skip
ROOTS = [ti.Newton(**OPTIONS), ti.Broyden(**OPTIONS), ti.Broyden(halvings=3, **OPTIONS)]
MINIMA = [ti.LBFGS(**OPTIONS), ti.NewtonCG(**OPTIONS)]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Case:
    """A problem of samples coupled by `c`, in a scale of its own, and its numbers."""

    def __init__(self, seed, uncoupled=False):
        dice = random.Random(seed)
        self.batch, self.width = dice.randint(2, 4), dice.randint(1, 4)
        self.c = 0.0 if uncoupled else 10 ** dice.uniform(-3, 0)
        self.scale = 10 ** dice.uniform(-6, 6)
        w = rand(self.width, self.width, seed=seed)
        self.w = 0.8 * w / torch.linalg.matrix_norm(w, 2)
        self.x, self.z0 = (rand(self.batch, self.width, seed=seed + more) for more in (1000, 2000))
        size = torch.tensor([[10 ** dice.uniform(-2, 2)] for _ in range(self.batch)], dtype=torch.float64)
        self.z0, self.x = self.z0 * size, self.x * size.clamp(max=1)

    def map(self, z, x, w):
        z = z / self.scale
        return self.scale * (torch.tanh(z @ w) + x + self.c * torch.sin(z - z.mean(0)))

    def residual(self, y, x, w):
        return self.scale * (y**3 + y - torch.tanh(y @ w) - x - 0.5 * self.c * torch.sin(y - y.mean(0)))

    def energy(self, y, x, w):
        off = (y**4 / 4 + y**2 / 2 - x * y + 0.3 * self.c * y * torch.tanh(y.mean(0))).sum(1)
        return self.scale * (off + 0.1 * torch.tanh(y @ w).square().sum(1))


def slope(case):
    def residual(y, x, w):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad(case.energy(y, x, w).sum(), y, create_graph=True)[0]

    return residual


def longest_step(residual, z, status):
    """The longest Newton step of a converged sample's own beside the others, over its tolerance."""
    worst = 0.0
    for b in torch.nonzero(status == 0).flatten().tolist():

        def own(row, b=b):
            return residual(torch.cat((z[:b], row[None], z[b + 1 :])))[b]

        step = torch.linalg.solve(torch.autograd.functional.jacobian(own, z[b]), own(z[b]))
        worst = max(worst, float((step.abs() / (RTOL * z[b].abs())).max()))
    return worst


SEEDS = range(12)


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "unrolled"])
@pytest.mark.parametrize("solver", FIXED_POINTS, ids=str)
def test_a_converged_fixed_point_is_one_beside_the_others(solver, graph):
    for seed in SEEDS:
        case, adjoint = Case(seed), ti.Unrolled() if graph else None
        x = case.x.requires_grad_(graph)
        solution = ti.fixed_point(
            case.map, case.scale * case.z0, x, case.w, solver=solver, adjoint=adjoint, on_failure="ignore"
        )
        z = solution.value.detach()
        size = (case.map(z, x.detach(), case.w) - z).square().mean(1).sqrt()
        allowed = 1.01 * PLAY * (RTOL * (0.01 + z.square().mean(1).sqrt()))
        assert (size <= allowed)[solution.status == ti.Status.CONVERGED].all(), f"{seed}: {size / allowed}"
        coupled = solution.status == ti.Status.COUPLED
        assert torch.allclose(solution.residual[coupled], size[coupled], rtol=1e-3), "what is reported was computed"


@pytest.mark.parametrize("solver", ROOTS, ids=str)
def test_a_converged_root_is_one_beside_the_others(solver):
    for seed in range(40):
        case = Case(seed)
        solution = ti.root(case.residual, case.z0, case.x, case.w, solver=solver, on_failure="ignore")
        off = longest_step(lambda z, case=case: case.residual(z, case.x, case.w), solution.value, solution.status)
        assert off <= 1.1 * PLAY, f"{seed}: {off}, {solution.report}"


@pytest.mark.parametrize("solver", MINIMA, ids=str)
def test_a_converged_minimum_is_one_beside_the_others(solver):
    for seed in SEEDS:
        case = Case(seed)
        solution = ti.argmin(case.energy, case.z0, case.x, case.w, solver=solver, on_failure="ignore")
        residual = slope(case)
        with torch.no_grad():
            off = longest_step(
                lambda z, case=case, residual=residual: residual(z, case.x, case.w), solution.value, solution.status
            )
        assert off <= 1.1 * PLAY, f"{seed}: {off}, {solution.report}"


FRONTS = {"map": FIXED_POINTS, "residual": ROOTS, "energy": MINIMA}


@pytest.mark.parametrize(
    ("front", "solver", "graph"),
    [(front, one, graph) for front in FRONTS for one in FRONTS[front] for graph in (False, front != "energy")],
    ids=str,
)
def test_who_starts_at_a_solution_and_is_left_behind_is_told(front, solver, graph):
    case = Case(0)
    case.c, case.scale = 0.3, 1.0
    function = getattr(case, front)

    def first(row, x, w):  # the first sample alone, the others where they start
        return function(torch.cat((row, case.z0[1:])), torch.cat((x, case.x[1:])), w)[:1]

    solve = {"map": ti.fixed_point, "residual": ti.root, "energy": ti.argmin}[front]
    alone = solve(first, case.z0[:1], case.x[:1], case.w, solver=type(solver)(rtol=1e-12, atol=1e-14, max_steps=500))
    start = torch.cat((alone.value, case.z0[1:]))
    x = case.x.requires_grad_(graph)
    solution = solve(
        function, start, x, case.w, solver=solver, on_failure="ignore", adjoint=ti.Unrolled() if graph else None
    )
    assert solution.status[0] != ti.Status.CONVERGED or solution.steps[0] == solution.steps.max(), solution.report
    assert front != "map" or ti.Status.COUPLED in solution.status.tolist()


@pytest.mark.parametrize("front", FRONTS)
def test_independent_samples_are_never_called_coupled(front):
    solve = {"map": ti.fixed_point, "residual": ti.root, "energy": ti.argmin}[front]
    for seed in range(8):
        case = Case(seed, uncoupled=True)
        scale = case.scale if front == "map" else 1.0
        for solver in FRONTS[front]:
            solution = solve(getattr(case, front), scale * case.z0, case.x, case.w, solver=solver, on_failure="ignore")
            assert ti.Status.COUPLED not in solution.status.tolist(), f"{seed}, {solver}"


def test_a_look_costs_an_evaluation_only_where_there_is_a_doubt(monkeypatch):
    w = rand(8, 8)
    w, x = 0.5 * w / torch.linalg.matrix_norm(w, 2), rand(8, 8, seed=1)
    looks = []
    monkeypatch.setattr(coupling, "scaled_norm", lambda rows: looks.append(rows) or rows.norm(dim=1))
    solution = ti.fixed_point(lambda z, w, x: torch.tanh(z @ w + x), torch.zeros_like(x), w, x, solver=ti.Anderson())
    assert solution.steps.min() < solution.steps.max() == solution.report.nfev - 1
    assert not looks
