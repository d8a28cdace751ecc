"""Flows of vectors by flow matching, and their last steps by likelihood."""

import math
import re

import lightning.pytorch as pl
import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import Density
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import FlowMatching
from torchimplicit.train.networks import DenseFlow


def test_flow_matching_learns_the_density():
    torch.manual_seed(0)
    module = FlowMatching(DenseFlow(2, hidden=16, layers=1), learning_rate=0.02)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    data = torch.randn(2000, 2) * torch.tensor([2.0, 0.5]) + 1
    with torch.no_grad():
        before = float(module.evaluate("val", (data[:200],)))
    for _ in range(300):
        optimizer.zero_grad()
        module.evaluate("train", (data[torch.randint(2000, (200,))],)).backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        after = float(module.evaluate("val", (data[:200],)))
    best = math.log(2 * math.pi) + 1  # the entropy: the standard deviations' product is 1
    assert after < best + 0.15 < before


class Steps(pl.Callback):
    """Keeps the rate and the loss of every step, and how often the field was asked in it."""

    def __init__(self):
        self.rates, self.losses, self.asked, self.calls = [], [], [], 0

    def on_fit_start(self, trainer, pl_module):
        pl_module.network.flow.field.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1

    def on_train_batch_start(self, trainer, *_):
        self.calls = 0
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(outputs["loss"]))
        self.asked.append(self.calls)


def matched(steps=None, epochs=2, **options):
    """Four steps an epoch of a small flow, and the module."""
    module = FlowMatching(DenseFlow(2, hidden=8, layers=1), learning_rate=0.02, **options)
    watch, data = steps or Steps(), Density(samples=40, eval_samples=10, batch_size=10)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        enable_checkpointing=False, callbacks=[watch],
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    trainer.fit(module, datamodule=data)
    return module, watch


def test_the_last_steps_of_flow_matching_are_by_likelihood():
    _, watch = matched(likelihood_steps=3, likelihood_rate=0.005)
    assert watch.asked[:5] == [1] * 5, "flow matching asks the field once"
    assert min(watch.asked[5:]) > 6, "a step of Tsit5 asks it more than six times"
    expected = [0.02 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)]
    expected += [0.005 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)]
    assert watch.rates == pytest.approx(expected)


def test_without_steps_by_likelihood_nothing_is_solved_in_training():
    _, watch = matched()
    assert watch.asked == [1] * 8
    assert watch.rates == pytest.approx([0.02 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"likelihood_steps": 8}, r"likelihood_steps=8\): the run has 8 steps. Expected more"),
        ({"likelihood_steps": 3, "epochs": -1}, "the run has inf steps.*--trainer.max_epochs"),
    ],
)
def test_a_run_that_is_too_short_for_its_steps_by_likelihood_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        matched(**options)


def test_steps_by_likelihood_may_have_a_solver_of_their_own():
    """Two steps of `Tsit5` in training; measured, and afterwards, it is the network's own."""
    coarse = ti.Tsit5(control=ti.Fixed(0.5))
    module, watch = matched(likelihood_steps=3, likelihood_solver=coarse, targets="batch")
    assert watch.asked[5:] == [watch.asked[5]] * 3, "as many evaluations in every step"
    assert module.network.flow.solver == DenseFlow(2).flow.solver
    assert watch.asked[5] < matched(likelihood_steps=3)[1].asked[5]


def test_targets_of_the_batch_are_asked_for():
    x, found = torch.randn(20, 2), []
    for targets in ("own", "batch", "own"):
        torch.manual_seed(0)
        module = FlowMatching(DenseFlow(2, hidden=8, layers=1), targets=targets)
        found.append(float(module.evaluate("train", (x,)).detach()))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("options", [{"likelihood_steps": -1}, {"likelihood_rate": 0.0}, {"likelihood_rate": math.nan}])
def test_impossible_steps_by_likelihood_are_refused(options):
    with pytest.raises(ValueError, match=f"FlowMatching\\({next(iter(options))}"):
        FlowMatching(DenseFlow(2, hidden=8, layers=1), **options)


def test_the_flow_of_the_plane_trains_by_matching(capsys):
    small = "--config flow2d-matching --model.network.hidden 8 --data.samples 1000 --data.eval_samples 200 "
    small += "--model.likelihood_steps 1 --trainer.enable_progress_bar false "
    short = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.log_every_n_steps 1"
    assert main(f"fit {small} {short}".split()) == 0
    assert main(f"test {small}".split()) == 0
    assert re.search(r"test/nll\W+([\d.]+)", capsys.readouterr().out)
