import importlib

import pytest
import torch


@pytest.fixture
def script(monkeypatch):
    """A script of benchmarks/ as a module, its neighbours in reach; one torch thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_memory_is_flat_in_the_steps(script, monkeypatch):
    models = script("benchmarks.points.models")
    monkeypatch.setattr(models, "STEPS", (1, 7))  # what judges the gradient is a good part of a single step
    network, x = models.models()["ResNet-DEQ"]
    result = models.measured(network, x[:1])
    assert result.implicit[0] == result.implicit[1]
    assert result.unrolled[1] > 4 * result.unrolled[0] > 0


def test_every_adjoint_is_held_against_the_explicit_network(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training = script("benchmarks.training.__main__")
    monkeypatch.setattr(training, "ADJOINTS", {name: training.ADJOINTS[name] for name in ("Implicit", "Shine")})
    explicit = "--model.network.width 4"
    table = training.compare(training.Rivalry("digits", explicit, 0.1, "accuracy", 2), seconds=0)
    assert [row[0] for row in table.rows] == [
        "explicit",
        *(f"{name}{how}" for name in ("Implicit", "Shine") for how in ("", ", penalty")),
    ]
    assert table.rows[0][3] == "1.00"
    assert all(float(row[2]) >= 0 and 0 <= float(row[-1]) <= 1 for row in table.rows)
