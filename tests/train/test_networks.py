import copy

import pytest
import torch

import torchimplicit as ti
from torchimplicit.train.networks import DigitsNetwork, MNISTNetwork, RowBound


@pytest.mark.parametrize(("network", "size"), [(DigitsNetwork(), 8), (MNISTNetwork(), 28)])
def test_networks_map_images_to_logits_and_converge(network, size):
    logits = network(torch.randn(5, 1, size, size))
    assert logits.shape == (5, 10)
    assert network.equilibrium.report.converged
    logits.square().sum().backward()
    assert network.equilibrium.report.backward.converged
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_mnist_network_has_the_published_widths():
    shapes = [tuple(p.shape) for p in MNISTNetwork().parameters() if p.dim() == 2]
    assert shapes == [(200, 784), (20, 200), (10, 20), (10, 10), (20, 10), (15, 20), (10, 15)]


def test_squash_bounds_the_logits():
    torch.manual_seed(0)
    plain = MNISTNetwork()
    squashed = MNISTNetwork(squash=True)
    squashed.load_state_dict(plain.state_dict())
    x = torch.randn(5, 1, 28, 28)
    assert torch.equal(squashed(x), torch.tanh(plain(x)))


def test_row_bound_leaves_small_rows_and_scales_large_ones():
    weight = torch.tensor([[0.1, -0.2], [3.0, -1.0], [0.0, 0.0]])
    bounded = RowBound(0.5)(weight)
    assert torch.equal(bounded[[0, 2]], weight[[0, 2]])
    assert torch.allclose(bounded[1], weight[1] / 8)


def test_the_digits_equilibrium_survives_any_weights():
    network = DigitsNetwork(width=16, solver=ti.Picard(max_steps=300))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(100 * torch.randn(parameter.shape))
    network(torch.randn(20, 1, 8, 8))
    assert network.equilibrium.report.converged


def test_solver_and_adjoint_reach_the_layer():
    network = DigitsNetwork(solver=ti.Newton(), adjoint=ti.Phantom(steps=2), on_failure="raise")
    assert network.equilibrium.solver == ti.Newton()
    assert network.equilibrium.adjoint == ti.Phantom(steps=2)
    assert copy.deepcopy(network).equilibrium.on_failure == "raise"
