"""Convolutional networks and the recipes that train them."""

from pathlib import Path

import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.networks import ConvolutionalDEQ, ResidualNetwork

SMALL = {"channels": 8, "inner": 8, "groups": 2}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("strides", "state"), [((1,), 12), ((2,), 6), ((2, 2), 3), ((1, 2), 6)])
def test_it_maps_images_to_logits_through_a_state_of_the_right_size(strides, state):
    network = ConvolutionalDEQ(3, strides=strides, pool=2, classes=5, **SMALL)
    sizes = []
    network.equilibrium.register_forward_hook(lambda layer, inputs, value: sizes.append(value.shape))
    logits = network(torch.randn(4, 3, 12, 12))
    assert logits.shape == (4, 5)
    assert sizes == [(4, 8, state, state)]
    assert network.equilibrium.report.converged
    logits.square().sum().backward()
    assert network.equilibrium.report.backward.converged
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_samples_are_independent_all_the_way():
    network = ConvolutionalDEQ(solver=ti.Anderson(rtol=1e-5, max_steps=200), **SMALL)
    x = torch.randn(4, 1, 8, 8)
    other = x.clone()
    other[1] += 3
    one, two = network(x), network(other)
    assert torch.allclose(one[[0, 2, 3]], two[[0, 2, 3]], atol=1e-4)
    assert not torch.allclose(one[1], two[1], atol=1e-2)


def test_solver_adjoint_and_the_rest_reach_the_layer():
    layer = ConvolutionalDEQ(
        solver=ti.Broyden(), adjoint=ti.Phantom(steps=2), warm_start=True, on_failure="raise", **SMALL
    ).equilibrium
    assert (layer.solver, layer.adjoint) == (ti.Broyden(), ti.Phantom(steps=2))
    assert layer.warm_start
    assert layer.on_failure == "raise"


@pytest.mark.parametrize(
    ("deq", "explicit"),
    [
        ({"in_channels": 1, "channels": 32, "inner": 64}, {"in_channels": 1, "channels": 32, "blocks": 2}),
        ({"in_channels": 3, "channels": 48, "inner": 144}, {"in_channels": 3, "channels": 48, "blocks": 3}),
    ],
    ids=["mnist-conv", "cifar10"],
)
def test_the_rivals_of_the_recipes_have_as_many_parameters(deq, explicit):
    one, other = ConvolutionalDEQ(strides=(2, 2), **deq), ResidualNetwork(strides=(2, 2), **explicit)
    assert parameters(one) == pytest.approx(parameters(other), rel=1e-2)
    assert parameters(one.stem) == parameters(other.stem)
    assert parameters(one.head) == parameters(other.head)


def test_every_block_of_the_rival_counts():
    torch.manual_seed(0)
    network, x = ResidualNetwork(3, channels=8, blocks=3, groups=2), torch.randn(2, 3, 8, 8)
    before = network(x)
    assert before.shape == (2, 10)
    for block in network.body:
        kept = block.conv1.weight.detach().clone()
        with torch.no_grad():
            block.conv1.weight.neg_()
            assert not torch.allclose(network(x), before)
            block.conv1.weight.copy_(kept)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (ConvolutionalDEQ, {"channels": 10}, r"ResidualCell\(channels=10\): expected a multiple of groups=8"),
        (ConvolutionalDEQ, {"strides": ()}, r"ConvolutionalDEQ\(strides=\(\)\): expected a list of ones and twos"),
        (ConvolutionalDEQ, {"strides": (3,)}, r"strides=\(3,\)"),
        (ConvolutionalDEQ, {"cell": "cubic"}, r"ConvolutionalDEQ\(cell='cubic'\): expected 'residual' or 'spectral'"),
        (ConvolutionalDEQ, {"pool": 0}, r"ConvolutionalDEQ\(pool=0\): expected an integer >= 1"),
        (ResidualNetwork, {"blocks": 0}, r"ResidualNetwork\(blocks=0\): expected an integer >= 1"),
        (ResidualNetwork, {"channels": 10}, r"ResidualNetwork\(channels=10\): expected a multiple of groups=8"),
    ],
)
def test_impossible_options_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_the_spectral_cell_contracts_and_starts_at_the_injection():
    network = ConvolutionalDEQ(1, 8, 8, 4, strides=(2, 2), pool=2, cell="spectral", solver=ti.Picard(rtol=1e-4))
    x = torch.randn(3, 1, 28, 28)
    assert network(x).shape == (3, 10)
    assert network.equilibrium.report.converged
    injected = network.stem(x)
    torch.testing.assert_close(network.equilibrium.initial_state(injected), injected.detach())
    assert network.equilibrium.cell.conv1.size == 7


def test_the_recipe_trains(mnist_folder, capsys):
    words = ["fit", "--config", "mnist-conv", "--data-dir", str(mnist_folder.parent), "--data.validation", "8"]
    words += ["--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "2"]
    assert main([*words, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]) == 0
    assert list(Path().glob("runs/mnist-conv/version_0/checkpoints/best.ckpt"))
    curves = read_curves(Path("runs/mnist-conv/version_0"))
    assert curves["train/forward_unconverged"][1] == [0.0, 0.0]
    assert all(loss < 10 for loss in curves["train/loss"][1])
