"""What the base of the Lightning modules adds to training: the penalty, the curriculum, checks of what fits."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import Digits
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Classifier, Curriculum, EquilibriumModule
from torchimplicit.train.networks import DigitsNetwork


def trained(module, steps=6, callbacks=(), **options):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, datamodule=Digits(batch_size=16))
    return trainer


class Solves(pl.Callback):
    """Notes what the layer solves with, and how it went."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        layer = pl_module.network.equilibrium
        self.seen.append((type(layer.solver).__name__, layer.solver.rtol, type(layer.adjoint).__name__))


def test_the_curriculum_unrolls_then_tightens_then_leaves_the_layers_alone():
    torch.manual_seed(0)
    network = DigitsNetwork(width=8, solver=ti.Anderson(rtol=1e-4))
    curriculum = Curriculum(unrolled_steps=2, depth=3, loose_rtol=1e-2, tighten_steps=2)
    solves = Solves()
    module = Classifier(network, curriculum=curriculum)
    trained(module, callbacks=[solves])
    names, rtols, adjoints = zip(*solves.seen, strict=True)
    assert names == ("Picard",) * 2 + ("Anderson",) * 4
    assert adjoints == ("Unrolled",) * 2 + ("Implicit",) * 4
    assert rtols[2:] == pytest.approx((1e-2, 1e-3, 1e-4, 1e-4))


def test_an_unrolled_layer_takes_depth_steps_and_fails_nobody():
    torch.manual_seed(0)
    module = Classifier(DigitsNetwork(width=8), curriculum=Curriculum(unrolled_steps=9, depth=2))
    trained(module, steps=3)
    assert module.network.equilibrium.report.nfev <= 3
    assert module.meters["train/forward"].read() == {}


def test_evaluation_solves_as_the_layer_says():
    torch.manual_seed(0)
    module = Classifier(DigitsNetwork(width=8), curriculum=Curriculum(unrolled_steps=99))
    trainer = trained(module, steps=2)
    assert isinstance(module.network.equilibrium.adjoint, ti.Unrolled)
    trainer.test(module, datamodule=Digits(), verbose=False)
    assert isinstance(module.network.equilibrium.adjoint, ti.Implicit)
    assert module.network.equilibrium.report.converged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unrolled_steps": -1}, "unrolled_steps=-1"),
        ({"depth": 0}, "depth=0"),
        ({"loose_rtol": 2.0}, "loose_rtol=2.0"),
        ({"tighten_steps": 0}, "tighten_steps=0"),
    ],
)
def test_an_impossible_curriculum_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Curriculum(**options)


def norm_of_jacobian(network):
    """Of the cell, Frobenius, averaged over random inputs."""
    torch.manual_seed(5)
    x = torch.rand(16, 1, 8, 8)
    layer, inputs = network.equilibrium, network.encoder(x)
    with torch.no_grad():
        z = layer(inputs)
    torch.manual_seed(6)
    return float(ti.nn.jacobian_penalty(layer, z, inputs, probes=64).detach())


def test_the_penalty_makes_the_jacobian_small():
    def after(penalty):
        torch.manual_seed(0)
        module = Classifier(DigitsNetwork(width=8), learning_rate=1e-2, jacobian_penalty=penalty)
        trained(module, steps=80)
        return norm_of_jacobian(module.network)

    assert after(20.0) < 0.8 * after(0.0)


def test_the_penalty_is_due_every_few_steps(monkeypatch):
    calls = []
    kind = "torchimplicit.train.modules.equilibrium.jacobian_penalty"
    monkeypatch.setattr(kind, lambda layer, value, *inputs: calls.append(value.requires_grad) or value.sum() * 0)
    trained(Classifier(DigitsNetwork(width=8), jacobian_penalty=1.0, penalty_every=3), steps=7)
    assert calls == [False] * 3, "steps 0, 3, 6, at the detached fixed point"


def test_the_rate_rises_before_it_falls():
    module = Classifier(DigitsNetwork(width=8), learning_rate=1.0, warmup_steps=3)
    trainer = trained(module, steps=1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5)


def test_all_of_it_is_reached_from_the_command_line():
    words = ["fit", "--config", "digits", "--model.network.width", "8", "--trainer.max_epochs", "1"]
    words += ["--model.jacobian_penalty", "0.5", "--model.curriculum.unrolled_steps", "1"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.limit_train_batches", "2"]
    words += ["--trainer.log_every_n_steps", "1"]
    assert main(words) == 0
    config = Path("runs/digits/version_0/config.yaml").read_text()
    assert "jacobian_penalty: 0.5" in config
    assert "unrolled_steps: 1" in config


def test_class_counts_that_differ_are_refused_before_training():
    network = DigitsNetwork(width=8)
    network.classes = 10
    with pytest.raises(UsageError, match=r"classes=7.*network has 10"):
        Classifier(network, classes=7)
    with pytest.raises(UsageError, match=r"classes=7.*data has 10"):
        trained(Classifier(DigitsNetwork(width=8), classes=7))


def test_a_module_without_a_file_of_predictions_says_so():
    with pytest.raises(UsageError, match="torchimplicit report"):
        EquilibriumModule(DigitsNetwork(width=8)).prediction_writer(Path())


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="penalty_every=0"):
        Classifier(DigitsNetwork(width=8), penalty_every=0)
    with pytest.raises(ValueError, match="jacobian_penalty=-1"):
        Classifier(DigitsNetwork(width=8), jacobian_penalty=-1)
