"""The copy memory task: its data, its networks, and its recipe."""

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.command.catalogue import shipped
from torchimplicit.train.data import CopyMemory
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Copying
from torchimplicit.train.networks import CopyingLSTM, CopyingTCN, CopyingTransformer
from torchimplicit.train.networks.sequences.copying import Waves

SMALL = {"blanks": 5, "symbols": 3, "batch_size": 8, "train_samples": 32, "eval_samples": 16}


def fit(module, data, epochs=1, **options):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_a_sequence_is_symbols_silence_and_the_order_to_repeat_them():
    seen, said = next(iter(CopyMemory(**SMALL).train_dataloader()))
    assert seen.shape == said.shape == (8, 11)
    symbols = seen[:, :3]
    assert symbols.min() >= 1
    assert symbols.max() <= 8
    assert (seen[:, 3:7] == 0).all()
    assert (seen[:, 7:] == 9).all()
    assert (said[:, :8] == 0).all()
    assert torch.equal(said[:, 8:], symbols)


def test_training_samples_are_fresh_and_the_others_fixed():
    data = CopyMemory(**SMALL)

    def first(loader):
        return next(iter(loader))[0]

    loader = data.train_dataloader()
    epoch = first(loader)
    loader.sampler.set_epoch(1)
    assert not torch.equal(first(loader), epoch)
    loader.sampler.set_epoch(0)
    assert torch.equal(first(loader), epoch)
    assert torch.equal(first(data.val_dataloader()), first(CopyMemory(**SMALL).val_dataloader()))
    assert not torch.equal(first(data.val_dataloader()), first(data.test_dataloader()))
    assert not torch.equal(first(data.val_dataloader()), first(CopyMemory(**SMALL, seed=1).val_dataloader()))


def test_the_first_epochs_are_easier():
    data, seen = CopyMemory(**SMALL, easy_blanks=2, easy_epochs=1), {"train": [], "val": []}

    class Recorder(Copying):
        def evaluate(self, stage, batch):
            seen[stage].append(batch[0].shape[1])
            return super().evaluate(stage, batch)

    fit(Recorder(CopyingLSTM(4, 4), symbols=3), data, epochs=2, num_sanity_val_steps=0)
    assert seen == {"train": [8] * 4 + [11] * 4, "val": [11] * 4}


def test_the_floor_is_the_loss_of_guessing():
    data = CopyMemory(**SMALL)
    _, said = next(iter(data.test_dataloader()))

    class Guess(torch.nn.Module):
        def forward(self, seen):
            sure = torch.nn.functional.one_hot(said, 10).float() * 1000
            sure[:, 8:] = torch.tensor([-1000.0, *[0.0] * 8, -1000.0])
            return sure

    loss = Copying(Guess(), symbols=3).evaluate("test", (said, said))
    assert float(loss) == pytest.approx(data.floor)
    assert CopyMemory().floor == pytest.approx(10 * math.log(8) / 420)


def test_accuracy_is_that_of_the_recalled_symbols():
    said = torch.tensor([[0, 0, 0, 4, 7]])
    guess = torch.nn.functional.one_hot(torch.tensor([[3, 3, 3, 4, 6]]), 10).float()
    module = Copying(torch.nn.Identity(), symbols=2)
    module.evaluate("test", (guess, said))
    assert float(module.metrics["test_metrics"].compute()["test/accuracy"]) == 0.5


@pytest.mark.parametrize(
    "build",
    [
        lambda: CopyingTransformer(8, length=11, solver=ti.Anderson(rtol=1e-5, max_steps=200)),
        lambda: CopyingLSTM(8, 8),
        lambda: CopyingTCN(6, 2, 3),
    ],
)
def test_networks_say_something_at_every_position_and_look_at_the_past_alone(build):
    network = build()
    seen, _ = next(iter(CopyMemory(**SMALL).train_dataloader()))
    other = seen.clone()
    other[:, 6:] = 5
    with torch.no_grad():
        logits, changed = network(seen), network(other)
    assert logits.shape == (8, 11, 10)
    assert (logits[:, :6] - changed[:, :6]).abs().max() <= 1e-3
    assert (logits[:, 6:] - changed[:, 6:]).abs().max() > 1e-2


