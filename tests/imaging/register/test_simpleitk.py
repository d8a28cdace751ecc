"""Fields and figures of registration as SimpleITK computes them."""

import numpy as np
import pytest
import torch

from tests.imaging.register.phantoms import D, texture
from torchimplicit.imaging import register

sitk = pytest.importorskip("SimpleITK")
SIZE = (10, 12, 9)


def field(space, size=SIZE, scale=1.5):
    return scale * torch.cat([texture(*size[:space], seed=axis, width=1.5) for axis in range(space)], 1)


def theirs(x, vector=False):
    """An array whose axes are counted from the last one, vectors too."""
    x = x.flip(0).movedim(0, -1) if vector else x
    return sitk.GetImageFromArray(x.contiguous().numpy(), isVector=vector)


@pytest.mark.parametrize("space", [2, 3])
def test_volumes_and_folds_inside(space):
    u = field(space, scale=3.0)
    ours = register.det_jacobian(u)[0]
    J = torch.from_numpy(sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(theirs(u[0], vector=True))))
    inside = (slice(1, -1),) * space
    torch.testing.assert_close(ours[inside].float(), J[inside].float(), atol=1e-5, rtol=1e-5)
    count = int((J[inside] <= 0).sum())
    assert count > 0
    assert register.folds(u, border=1).item() == count


@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("interpolation", ["linear", "cubic", "nearest"])
def test_warped_images_inside(space, interpolation):
    u, image = field(space), texture(*SIZE[:space], seed=9)
    kind = {"linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline3, "nearest": sitk.sitkNearestNeighbor}[interpolation]
    moving = theirs(image[0, 0])
    transform = sitk.DisplacementFieldTransform(theirs(u[0], vector=True))
    expected = torch.from_numpy(sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, kind, -100.0)))
    ours = register.warp(image, u, interpolation=interpolation)[0, 0]
    last = torch.tensor(SIZE[:space]).view(-1, *[1] * space) - 1
    at = u[0] + register.identity(u.shape[2:], u)
    inside = ((at >= 0) & (at <= last)).all(0)  # half a voxel further they know images, too, but others
    assert inside.double().mean() > 0.6
    torch.testing.assert_close(ours[inside], expected[inside], atol=1e-9, rtol=1e-7)


def test_overlap_and_distance_of_labels():
    a, b = ((texture(*SIZE, seed=seed) > 0.3).long() for seed in (0, 1))
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    pair = [theirs(each[0, 0].to(torch.uint8)) for each in (a, b)]
    overlap.Execute(*pair)
    assert register.dice(a, b, [1]).item() == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-12)
    surfaces = [sitk.LabelContour(each, fullyConnected=False) for each in pair]
    distance = sitk.HausdorffDistanceImageFilter()
    distance.Execute(*surfaces)
    for each in (a, b):  # so that the grid's end is no surface, which theirs does not count as one
        assert not bool(each[..., [0, -1]].any())
    assert register.hausdorff(a, b, [1]).item() == pytest.approx(distance.GetHausdorffDistance(), abs=1e-6)


def test_the_inverse_of_a_field():
    u = field(2, (24, 24), scale=0.3)
    ours = register.inverse(u).value[0]
    method = sitk.InvertDisplacementFieldImageFilter()
    method.SetMaximumNumberOfIterations(200)
    method.SetMaxErrorToleranceThreshold(1e-6)
    method.SetMeanErrorToleranceThreshold(1e-8)
    found = sitk.GetArrayFromImage(method.Execute(theirs(u[0], vector=True)))
    expected = torch.from_numpy(np.ascontiguousarray(found[..., ::-1])).movedim(-1, 0)
    inside = (slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(ours[inside], expected[inside].to(D), atol=1e-4, rtol=0)
