"""Where voxels lie: halved grids, and vectors that go from one grid to another."""

import torch

from torchimplicit.imaging.register import Grid
from torchimplicit.imaging.register.axes import halved
from torchimplicit.imaging.register.start import carried

D = torch.float64
AFFINE = torch.tensor([[0, 2.0, 0, 5], [-1.5, 0, 0, -3], [0, 0, 3.0, 1], [0, 0, 0, 1]], dtype=D)


def test_a_halved_grid_has_its_voxels_between_the_two_that_they_are_means_of():
    grid = Grid((6, 5, 4), AFFINE)
    places = grid.points(torch.zeros((), dtype=D)).mT.reshape(1, 3, *grid.size)
    for axes in ([0], [1, 2], [0, 1, 2]):
        less = grid.halved(axes)
        expected = halved(places, axes)[0].flatten(1).mT
        assert less.size == tuple(halved(places, axes).shape[2:])
        torch.testing.assert_close(less.points(torch.zeros((), dtype=D)), expected)


def test_vectors_are_of_the_same_millimetres_on_every_grid():
    grid = Grid((6, 5, 4), AFFINE)
    other = Grid((4, 3, 5), torch.diag(torch.tensor([1.0, 2.5, 1.2, 1], dtype=D)))
    vectors = torch.tensor([0.5, -1.0, 2.0], dtype=D).view(1, 3, 1, 1, 1).expand(1, 3, *grid.size)
    found = carried(vectors, grid, other)
    assert found.shape == (1, 3, *other.size)
    moved = other.affine[:3, :3] @ found[0].flatten(1)
    torch.testing.assert_close(moved, (AFFINE[:3, :3] @ vectors[0, :, 0, 0, 0]).unsqueeze(1).expand_as(moved))
