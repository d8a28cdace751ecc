"""`align` under torch.func: derivatives in both modes, and what it refuses."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.register.test_demons import pair
from torchimplicit.imaging import register

D = torch.float64
RIGID = register.Rigid(
    levels=((1, 1),), interpolation="cubic", solver=ti.LevenbergMarquardt(rtol=1e-11, atol=1e-11, max_steps=300)
)
DEMONS = register.Demons(
    levels=((1, 1.3, 0.3),), interpolation="cubic", squarings=2, solver=ti.Anderson(rtol=1e-11, max_steps=1000)
)


@pytest.mark.parametrize("kind", [RIGID, DEMONS])
def test_both_modes_of_torch_func_agree_with_differences(kind):
    fixed, moving = pair(8, 7, reach=0.5)
    way = torch.randn(moving.shape, dtype=D, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(-1, 1, 112, dtype=D).view(1, 2, 8, 7).cos()

    def energy(moving):
        adjoint = None if kind is RIGID else ti.Implicit(ti.GMRES(rtol=1e-9, restart=50, max_steps=500))
        return (weight * register.align(fixed, moving, kind, adjoint=adjoint).displacement()).sum()

    back = (torch.func.grad(energy)(moving) * way).sum()
    ahead = torch.func.jvp(energy, (moving,), (way,))[1]
    with torch.no_grad():
        expected = (energy(moving + 1e-5 * way) - energy(moving - 1e-5 * way)) / 2e-5
    torch.testing.assert_close(torch.stack((back, ahead)), expected.expand(2), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "kind", [register.Rigid(), register.Demons(levels=((2, 1.0, 0.5), (1, 1.3, 0.3))), register.Variational()]
)
def test_coarse_levels_are_solved_under_transforms_too(kind):
    """They have no gradient, and so are solved without one: what wraps the images is nothing for a solver."""
    fixed, moving = pair(26, 26, reach=0.5)
    moved = register.align(fixed, moving.clone().requires_grad_(), kind, on_failure="ignore").displacement()

    def energy(moving):
        return register.align(fixed, moving, kind, on_failure="ignore").displacement().sum()

    _, moving_energy = torch.func.vjp(energy, moving)
    torch.testing.assert_close(torch.func.jvp(energy, (moving,), (moving,))[0], moved.sum(), rtol=1e-6, atol=1e-6)
    assert bool(moving_energy(torch.ones((), dtype=D))[0].isfinite().all())


def test_vmap_is_refused_in_words():
    fixed, moving = pair(8, 7)
    with pytest.raises(NotImplementedError, match="one batch of pairs, in dimension 0"):
        torch.vmap(lambda each: register.align(fixed, each, RIGID).displacement())(moving.expand(2, *moving.shape))
