"""The moving average of weights: what it is, what is validated, and that a run resumes to the bit wherever it stops."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.train.test_resume import BATCH, BATCHES, EPOCHS, Interrupt, Pictures, saving
from torchimplicit.train.callbacks import WeightAverage
from torchimplicit.train.modules import Classifier


def network():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def run(callbacks=(), resume=None, seed=0, decay=0.8, start=0, epochs=EPOCHS, accumulate=1):
    """The module, the average and the error, if one struck."""
    pl.seed_everything(seed, verbose=False)
    module, average = Classifier(network(), classes=3, learning_rate=0.05), WeightAverage(decay, start)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        accumulate_grad_batches=accumulate, callbacks=[average, *callbacks],
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
    )  # fmt: skip
    stopped = None
    try:
        trainer.fit(module, datamodule=Pictures(batch_size=BATCH), ckpt_path=resume, weights_only=bool(resume) or None)
    except RuntimeError as error:
        stopped = error
    return module, average, stopped


class Watch(pl.Callback):
    """Keeps the weights after every step, and those that are validated."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(pl_module.network[1].weight.detach().clone())

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            self.validated.append(pl_module.network[1].weight.detach().clone())


@pytest.mark.parametrize("start", [0, 5])
def test_the_average_is_that_of_the_formula_and_is_what_is_validated_and_kept(start):
    watch = Watch()
    module, *_ = run([watch], start=start)
    assert len(watch.steps) == EPOCHS * BATCHES
    average, expected = None, []
    for step, weight in enumerate(watch.steps):
        if step >= start:
            average = weight if average is None else 0.8 * average + 0.2 * weight
        if step % BATCHES == BATCHES - 1:
            expected += [average] * 2  # two batches of validation
    assert len(watch.validated) == len(expected)
    for got, wanted in zip(watch.validated, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(module.network[1].weight.detach(), average)
    assert not torch.allclose(average, watch.steps[-1])


PLACES = {
    "in the middle of an epoch": ("on_after_backward", 1, 4),
    "in the last batch of an epoch": ("on_before_backward", 1, BATCHES - 1),
    "between the optimiser's step and the end of the batch": ("on_train_batch_end", 1, 3),
    "in validation": ("on_validation_batch_start", 1),
    "at the end of validation": ("on_validation_end", 1),
    "at the start of an epoch": ("on_train_epoch_start", 1),
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:Be aware that when using .ckpt_path")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(place, first, accumulate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected, *_ = run(accumulate=accumulate)
    strike, save = Interrupt(*PLACES[place]), saving(save_on_exception=True)
    average = WeightAverage(0.8)
    callbacks = [strike, average, save] if first else [average, strike, save]
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        accumulate_grad_batches=accumulate, callbacks=callbacks,
    )  # fmt: skip
    with pytest.raises(RuntimeError):
        trainer.fit(Classifier(network(), classes=3, learning_rate=0.05), datamodule=Pictures(batch_size=BATCH))
    module, _, stopped = run([saving()], resume="last.ckpt", seed=77, accumulate=accumulate)
    assert stopped is None
    for name, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_the_weights_of_a_checkpoint_are_the_average(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, *_ = run([saving()])
    content = torch.load("last.ckpt", weights_only=True)
    name = "network.1.weight"
    assert torch.equal(content["state_dict"][name], module.state_dict()[name])
    assert not torch.equal(content["current_model_state"][name], content["state_dict"][name])


def test_a_decay_of_nothing_is_no_average():
    plain, *_ = run(decay=0.0)
    other, *_ = run(decay=0.9)
    assert not torch.equal(plain.network[1].weight, other.network[1].weight)
