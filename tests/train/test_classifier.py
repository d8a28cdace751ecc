import csv
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

import torchimplicit as ti
from torchimplicit.core.status import ConvergenceWarning, Report, Status
from torchimplicit.train.data import Digits
from torchimplicit.train.modules import Classifier, SolveMeter
from torchimplicit.train.networks import DigitsNetwork


def fit(module, epochs=2, **options):
    options = {"limit_train_batches": 6, "limit_val_batches": 1, "log_every_n_steps": 3} | options
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=CSVLogger("."),
        **options,
    )
    trainer.fit(module, datamodule=Digits(batch_size=16))
    return trainer


def test_training_logs_what_the_layers_report():
    trainer = fit(Classifier(DigitsNetwork(width=8)))
    logged = read(trainer)
    names = {f"train/{way}_{what}" for way in ("forward", "backward") for what in ("steps", "residual", "unconverged")}
    names |= {f"{stage}/{what}" for stage in ("train", "val") for what in ("loss", "accuracy")}
    names |= {"val/forward_steps", "val/forward_residual", "val/forward_unconverged"}
    found = {name for row in logged for name, value in row.items() if value not in ("", None)}
    assert names <= found
    training = [row for row in logged if row.get("train/loss") not in ("", None)]
    assert len(training) == 4, "12 steps, one line every 3"
    assert all(float(row["train/forward_steps"]) > 1 and float(row["train/backward_steps"]) > 1 for row in training)
    assert {"loss", "steps", "residual", "val/accuracy"} <= trainer.progress_bar_metrics.keys()


def read(trainer):
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_learns():
    module = Classifier(DigitsNetwork(width=16), learning_rate=1e-2)
    trainer = fit(module, epochs=3, limit_train_batches=1.0, limit_val_batches=1.0, log_every_n_steps=20)
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.85


def test_the_rate_falls_to_zero_and_adjoints_without_a_backward_solve_log_none():
    module = Classifier(DigitsNetwork(width=8, adjoint=ti.Unrolled()), learning_rate=1e-2)
    trainer = fit(module)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert "train/backward_steps" not in trainer.callback_metrics
    assert "train/forward_steps" in trainer.callback_metrics


def test_an_endless_run_keeps_its_rate():
    module = Classifier(DigitsNetwork(width=8), learning_rate=1e-2)
    trainer = fit(module, epochs=-1, callbacks=[StopAfter(1)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-2


class StopAfter(pl.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_what_does_not_converge_is_said_once_an_epoch():
    module = Classifier(DigitsNetwork(width=8, solver=ti.Picard(max_steps=1)))
    with pytest.warns(ConvergenceWarning, match="did not converge") as caught:
        fit(module, epochs=2, num_sanity_val_steps=0)
    messages = [str(w.message) for w in caught if isinstance(w.message, ConvergenceWarning)]
    assert [message.partition(":")[0] for message in messages] == [
        "val, epoch 0",
        "train, epoch 0",
        "val, epoch 1",
        "train, epoch 1",
    ]
    assert "100 % of its forward solves" in messages[1]


def report(steps, status, residual):
    return Report(torch.tensor(status), torch.tensor(steps), torch.tensor(residual), nfev=1)


def test_the_meter_sums_up_solves():
    meter = SolveMeter()
    assert meter.read() == {}
    meter.add(report([1, 3], [0, 0], [0.1, 0.2]))
    meter.add(report([8], [int(Status.MAX_STEPS)], [0.5]))
    figures = meter.read()
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(
        {"steps": 4.0, "residual": 0.5, "unconverged": 1 / 3, "evaluations": 1.0}
    )
    assert meter.read() == {}
    meter.add(report([2, 2, 2], [0, 0, 0], [0.1, 0.1, math.nan]))
    assert meter.finish_epoch() == pytest.approx(1 / 6)
    assert meter.finish_epoch() == 0.0
