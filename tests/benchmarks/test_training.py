import importlib
import math

import pytest
import torch

pytest.importorskip("lightning", reason="the recipes need it: pip install -e '.[train]'")
SMALL = "--data Digits --data.batch_size 32 --trainer.limit_train_batches 3 --model.network.strides [2]"


@pytest.fixture
def training(monkeypatch, tmp_path):
    """The script as a module, its neighbours in reach; one torch thread, an empty folder to write into."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("benchmarks.training.__main__")
    torch.set_num_threads(threads)


def column(table, name):
    return [row[table.header.index(name)] for row in table.rows]


def test_whole_trainings_run_to_their_accuracy(training):
    narrow = "Phantom, 32 inner channels, loose"
    chosen = {name: training.WHOLE[name] for name in ("explicit, 32 channels, 1 block", narrow)}
    table = training.whole(chosen, 2, SMALL)
    assert column(table, "how") == list(chosen)
    explicit, equilibrium = (int(count.replace(",", "")) for count in column(table, "parameters"))
    assert equilibrium == explicit + 2 * 32  # a cell of 32 inner channels has one norm more than a block
    assert all(0 <= float(seconds) < 60 for seconds in column(table, "s an epoch"))  # four steps may round to zero
    assert all(0 < float(accuracy) < 1 for accuracy in column(table, "accuracy"))
    without, steps = column(table, "forward steps")
    assert without == "-"
    assert float(steps) > 1


def test_the_dearest_whole_trainings_come_last(training):
    names = list(training.whole_contestants())
    assert names[-6:] == ["Phantom, penalty", "Shine, penalty", "Implicit, penalty", "Phantom", "Shine", "Implicit"]
    assert len(names) == len(training.WHOLE) + 6


def test_shares_of_a_step_add_up(training):
    module, data, figures = training.trained("mnist-conv", f"--trainer.max_epochs 1 {SMALL}")
    before = [weight.clone() for weight in module.parameters()]
    found = training.shares(module, training.stepper(module, data))
    assert math.isclose(sum(share for name, share in found.items() if name != training.FORWARD), 1, abs_tol=1e-6)
    assert all(0 < share < 1 for share in found.values())
    assert found["convolutions"] > found["optimiser"]
    assert figures["seconds"] > 0
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
