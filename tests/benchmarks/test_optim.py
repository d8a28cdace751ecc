"""The benchmark of quadratic programs and projections runs, and measures what it says."""

import importlib
import sys
import warnings

import pytest
import torch


@pytest.fixture
def optim(monkeypatch):
    """The script as a module, its neighbours in reach; one torch thread."""
    monkeypatch.setitem(sys.modules, "cvxpy", None)  # takes seconds to import
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):  # the script sets them
        monkeypatch.setenv(name, "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("benchmarks.programs.__main__")
    torch.set_num_threads(threads)


def column(table, name):
    return [row[table.header.index(name)] for row in table.rows]


def test_the_exact_reference_is_exact(optim):
    problem = optim.programs(3, 5, 6, 2)
    tensors, weight = problem.tensors, problem.weight
    truth = optim.exact(tensors, weight)
    assert optim.kkt_residual(tensors, truth.z, truth.y, truth.nu) < 1e-12
    assert int((truth.y > 0).sum()) > 0  # some inequalities hold the solution

    def loss(i, change):
        moved = [part + change if j == i else part for j, part in enumerate(tensors)]
        return float((optim.exact(moved, weight).z * weight).sum())

    for i, gradient in enumerate(truth.gradients):
        step = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        step = 1e-6 * (step + step.mT if i == 0 else step)  # Q stays symmetric
        slope = (loss(i, step) - loss(i, -step)) / 2e-6
        assert slope == pytest.approx(float((gradient * step).sum()) / 1e-6, rel=1e-6, abs=1e-7)


def test_programs_that_moved_can_be_solved(optim):
    problem = optim.programs(3, 5, 6, 2)
    moved = problem.moved(0.05)
    size = [float((new - old).abs().max()) for new, old in zip(moved.tensors, problem.tensors, strict=True)]
    assert all(0 < each < 1 for each in size[1:3])
    truth = optim.exact(moved.tensors, moved.weight)
    assert optim.kkt_residual(moved.tensors, truth.z, truth.y, truth.nu) < 1e-12


def test_speed_and_errors(optim):
    times, errors = optim.speed((5,), 3, 0)
    assert column(times, "library")[0] == column(errors, "library")[0] == "torchimplicit"
    assert all(float(cell) > 0 for cell in column(times, "ms fwd + bwd"))
    assert column(errors, "verdict")[0] == "met"
    assert float(column(errors, "solution")[0]) < 1e-9


def test_an_error_is_seen(optim):
    problem = optim.programs(3, 5, 6, 2)
    truth = optim.exact(problem.tensors, problem.weight)
    mine = optim.contestants(3, 5, 6, 2, say=False)[0]

    def off(*tensors):
        z, y, nu = mine.solve(*tensors)
        return z * (1 + 1e-6), y, nu

    cells = optim.accuracy(optim.Contestant("torchimplicit", off), problem, truth)
    assert float(cells[0]) == pytest.approx(1e-6, rel=0.1)
    assert cells[-1] != "met"


def test_a_library_that_is_missing_is_left_out(optim, monkeypatch, capsys):
    for name in ("moreau", "proxsuite.torch.qplayer", "qpth.qp", "cvxpylayers.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert [each.name for each in optim.contestants(3, 5, 6, 2)] == ["torchimplicit"]
    assert capsys.readouterr().out.count("is left out") == 4


def test_warm_starts(optim):
    table = optim.warm((5,), 3, (1e-3,), 0)
    assert column(table, "library")[0] == "torchimplicit"
    assert float(column(table, "apart")[0]) < 1e-9
    assert float(column(table, "ratio")[0]) > 0


def test_projections(optim):
    table = optim.projections(4, 6, 0)
    assert len(table.rows) == 7
    assert all(float(cell) < 1e-12 for cell in column(table, "off"))
    projections = importlib.import_module("benchmarks.programs.projections")
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    for convex in projections.sets(2):
        point = convex.project(x)
        nudge = 1e-3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert float(convex.off(x - point - nudge, point + nudge).min()) > 1e-6, convex.name
