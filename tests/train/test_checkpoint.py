import lightning.pytorch as pl
import pytest
import torch

from torchimplicit.train import CheckpointError, load
from torchimplicit.train.checkpoint import check, read
from torchimplicit.train.data import Digits
from torchimplicit.train.modules import Classifier
from torchimplicit.train.networks import DigitsNetwork, MNISTNetwork


class StopAfter(pl.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def trained(epochs=4, stop=None, resume=None, recipe="digits"):
    pl.seed_everything(0, verbose=False)
    module = Classifier(DigitsNetwork(width=8), recipe=recipe)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=1,
        limit_train_batches=5,
        callbacks=[StopAfter(stop)] if stop else [],
    )
    trainer.fit(module, datamodule=Digits(batch_size=16), ckpt_path=resume)
    return trainer, module


@pytest.mark.filterwarnings("ignore:.*log_every_n_steps")
def test_a_resumed_run_takes_the_same_steps():
    _, straight = trained()
    trainer, _ = trained(stop=2)
    assert trainer.current_epoch == 2
    trainer.save_checkpoint("half.ckpt")
    _, resumed = trained(resume="half.ckpt")
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def save(module, path, **extra):
    content = {"state_dict": module.state_dict(), **extra}
    module.on_save_checkpoint(content)
    torch.save(content, path)


def test_a_checkpoint_of_another_recipe_is_refused():
    save(Classifier(DigitsNetwork(), recipe="digits"), "digits.ckpt")
    module = Classifier(MNISTNetwork(), recipe="mnist")
    words = (
        r"got a checkpoint of recipe 'digits' \(DigitsNetwork\), expected one of recipe 'mnist' \(MNISTNetwork\).*Try"
    )
    with pytest.raises(CheckpointError, match=words):
        check(read("digits.ckpt"), module)
    with pytest.raises(CheckpointError, match=words):
        module.on_load_checkpoint(read("digits.ckpt"))


def test_a_checkpoint_of_another_width_is_refused():
    save(Classifier(DigitsNetwork(width=8)), "narrow.ckpt")
    with pytest.raises(
        CheckpointError, match=r"narrow.*tensors do not fit DigitsNetwork.*got \(.*8.*\), expected \(.*16"
    ):
        check(read("narrow.ckpt"), Classifier(DigitsNetwork(width=16)), "narrow.ckpt")


def test_what_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read("absent.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text.ckpt: cannot read this as a checkpoint"):
        read("text.ckpt")
    torch.save([1, 2], "list.ckpt")
    with pytest.raises(CheckpointError, match="got a list, expected a checkpoint, a dict"):
        read("list.ckpt")


def test_a_checkpoint_from_outside_the_command_says_how_to_load_it():
    save(Classifier(DigitsNetwork()), "mine.ckpt")
    with pytest.raises(CheckpointError, match=r"mine.ckpt: does not say how to build its model.*load_state_dict"):
        load("mine.ckpt")


def test_load_builds_model_and_data_again():
    module = Classifier(DigitsNetwork(width=8), recipe="digits")
    module.config = {
        "model": {
            "class_path": "torchimplicit.train.modules.Classifier",
            "init_args": {
                "recipe": "digits",
                "network": {
                    "class_path": "torchimplicit.train.networks.DigitsNetwork",
                    "init_args": {"width": 8, "solver": {"class_path": "torchimplicit.Newton"}},
                },
            },
        },
        "data": {"class_path": "torchimplicit.train.data.Digits", "init_args": {"batch_size": 5}},
    }
    save(module, "whole.ckpt")
    again, data = load("whole.ckpt")
    assert type(again.network.equilibrium.solver).__name__ == "Newton"
    assert data.batch_size == 5
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(again(x), module(x), atol=1e-3)
    save(module, "broken.ckpt")
    module.config["model"]["init_args"]["network"]["class_path"] = "torchimplicit.train.networks.Gone"
    save(module, "broken.ckpt")
    with pytest.raises(CheckpointError, match=r"broken.ckpt: cannot build its model again"):
        load("broken.ckpt")
