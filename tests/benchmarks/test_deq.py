import importlib
import warnings
from pathlib import Path

import pytest
import torch

REASON = "torchdeq, the peer, is not installed: pip install -e '.[bench]'"
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def deq(monkeypatch):
    """The script as a module, its neighbours in reach; one torch thread."""
    warnings.simplefilter("ignore", SyntaxWarning)  # in torchdeq's docstrings, when it is compiled
    pytest.importorskip("torchdeq", reason=REASON)
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("deq")
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


def test_evaluations_are_counted(deq):
    table = deq.evaluations(12, 1)
    assert all(10 < int(cell) < 150 for cell in column(table, "torchimplicit"))
    assert column(table, "torchdeq anderson")[-1] == "400 (limit)"
    assert set(column(table, "verdict")) == {"met"}


def test_overhead_is_measured_on_every_clock(deq):
    before = torch.get_num_threads()
    table = deq.overhead(4, 16, 0)
    assert column(table, "clock") == ["CPU time, 1 thread", "wall, 1 thread", "wall, 2 threads"]
    assert torch.get_num_threads() == before


def test_memory_is_flat_for_implicit_alone(deq):
    implicit, unrolled, _ = (float(cell) for cell in column(deq.memory(4, 32, (6, 12)), "ratio"))
    assert implicit <= 1.05 < unrolled


def test_quick_writes_nothing(deq, tmp_path, capsys):
    deq.main(["--quick", "--only", "memory", "--threads", "1", "--output", str(tmp_path / "page.md")])
    assert "Peak memory" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_page_says_how_it_came_about(deq, tmp_path, monkeypatch):
    monkeypatch.setattr(deq, "sections", lambda quick: {"memory": lambda: deq.memory(4, 32, (2, 4))})
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
    table = importlib.import_module("table")
    assert table.at_least(ratio, 2.0)[1] == large
    assert table.at_most(ratio, 2.0)[1] == small
