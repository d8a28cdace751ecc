"""A run that was interrupted, wherever, goes on as if it had not been: to the bit."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import torchimplicit as ti
from torchimplicit.train.data import ImageData, Images, Splits
from torchimplicit.train.modules import Classifier, Curriculum

EPOCHS, BATCHES, BATCH = 3, 7, 4


class Pictures(ImageData):
    """Moved and mirrored at random."""

    classes = 3

    def load(self):
        generator = torch.Generator().manual_seed(3)
        images = torch.randint(0, 256, (BATCHES * BATCH, 1, 4, 4), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (len(images),), generator=generator)
        train = Images(images, labels, 127.0, 80.0, shift=1, flip=True)
        return Splits(train, *(Images(images[:8], labels[:8], 127.0, 80.0),) * 2)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(16, 16), ti.nn.VariationalDropout(0.3)

    def forward(self, z, x):
        return torch.tanh(self.dropout(0.3 * self.linear(z)) + x)


class Network(nn.Module):
    classes = 3

    def __init__(self):
        super().__init__()
        self.equilibrium = ti.nn.DEQ(Cell(), ti.Anderson(rtol=1e-4, max_steps=30), on_failure="ignore")
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, x):
        return self.head(self.equilibrium(x.flatten(1)))


class Losses(pl.Callback):
    """Notes the loss of every batch by its place, and refuses to see two for the same."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert (trainer.current_epoch, batch_idx) not in self.seen
        self.seen[trainer.current_epoch, batch_idx] = float(outputs["loss"])


class InterruptionError(RuntimeError):
    pass


class Interrupt(pl.Callback):
    """Raises at a hook of an epoch and a batch, or of an epoch."""

    def __init__(self, hook, epoch, batch=None):
        self.epoch, self.batch = epoch, batch
        setattr(self, hook, self.strike)

    def strike(self, trainer, *arguments):
        batch = trainer.fit_loop.epoch_loop.batch_idx
        if trainer.current_epoch == self.epoch and self.batch in (None, batch) and not trainer.sanity_checking:
            raise InterruptionError


def run(callbacks, resume=None, accumulate=1, seed=0, **options):
    pl.seed_everything(seed, verbose=False)
    curriculum = Curriculum(unrolled_steps=4, depth=3, loose_rtol=1e-2, tighten_steps=5)
    module = Classifier(
        Network(), classes=3, learning_rate=1e-2, warmup_steps=3, curriculum=curriculum, jacobian_penalty=0.1,
        penalty_every=2,
    )  # fmt: skip
    losses = Losses()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        accumulate_grad_batches=accumulate,
        callbacks=[losses, *callbacks],
        **options,
    )
    try:
        trainer.fit(module, datamodule=Pictures(batch_size=BATCH), ckpt_path=resume, weights_only=bool(resume) or None)
    except InterruptionError:
        pass
    else:
        assert trainer.current_epoch == EPOCHS
    return losses.seen, {name: tensor.clone() for name, tensor in module.state_dict().items()}, trainer.global_step


def saving(**options):
    return ModelCheckpoint(".", filename="last", enable_version_counter=False, **options)


PLACES = {
    "in the middle of an epoch": ("on_after_backward", 1, 4),
    "in the first batch of an epoch": ("on_train_batch_start", 1, 0),
    "in the last batch of an epoch": ("on_before_backward", 1, BATCHES - 1),
    "between two batches": ("on_train_batch_end", 0, 3),
    "in validation": ("on_validation_batch_start", 1),
    "at the end of an epoch": ("on_train_epoch_end", 1),
    "at the start of an epoch": ("on_train_epoch_start", 1),
}


@pytest.fixture(scope="module")
def straight():
    torch.set_num_threads(1)
    return {k: run([], accumulate=k, enable_checkpointing=False) for k in (1, 3)}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:Be aware that when using .ckpt_path")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(place, accumulate, straight):
    expected, weights, steps = straight[accumulate]
    before, *_ = run([Interrupt(*PLACES[place]), saving(save_on_exception=True)], accumulate=accumulate)
    assert len(before) < EPOCHS * BATCHES
    after, final, count = run([saving()], resume="last.ckpt", accumulate=accumulate, seed=77)
    assert after, "nothing was left to do"
    assert before == {each: expected[each] for each in before}
    assert after == {each: expected[each] for each in after}
    assert expected.keys() == before.keys() | after.keys()
    assert count == steps == EPOCHS * math.ceil(BATCHES / accumulate)
    for name, tensor in weights.items():
        assert torch.equal(final[name], tensor), name


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:Be aware that when using .ckpt_path")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(accumulate, straight):
    expected, weights, _ = straight[accumulate]
    often = ModelCheckpoint(".", "{step}", every_n_train_steps=2, save_top_k=-1, auto_insert_metric_name=False)
    run([often], accumulate=accumulate, val_check_interval=3)
    for step in (2, 4, 6):
        after, final, _ = run([], resume=f"{step}.ckpt", accumulate=accumulate, seed=77, enable_checkpointing=False)
        assert after == {each: expected[each] for each in after}
        assert all(torch.equal(final[name], tensor) for name, tensor in weights.items())


def test_another_seed_is_another_run(straight):
    other, *_ = run([], seed=1, enable_checkpointing=False)
    assert other != straight[1][0], "the random numbers make a difference that resuming could miss"


def test_batches_leave_the_generator_alone_and_differ_by_place_and_epoch():
    loader = Pictures(batch_size=BATCH).train_dataloader()
    state = torch.get_rng_state()
    batches = iter(loader)
    torch.set_rng_state(state)
    first, second = next(batches)[0], next(batches)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    torch.manual_seed(9)
    assert torch.equal(next(iter(loader))[0], first)
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first)
