import importlib
import importlib.util
import shutil
import sys
import time
import warnings

import pytest
import torch

import torchimplicit as ti

REASON = "torchdeq, the peer, is not installed: pip install -e '.[bench]'"


@pytest.fixture
def deq(monkeypatch):
    """The script as a module, its neighbours in reach; one torch thread."""
    warnings.simplefilter("ignore", SyntaxWarning)  # in torchdeq's docstrings, when it is compiled
    pytest.importorskip("torchdeq", reason=REASON)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("benchmarks.points.__main__")
    torch.set_num_threads(threads)


def column(table, name):
    return [row[table.header.index(name)] for row in table.rows]


def test_speed_reaches_the_tolerance_on_both_sides(deq):
    torch.manual_seed(0)
    table = deq.speed([deq.tanh_case(4, 16), deq.conv_case(2, 8, 16, 6)], 0)
    tolerances = [float(cell) for cell in column(table, "tol")]
    for tol, cell in zip(tolerances, column(table, "true residuals"), strict=True):
        assert all(float(residual) <= 1.1 * tol for residual in cell.split(" / "))
    for tol, cell in zip(tolerances, column(table, "gradient errors"), strict=True):
        assert not cell or all(float(error) <= 30 * tol for error in cell.split(" / "))
    assert set(column(table, "pass")) == {"forward", "fwd + bwd"}
    assert set(column(table, "our solver")) == {"anderson", "broyden"}


def test_evaluations_are_counted(deq):
    table = deq.evaluations(12, 1)
    for solver in ("anderson", "broyden"):
        assert all(10 < int(cell) < 150 for cell in column(table, f"torchimplicit {solver}"))
    assert column(table, "torchdeq anderson")[-1] == "400 (limit)"
    assert set(column(table, "verdict")) == {"met"}


def test_overhead_is_measured_on_every_clock(deq):
    before = torch.get_num_threads()
    table = deq.overhead(4, 16, 0)
    solvers = ["anderson", "broyden"] + ["broyden, compiled"] * bool(shutil.which("c++"))
    assert column(table, "clock") == len(solvers) * ["CPU time, 1 thread", "wall, 1 thread", "wall, 2 threads"]
    assert column(table, "solver") == [solver for solver in solvers for _ in range(3)]
    assert torch.get_num_threads() == before


def test_the_large_case_reaches_its_tolerance(deq):
    torch.manual_seed(0)
    table = deq.large(deq.conv_case(2, 8, 16, 6), (1e-2,), 0)
    assert {"torchimplicit anderson", "torchimplicit broyden", "torchdeq anderson"} <= set(column(table, "solver"))
    assert all(0 < float(residual) <= 1.1e-2 for residual in column(table, "true residual"))
    assert [cell != "" for cell in column(table, "verdict")] == [
        name.startswith("torchimplicit") for name in column(table, "solver")
    ]


def test_memory_is_flat_for_implicit_alone(deq):
    implicit, unrolled, _ = (float(cell) for cell in column(deq.memory(4, 32, (6, 12)), "ratio"))
    assert implicit <= 1.05 < unrolled


def test_accurate_gradients_are(deq):
    torch.manual_seed(0)
    single = deq.tanh_case(4, 16)
    table = deq.accurate([(single, 1e-4), (deq.double_case(single), 1e-5), (single, 1e-12)], 0)
    wanted, reached = column(table, "error wanted"), column(table, "reached")
    assert all(0 < float(got) <= float(want) for got, want in zip(reached[:4], wanted[:4], strict=True))
    assert column(table, "verdict")[4:] == ["not reached"] * 2


