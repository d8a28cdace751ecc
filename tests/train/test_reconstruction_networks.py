"""The networks of reconstruction: a convex equilibrium from total variation on, and cells unrolled."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.imaging import Blur, Gradient, Ridge, psnr
from torchimplicit.train.networks import ImageDenoiser, RidgeReconstruction, UnrolledReconstruction

OP = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64))


def steps_of(edge=16):
    """An image of flat parts, `(1, 1, edge, edge)`."""
    x = torch.zeros(1, 1, edge, edge, dtype=torch.float64)
    x[..., 4:12, 5:11] = 1.0
    return x


def test_it_starts_at_total_variation_which_sharpens_edges():
    x, network = steps_of(), RidgeReconstruction(filters=4, taps=3).double()
    tv = Ridge.total_variation(1e-3, 0.03, filters=4, taps=3).double()
    assert torch.equal(network.cell.prior.weight, tv.weight)
    with torch.no_grad():
        found = network(OP.A(x), OP)
    assert network.report.converged
    blurred = torch.nn.functional.pad(OP.A(x), (1, 1, 1, 1), mode="replicate")
    assert psnr(found, x, data_range=1.0, border=1) > psnr(blurred, x, data_range=1.0, border=1) + 6


def test_options_reach_the_layer():
    solver, adjoint = ti.Broyden(rtol=1e-3), ti.Implicit(ti.GMRES())
    network = RidgeReconstruction(0.01, 0.1, 5, 3, eps=0.5, solver=solver, adjoint=adjoint, on_failure="warn")
    assert (network.solver, network.adjoint, network.on_failure) == (solver, adjoint, "warn")
    assert network.cell.eps == 0.5
    tv = Ridge.total_variation(0.01, 0.1, filters=5, taps=3)
    assert torch.equal(network.cell.prior.weight, tv.weight)


def test_unrolling_is_so_many_steps_of_the_cell():
    equilibrium = RidgeReconstruction(filters=2, taps=3, preconditioned=False).double()
    network, y, cell = UnrolledReconstruction(equilibrium, 3), OP.A(steps_of()), equilibrium.cell
    assert isinstance(cell, Gradient)
    z = cell.start(y, OP)
    for _ in range(3):
        z = cell(z, y, OP)
    assert torch.equal(network(y, OP), z)
    assert torch.equal(network(y, OP, steps=4), cell(z, y, OP))
    network(y, OP).sum().backward()
    assert cell.prior.weight.grad.abs().sum() > 0
    assert not any(isinstance(module, ti.nn.DEQ) for module in network.modules())
    with pytest.raises(ValueError, match="steps=0"):
        UnrolledReconstruction(equilibrium, 0)


def test_a_denoiser_denoises_what_was_measured_as_it_is():
    prior = Ridge(filters=2, taps=3)
    op, y = Blur(torch.ones(1, 1)), torch.rand(2, 1, 9, 9)
    assert torch.equal(ImageDenoiser(prior)(y, op), prior(y))
