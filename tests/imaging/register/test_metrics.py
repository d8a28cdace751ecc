"""Figures of registration against SciPy and by their definitions."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from torchimplicit.imaging import register


def blobs(seed, size=(9, 10, 8)):
    noise = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(seed))
    smooth = np.stack([ndimage.gaussian_filter(each[0].numpy(), 1.5) for each in noise])
    return torch.from_numpy(np.digitize(smooth, [0.0, 0.12]))[:, None]


def test_dice_is_that_of_its_definition_and_names_absent_labels():
    a, b = blobs(0), blobs(1)
    got = register.dice(a, b, of=[1, 2, 5])
    for sample in range(2):
        for column, label in enumerate((1, 2)):
            x, y = a[sample] == label, b[sample] == label
            assert got[sample, column] == 2 * (x & y).sum().double() / (x.sum() + y.sum())
    assert got[:, 2].isnan().all()
    assert register.dice(a, a, of=[1]).tolist() == [[1.0], [1.0]]
    assert register.dice(a, torch.zeros_like(a), of=[1]).tolist() == [[0.0], [0.0]]


def test_soft_dice_is_dice_of_hard_maps_and_has_a_gradient():
    a, b = blobs(0), blobs(1)
    maps = [torch.cat([(each == label) for label in (1, 2)], 1).double() for each in (a, b)]
    torch.testing.assert_close(register.soft_dice(*maps), register.dice(a, b, of=[1, 2]))
    x = maps[0][:, :, :3, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: register.soft_dice(x + 0.1, maps[1][:, :, :3, :3, :3]), (x,))


@pytest.mark.parametrize("spacing", [None, (1.0, 0.5, 3.0)])
def test_the_hausdorff_distance_is_that_of_scipy(spacing):
    a, b = blobs(0), blobs(1)
    got = register.hausdorff(a, b, of=[1, 2], spacing=spacing)
    for sample in range(2):
        for column, label in enumerate((1, 2)):
            points = []
            for each in (a, b):
                mask = (each[sample, 0] == label).numpy()
                surface = mask & ~ndimage.binary_erosion(mask, border_value=0)
                points.append(np.argwhere(surface) * np.array(spacing or (1, 1, 1)))
            expected = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
            assert abs(got[sample, column].item() - expected) < 1e-12


def test_a_percentile_leaves_outliers_out_and_absence_is_told():
    one = torch.zeros(1, 1, 30, 30, dtype=torch.int64)
    one[..., 5:15, 5:15] = 1
    two = one.clone()
    two[..., 28, 28] = 1
    assert register.hausdorff(one, one, of=[1]).item() == 0
    assert register.hausdorff(one, two, of=[1]).item() == pytest.approx(14 * 2**0.5)
    assert register.hausdorff(one, two, of=[1], percentile=95).item() == 0
    assert register.hausdorff(one, 0 * one, of=[1, 2]).tolist()[0][0] == np.inf
    assert register.hausdorff(one, 0 * one, of=[2]).isnan().all()


def test_points_and_fields_are_measured():
    points = torch.randn(2, 5, 3, dtype=torch.float64)
    moved = points + torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(register.target_error(moved, points), torch.full((2, 5), 5.0, dtype=torch.float64))
    u = torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    u[1, 0] = torch.linspace(0, 1, 6).square()[:, None]
    spread = register.sd_log_jacobian(u)
    expected = np.log(register.det_jacobian(u)[1].numpy()).std()
    assert spread[0] == 0
    assert abs(spread[1].item() - expected) < 1e-14
    assert register.sd_log_jacobian(u, border=1)[1] != spread[1]
    assert register.sd_log_jacobian(-4 * u, least=1e-3)[1] < register.sd_log_jacobian(-4 * u)[1]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda a: register.dice(a.float(), a, of=[1]), TypeError, "expected integers"),
        (lambda a: register.dice(a, a[:1], of=[1]), ValueError, "one shape"),
        (lambda a: register.dice(a, a, of=1), ValueError, "a list of labels"),
        (lambda a: register.hausdorff(a, a, of=[1], spacing=(1, 1)), ValueError, "expected 3 numbers"),
        (lambda a: register.hausdorff(a, a, of=[1], percentile=0), ValueError, "in \\(0, 100\\]"),
        (lambda a: register.soft_dice(a.float(), a[:1].float()), ValueError, "expected two of"),
        (lambda a: register.target_error(torch.zeros(2, 3), torch.zeros(2, 3)), ValueError, "\\(B, n, D\\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(blobs(0))
