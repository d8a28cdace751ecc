"""The benchmark of paths runs, and measures what it says."""

import importlib
import warnings

import pytest
import torch


@pytest.fixture
def ode(monkeypatch):
    """The script as a module, its neighbours in reach; one torch thread."""
    pytest.importorskip("torchdiffeq", reason="torchdiffeq, the peer, is not installed: pip install -e '.[bench]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("benchmarks.paths.__main__")
    torch.set_num_threads(threads)


def column(table, name):
    return [row[table.header.index(name)] for row in table.rows]


def test_both_sides_solve_to_the_tolerance(ode):
    table = ode.speed(ode.cases(True)[:2], 0, False)
    rows = [row for row in table.rows if row[1] != "floor"]
    errors = [float(row[table.header.index("true error")]) for row in rows]
    assert max(errors) < 1e-4
    assert {"torchdiffeq", "eager"} <= set(column(table, "library"))
    assert all(int(cell) > 20 for cell in column(table, "NFE") if cell)


def test_an_unlike_batch_and_many_outputs(ode):
    assert column(ode.unlike(True, 0, False), "library")[:2] == ["torchdiffeq", "eager"]
    table = ode.outputs(True, 0)
    assert column(table, "verdict")[1]
    assert float(column(table, "growth of backward")[1][:-1]) != 0
