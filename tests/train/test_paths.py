"""The recipes of paths: their modules, their networks, and a few steps of every recipe."""

import math
from pathlib import Path

import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import Density, Pendulum
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Flow, Mechanics, Regressor
from torchimplicit.train.modules.flow import gaussian_nll, kernel_density_nll
from torchimplicit.train.networks import ConvolutionalODE, DenseFlow, DenseODE, HamiltonianField, PlainField

NETWORK = "--model.network"
SMALL = {
    "xcubed": [f"{NETWORK}.hidden", "8", "--data.samples", "32", "--data.eval_samples", "8", "--data.batch_size", "16"],
    "spiral": [f"{NETWORK}.hidden", "8", "--data.samples", "32", "--data.eval_samples", "8", "--data.batch_size", "16"],
    "pendulum": [f"{NETWORK}.hidden", "8", "--data.samples", "32", "--data.eval_samples", "8", "--model.duration", "1"],
    "flow2d": [
        f"{NETWORK}.hidden",
        "8",
        "--data.samples",
        "64",
        "--data.eval_samples",
        "16",
        "--data.batch_size",
        "32",
    ],
}


@pytest.mark.parametrize("recipe", SMALL)
def test_a_recipe_trains_and_is_tested_and_reported(recipe, tmp_path, capsys):
    words = ["--config", recipe, *SMALL[recipe], "--trainer.logger.init_args.save_dir", str(tmp_path)]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    steps = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"]
    assert main(["fit", *words, *steps]) == 0
    assert main(["test", *words]) == 0
    said = capsys.readouterr().out
    assert "test/loss" in said
    assert {"pendulum": "test/drift", "flow2d": "test/nll_kernel_density"}.get(recipe, "test/error") in said
    checkpoint = tmp_path / recipe / "version_0" / "checkpoints" / "best.ckpt"
    assert main(["report", str(checkpoint), "--samples", "4"]) == 0
    assert (checkpoint.parents[1] / "report.html").stat().st_size > 10_000


def test_a_flow_is_measured_by_its_exact_density():
    torch.manual_seed(0)
    network = DenseFlow(hidden=8, trace="hutchinson")
    x = torch.randn(5, 2)
    assert not torch.equal(network.log_prob(x), network.log_prob(x))  # a probe a solve
    network.eval()
    assert torch.equal(network.log_prob(x), network.log_prob(x))
    with torch.inference_mode():
        inside = network.log_prob(x)
    assert torch.allclose(inside, network.log_prob(x), atol=1e-6)
    assert network.paths(7, times=4).shape == (4, 7, 2)
    assert network.sample(3).shape == (3, 2)


def test_data_of_another_width_is_refused_before_training():
    import lightning.pytorch as pl

    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(UsageError, match="made for 3"):
        trainer.fit(Flow(DenseFlow(width=3)), datamodule=Density(samples=8, eval_samples=8))


def test_estimates_to_compare_with_are_right():
    torch.manual_seed(0)
    train, test = torch.randn(4000, 1), torch.randn(4000, 1)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert gaussian_nll(train, test) == pytest.approx(entropy, abs=0.03)
    assert kernel_density_nll(train, test) == pytest.approx(entropy, abs=0.05)
    apart = torch.cat((train - 5, train + 5))
    assert kernel_density_nll(apart, apart) < gaussian_nll(apart, apart) - 0.5


def test_penalties_are_in_the_loss_of_training_alone():
    network = DenseODE(hidden=8, penalties=(ti.nn.KineticEnergy(),), penalty=10.0)
    module = Regressor(network)
    x = torch.randn(6, 1)
    plain = module.evaluate("val", (x, x))
    assert network.penalty().item() > 0
    assert torch.allclose(module.evaluate("train", (x, x)), plain)
    assert not DenseODE(penalties=(ti.nn.KineticEnergy(),), penalty=0.0).path.wanted


def test_a_true_field_neither_drifts_nor_strays():
    data = Pendulum(noise=0.0, samples=8, eval_samples=8)
    data.setup()
    module = Mechanics(torch.nn.Module(), duration=3.0, starts=4)
    start = data.splits.test.tensors[0]
    path = module.follow(start, data.field)
    height = data.height(path)
    assert float((height - height[0]).abs().max()) < 1e-3
    module.network.forward = lambda y: data.field(None, y)
    assert torch.allclose(module.follow(start), path, atol=1e-5)


def test_a_hamiltonian_field_keeps_what_a_plain_one_loses():
    torch.manual_seed(0)
    y = torch.randn(16, 2)
    for network, conserved in ((HamiltonianField(hidden=16), True), (PlainField(hidden=16), False)):
        slope = network(y)
        assert slope.shape == y.shape
        divergence = sum(
            torch.autograd.functional.jacobian(network, y[[i]])[0, :, 0].diagonal().sum().abs() for i in range(4)
        )
        assert (float(divergence) < 1e-5) == conserved


def test_an_ode_net_sees_the_time_and_gets_gradients():
    torch.manual_seed(0)
    network = ConvolutionalODE(channels=8, groups=2, pool=2, solver=ti.RK4(dt=0.5))
    logits = network(torch.randn(3, 1, 28, 28))
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    field = network.path.field
    weight = field.first.convolution.weight.grad  # type: ignore[union-attr]
    assert float(weight[:, -1].abs().sum()) > 0  # that of the time
    assert Path("runs").exists() is False