def test_the_equilibrium_converges_forward_and_backward():
    network = CopyingTransformer(8, length=11)
    seen, said = next(iter(CopyMemory(**SMALL).train_dataloader()))
    Copying(network, symbols=3).evaluate("train", (seen, said)).backward()
    assert network.equilibrium.report.converged
    assert network.equilibrium.report.backward.converged
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_it_starts_with_attention_to_all_alike():
    cell = CopyingTransformer(length=30).equilibrium.cell
    assert (cell.distances.bias == 0).all()
    names = [name for name, _ in cell.named_parameters() if "distances" in name]
    assert names == ["distances.parametrizations.bias.original"]


def test_waves_can_single_out_one_distance():
    waves = Waves(420).waves.double()
    table = waves[:, 410] @ waves
    assert int(table.argmax()) == 410
    assert table[410] - table[[*range(410), *range(411, 420)]].max() > 3


def test_the_tcn_sees_all_of_the_past():
    network, seen = CopyingTCN(), torch.zeros(1, 11, 420)
    first = network.body(torch.zeros(1, 11, 420))[..., -1]
    seen[..., 0] = 100
    assert (network.body(seen)[..., -1] - first).abs().max() > 0


def test_the_rivals_are_of_equal_size():
    sizes = [parameters(network) for network in (CopyingTransformer(), CopyingLSTM(), CopyingTCN())]
    assert max(sizes) <= 1.05 * min(sizes)


def test_training_learns_to_recall():
    data = CopyMemory(blanks=6, symbols=2, batch_size=32, train_samples=1600, eval_samples=64)
    module = Copying(CopyingTransformer(16, length=data.length), symbols=2, learning_rate=5e-3)
    trainer = fit(module, data, epochs=3, gradient_clip_val=1.0)
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.9
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(
    ("network", "data", "message"),
    [
        (CopyingTransformer(8, length=10), SMALL, r"11 positions.*room for 10.*--model.network.length 11"),
        (CopyingLSTM(8, 8, vocabulary=9), SMALL, r"vocabulary of 10, the network one of 9"),
        (CopyingLSTM(8, 8), SMALL | {"symbols": 4}, r"Copying\(symbols=3\): the data has 4 symbols"),
    ],
)
def test_what_does_not_fit_is_said_before_training(network, data, message):
    with pytest.raises(UsageError, match=message):
        fit(Copying(network, symbols=3), CopyMemory(**data))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CopyMemory(blanks=0), r"CopyMemory\(blanks=0\): expected an integer >= 1"),
        (
            lambda: CopyMemory(easy_blanks=500, easy_epochs=1),
            r"CopyMemory\(easy_blanks=500\): expected no more than blanks=400",
        ),
        (lambda: CopyMemory(easy_epochs=-1), r"CopyMemory\(easy_epochs=-1\): expected an integer >= 0"),
        (lambda: Copying(CopyingLSTM(), symbols=0), r"Copying\(symbols=0\): expected an integer >= 1"),
        (lambda: Copying(CopyingLSTM(), beta2=1.0), r"Copying\(beta2=1.0\): expected a number in"),
        (lambda: CopyingLSTM(hidden=0), r"CopyingLSTM\(hidden=0\): expected an integer >= 1"),
        (lambda: CopyingTCN(blocks=0), r"CopyingTCN\(blocks=0\): expected an integer >= 1"),
        (lambda: CopyingTransformer(width=9), r"TransformerCell\(heads=2\): expected a divisor"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_recipe_runs(capsys):
    from torchimplicit.train.command.cli import main

    assert "copy-memory" in shipped()
    words = ["fit", "--config", "copy-memory", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    words += [
        "--data.blanks",
        "5",
        "--data.easy_blanks",
        "3",
        "--data.train_samples",
        "32",
        "--data.eval_samples",
        "16",
    ]
    assert main([*words, "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]) in (0, None)
    assert list(Path("runs/copy-memory").rglob("best.ckpt"))
