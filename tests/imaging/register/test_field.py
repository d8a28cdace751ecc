"""The exponential against the flow, inverses of displacements and their honesty, transforms of points."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.register.phantoms import texture, turned
from tests.imaging.register.test_demons import bumps
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import register
from torchimplicit.imaging.register.grid import Grid

D = torch.float64


@pytest.mark.parametrize("size", [(24, 20), (12, 13, 11)])
def test_an_inverse_leads_back_to_a_millionth_of_a_voxel(size):
    u = bumps(*size)
    found = register.inverse(u)
    assert found.report.converged
    back = register.compose(found.value, u)
    assert back.square().mean().sqrt() < 1e-6  # what is asked for, over all voxels and components
    assert back.abs().max() < 5e-5
    tight = register.inverse(u, solver=ti.Anderson(rtol=0.0, atol=1e-9, max_steps=200))
    assert register.compose(tight.value, u).abs().max() < 1e-6


def test_an_inverse_has_the_gradient_of_differences():
    u, weight = bumps(7, 8, width=2.0, reach=0.8).requires_grad_(), bumps(7, 8, seed=5)
    options = {"solver": ti.Anderson(rtol=0.0, atol=1e-12, max_steps=200), "interpolation": "cubic"}
    (gradient,) = torch.autograd.grad((weight * register.inverse(u, **options).value).sum(), u)
    way = bumps(7, 8, seed=6)
    ends = [(weight * register.inverse(u.detach() + h * way, **options).value).sum() for h in (1e-5, -1e-5)]
    torch.testing.assert_close((gradient * way).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=0)


def test_a_displacement_that_folds_has_no_inverse_and_says_so_sample_by_sample():
    u = torch.cat([bumps(16, 16), 20 * bumps(16, 16), bumps(16, 16, seed=8)])
    with pytest.raises(ti.ConvergenceError, match=r"where it has no inverse: \d+ voxels of sample 1\.") as e:
        register.inverse(u)
    status = e.value.solution.status
    assert status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    good = register.inverse(torch.cat([u[:1], u[2:], u[2:]])).value
    assert torch.equal(register.inverse(u, on_failure="ignore").value[0], good[0])


def test_the_flow_leads_back_and_squaring_does_not_quite():
    v = bumps(20, 20, reach=1.5)
    there = register.flow(v)
    back = register.flow(-v, there)
    x = register.identity((20, 20), v)
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    assert (back - x)[inside].abs().max() < 1e-5
    loose = register.flow(v, solver=ti.Tsit5(rtol=1e-2, atol=1e-2))
    assert (loose - there).abs().max() > 1e-7
    squared = register.exponential(v)
    assert 1e-6 < (squared + x - there)[inside].abs().max() < 0.05
    assert register.compose(squared, register.exponential(-v))[inside].abs().max() > 1e-5


def test_the_flow_of_a_rough_velocity_leads_back_wherever_it_lies():
    v = 0.4 * torch.cat([texture(32, 32, seed=each, width=3.0) for each in (1, 2)], 1)
    far = torch.nn.functional.pad(v, (0, 0, 500, 0), mode="replicate")
    solver, ends = ti.Tsit5(rtol=1e-6, atol=1e-6), []
    for velocity, corner in ((v, 0.0), (far, 500.0)):
        x = register.identity((32, 32), v) + torch.tensor([corner, 0.0], dtype=D).view(2, 1, 1)
        there = register.flow(velocity, x[None], solver=solver)
        assert (register.flow(-velocity, there, solver=solver) - x).abs().max() < 1e-5
        ends.append(there - x)
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("squarings", [0, 3])
def test_the_exponential_of_a_constant_velocity_is_a_shift(squarings):
    v = torch.tensor([1.5, -0.5], dtype=D).view(1, 2, 1, 1).expand(1, 2, 6, 6)
    torch.testing.assert_close(register.exponential(v, squarings), v)
    torch.testing.assert_close(register.flow(v) - register.identity((6, 6), v), v.clone())


def test_transforms_follow_each_other_and_lead_back():
    grid = Grid((14, 14), torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=D)))
    points = grid.points(torch.zeros((), dtype=D))[None]
    linear = register.Linear(turned(0.2, (1.0, 2.0), (5.0, 5.0)))
    free = register.Displacement(bumps(14, 14, reach=0.5), grid)
    moved = free(points)
    voxels = ((moved - points) / torch.tensor([2.0, 3.0])).mT
    torch.testing.assert_close(voxels.reshape(free.vectors.shape), free.vectors)
    torch.testing.assert_close(free.then(linear)(points), linear(moved))
    assert register.target_error(free(free.inverse()(points)), points).max() < 5e-5  # at voxels, where it is solved for
    # Between voxels an inverse is interpolated: splines are off by a hundredth of a voxel, lines by h^2 |u''| / 8.
    inside = ((points > 6) & (points < 22)).all(2)
    for interpolation, most in (("linear", 0.1), ("cubic", 0.03)):
        both = register.Displacement(free.vectors, grid, interpolation).then(linear)
        assert register.target_error(both.inverse()(both(points)), points)[inside].max() < most
    assert isinstance(linear.then(linear), register.Linear)
    torch.testing.assert_close(linear.then(linear)(points), linear(linear(points)))
    assert len(both.then(both).parts) == 4
    velocity = register.Velocity(bumps(14, 14), grid)
    torch.testing.assert_close(velocity(points), velocity.displacement()(points))


def test_fields_of_another_grid_are_refused():
    grid = Grid((14, 14), torch.eye(3, dtype=D))
    with pytest.raises(ValueError, match="on a grid \\(14, 14\\)"):
        register.Displacement(torch.zeros(1, 2, 14, 13), grid)
    for function in (register.inverse, register.flow, register.exponential):
        with pytest.raises(ValueError, match="a vector at every voxel"):
            function(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="squarings"):
        register.exponential(torch.zeros(1, 2, 4, 4), -1)