def test_kinds_of_gradients_differ_as_they_should(deq, tmp_path):
    torch.manual_seed(0)
    table = deq.modes([deq.tanh_case(4, 16)], 0, picture=tmp_path / "picture.png")
    error = dict(zip(column(table, "gradient"), map(float, column(table, "error")), strict=True))
    assert error["Implicit, GMRES 1e-04"] < 1e-3 < error["Shine 5"] + error["Phantom 5"]
    assert error["Implicit, GMRES 1e-04"] < error["Implicit, GMRES 1e-02"] < error["Implicit, GMRES 1e-01"]
    assert error["Shine 5"] < error["Shine 0"] < 1
    assert error["Phantom 5"] < error["Phantom 1"] < 1
    assert error["Implicit, Neumann 5"] == pytest.approx(error["Phantom 5"], rel=0.1)
    assert error["Unrolled"] == error["Unrolled, checkpoints"] < 1e-3
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_batches_are_narrowed_to_the_same_values(deq, monkeypatch):
    monkeypatch.setattr("torchimplicit.solve.samples.SMALL", 1)
    evaluated = []
    forward = sys.modules["benchmarks.points.batches"].GainCell.forward
    monkeypatch.setattr(
        sys.modules["benchmarks.points.batches"].GainCell,
        "forward",
        lambda cell, z, x, gain: evaluated.append(len(z)) or forward(cell, z, x, gain),
    )
    table = deq.batches(40, 16, 0)
    assert 4 in evaluated, "the slow tenth did not go on alone"
    assert all(float(gap) < 1e-5 for gap in column(table, "difference"))
    fast, slow = (list(map(int, column(table, f"steps, {which}"))) for which in ("most samples", "a tenth"))
    assert all(a < b for a, b in zip(fast, slow, strict=True))


def test_peers_meet_the_tolerance(deq):
    installed = [name for name in ("jaxopt", "xitorch") if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip("neither jaxopt nor xitorch is installed: pip install -e '.[peers]'")
    torch.manual_seed(0)
    table = deq.peers([deq.tanh_case(4, 16)], (1e-4,), 0)
    rows = [row for row in table.rows if "not installed" not in row[3]]
    assert {row[2].split()[0] for row in rows} == {"torchimplicit", "torchdeq", *installed}
    assert all(float(row[-2]) <= 1.1e-4 and float(row[-1]) < 3e-3 for row in rows)


def test_absent_peers_are_named(deq, monkeypatch):
    torch.manual_seed(0)
    for name in ("jax", "jaxopt", "xitorch", "xitorch.optimize"):
        monkeypatch.setitem(sys.modules, name, None)
    table = deq.peers([deq.tanh_case(4, 16)], (1e-4,), 0)
    assert [row[2] for row in table.rows if "not installed" in row[3]] == ["jaxopt", "xitorch"]
    assert len(table.rows) == 5


def test_quick_writes_nothing(deq, tmp_path, capsys):
    files = ["--output", str(tmp_path / "page.md"), "--picture", str(tmp_path / "picture.png")]
    deq.main(["--quick", "--only", "memory", "--threads", "1", *files])
    assert "Peak memory" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_page_says_how_it_came_about(deq, tmp_path, monkeypatch):
    monkeypatch.setattr(deq, "sections", lambda quick, picture=None: {"memory": lambda: deq.memory(4, 32, (2, 4))})
    page = tmp_path / "page.md"
    deq.main(["--threads", "1", "--output", str(page)])
    text = page.read_text()
    assert all(
        word in text for word in ("make bench", "torchdeq 0.1.0", "1 torch threads", "| torchimplicit, Implicit |")
    )


@pytest.mark.parametrize(
    ("ratio", "large", "small"), [(2.0, "met", "met"), (1.0, "50 % short", "met"), (3.0, "met", "50 % over")]
)
def test_verdicts(deq, ratio, large, small):
    table = importlib.import_module("benchmarks.kit.table")
    assert table.at_least(ratio, 2.0)[1] == large
    assert table.at_most(ratio, 2.0)[1] == small


def test_phases_are_told_apart(deq):
    measure = importlib.import_module("benchmarks.kit.measure")
    solution = ti.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(1, 1), torch.ones(1, 1))
    solving, differentiating = measure.phases({"a": (lambda: solution, lambda _: time.sleep(0.02))}, 0)["a"]
    assert solving < 19 < differentiating
