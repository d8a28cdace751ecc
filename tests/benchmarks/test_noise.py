"""The benchmark of noise runs, and measures what it says."""

import importlib

import torch


def test_every_way_of_asking_is_measured():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = importlib.import_module("benchmarks.paths.noise").noise(((4, 1), (4, 8)), 0, 2)
    torch.set_num_threads(threads)
    assert len(table.rows) == 4
    assert all(float(cell) > 0 for row in table.rows for cell in row[2:7])
    assert [bool(row[-1]) for row in table.rows] == [False, True, False, True]
