"""Monotone networks and the recipe that trains them."""

from pathlib import Path

import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.networks import MonotoneConvolutional, MonotoneDense, MonotoneMultitier, PlainConvolutional

NETWORKS = {
    "convolutional": lambda **options: MonotoneConvolutional(3, 8, image=12, pool=3, classes=5, **options),
    "multitier": lambda **options: MonotoneMultitier(3, (4, 6), image=12, pool=3, classes=5, **options),
    "dense": lambda **options: MonotoneDense(3 * 12 * 12, 16, classes=5, **options),
}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_maps_images_to_logits_and_all_of_it_learns(name):
    network = NETWORKS[name]()
    logits = network(torch.randn(4, 3, 12, 12))
    assert logits.shape == (4, 5)
    assert network.equilibrium.report.converged
    logits.square().sum().backward()
    assert network.equilibrium.report.backward.converged
    assert all((p.grad != 0).any() and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_no_weight_makes_it_diverge(name):
    network = NETWORKS[name](solver=ti.Picard(rtol=1e-2, max_steps=5000), on_failure="raise")
    with torch.no_grad():
        for parameter in network.equilibrium.parameters():
            parameter.mul_(20)
    assert network(torch.randn(4, 3, 12, 12)).isfinite().all()
    assert network.equilibrium.contraction() < 1


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_are_independent_all_the_way(name):
    network = NETWORKS[name](solver=ti.Picard(rtol=1e-5, max_steps=2000))
    x = torch.randn(4, 3, 12, 12)
    other = x.clone()
    other[1] += 3
    one, two = network(x), network(other)
    assert torch.allclose(one[[0, 2, 3]], two[[0, 2, 3]], atol=1e-4)
    assert not torch.allclose(one[1], two[1], atol=1e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_options_reach_the_layer(name):
    options = {"solver": ti.Picard(), "adjoint": ti.Phantom(steps=2), "on_failure": "raise"}
    layer = NETWORKS[name](splitting="forward-backward", step=0.1, strength=0.7, **options).equilibrium
    assert (layer.solver, layer.adjoint, layer.on_failure) == (ti.Picard(), ti.Phantom(steps=2), "raise")
    assert isinstance(layer.cell, ti.ForwardBackward)
    assert (layer.cell.step, layer.cell.cell.strength) == (0.1, 0.7)


def test_the_rivals_have_as_many_parameters():
    for options in ({}, {"stride": 4, "channels": 55}):
        count = parameters(MonotoneConvolutional(**options))
        assert count == {0: 84_458, 2: 84_160}[len(options)]
        biases = 2 * PlainConvolutional(**options).body[1].out_channels
        assert parameters(PlainConvolutional(**options)) == count + biases
        assert parameters(MonotoneDense()) == pytest.approx(count, rel=2e-2)
        assert parameters(MonotoneMultitier()) == pytest.approx(count, rel=2e-2)


def test_every_layer_of_the_rival_counts():
    network, x = PlainConvolutional(3, 8, layers=3, image=12, pool=3), torch.randn(2, 3, 12, 12)
    before = network(x)
    assert before.shape == (2, 10)
    for layer in [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]:
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.neg_()
            assert not torch.allclose(network(x), before)
            layer.weight.copy_(kept)


@pytest.mark.parametrize("network", [MonotoneConvolutional, MonotoneMultitier, PlainConvolutional])
def test_impossible_options_are_refused(network):
    for stride in (0, 3):
        with pytest.raises(ValueError, match=rf"{network.__name__}\(stride={stride}\): expected a divisor of image=28"):
            network(stride=stride)
    if network is not PlainConvolutional:
        with pytest.raises(ValueError, match=r"strength=0.* expected a finite number > 0"):
            network(strength=0)


def test_the_recipe_trains(mnist_folder):
    words = ["fit", "--config", "mnist-monotone", "--data-dir", str(mnist_folder.parent), "--data.validation", "8"]
    words += ["--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "2"]
    assert main([*words, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]) == 0
    assert list(Path().glob("runs/mnist-monotone/version_0/checkpoints/best.ckpt"))
    curves = read_curves(Path("runs/mnist-monotone/version_0"))
    assert curves["train/forward_unconverged"][1] == [0.0, 0.0]
    assert curves["train/backward_unconverged"][1] == [0.0, 0.0]
    assert all(loss < 10 for loss in curves["train/loss"][1])
