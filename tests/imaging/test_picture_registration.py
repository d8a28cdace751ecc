"""Pictures of registrations: what is drawn where, in which colours, and what is refused."""

import io
import math

import numpy as np
import pytest
import torch

from torchimplicit import imaging

D = torch.float64
VOLUME = torch.arange(6.0 * 5 * 4, dtype=D).reshape(6, 5, 4)


def test_a_checkerboard_takes_squares_of_both_and_colours_show_both():
    fixed, moving = torch.zeros(32, 16, dtype=D), torch.zeros(32, 16, dtype=D)
    fixed[8:, :], moving[:, 8:] = 1, 1
    file = io.BytesIO()
    figure = imaging.draw_alignment(fixed, {"one": moving, "two": fixed}, target=file)
    assert file.getvalue().startswith(b"\x89PNG")
    board, colours, same, grey = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    for row, column in ((0, 0), (0, 4), (4, 0), (12, 4), (12, 8), (31, 15)):  # squares of four pixels
        expected = fixed if (row // 4 + column // 4) % 2 == 0 else moving
        assert board[row, column] == float(expected[row, column])
        one, other = float(fixed[row, column]), float(moving[row, column])
        assert colours[row, column].tolist() == [one, other, one]
    np.testing.assert_array_equal(same, fixed.numpy())
    np.testing.assert_array_equal(grey, fixed[..., None].expand(-1, -1, 3).numpy())
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["one", "two"]


def test_planes_of_a_volume_stand_upright_and_in_millimetres():
    figure = imaging.draw_alignment(VOLUME, {"same": VOLUME}, spacing=(1.0, 2.0, 3.0))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["sagittal", "coronal", "axial"] * 2
    planes = [VOLUME[3], VOLUME[:, 2], VOLUME[:, :, 2]]  # up is the last axis, and the last row is the lowest
    for axes, plane, aspect in zip(figure.axes[:3], planes, (3 / 2, 3, 2), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        order = plane.T.flip(0).numpy()
        assert shown.shape == order.shape
        assert np.array_equal(shown.argsort(None, kind="stable"), order.argsort(None, kind="stable"))
        assert axes.get_aspect() == pytest.approx(aspect)


def test_values_that_are_not_finite_do_not_blank_the_picture():
    broken = VOLUME[0].clone()
    broken[0, 0], broken[1, 1] = math.nan, math.inf
    figure = imaging.draw_alignment(VOLUME[0], {"broken": broken, "empty": torch.full((5, 4), math.nan)})
    for axes in figure.axes:
        assert np.isfinite(np.asarray(axes.images[0].get_array())).all()
    assert np.asarray(figure.axes[1].images[0].get_array())[..., 1].std() > 0.2


def test_volumes_are_on_a_scale_of_ratios_and_folds_are_black_and_counted():
    u = torch.zeros(2, 12, 10, dtype=D)
    u[0, 6:] = -2.0  # two voxels back: rows 5 and 6 fold
    figure = imaging.draw_deformation(u)
    assert figure.get_suptitle() == "det J from 0.00 to 1.00, 20 of 120 voxels fold"
    shown = figure.axes[1].images[0]
    values = np.ma.masked_invalid(shown.get_array())
    assert values.mask.sum() == 20
    assert values.mask[5:7].all()
    assert shown.cmap.get_bad().tolist() == [0, 0, 0, 1]
    assert shown.cmap(shown.norm(1.0)) == pytest.approx(shown.cmap(0.5))  # where nothing changes
    assert (shown.norm.vmin, shown.norm.vmax) == (0.25, 4.0)
    assert imaging.draw_deformation(0 * u).get_suptitle() == "det J from 1.00 to 1.00, 0 of 120 voxels fold"


def test_the_grid_is_where_the_field_takes_it():
    u = torch.stack((torch.full((12, 10), 2.0, dtype=D), torch.full((12, 10), -1.0, dtype=D)))
    lines = imaging.draw_deformation(u, lines=12).axes[0].lines
    rows, columns = lines[:12], lines[12:]
    assert [set(line.get_ydata()) for line in rows] == [{i + 2.0} for i in range(12)]
    assert [set(line.get_xdata()) for line in columns] == [{j - 1.0} for j in range(10)]
    assert len(imaging.draw_deformation(u, lines=6).axes[0].lines) == 6 + 5
    straight = imaging.draw_deformation(u, lines=12, linear=False).axes[0].lines
    np.testing.assert_allclose(straight[3].get_ydata(), 3, atol=1e-12)


def test_planes_of_a_volume_show_the_components_within_them():
    u = torch.stack([torch.full((6, 5, 4), value, dtype=D) for value in (0.1, 0.2, 0.3)])
    figure = imaging.draw_deformation(u, image=VOLUME, lines=6)
    for axes, (across, up), n in zip(figure.axes[:3], ((0.2, 0.3), (0.1, 0.3), (0.1, 0.2)), (4, 4, 5), strict=True):
        first = axes.lines[0]  # the topmost row: up is towards smaller rows
        np.testing.assert_allclose(first.get_ydata(), -up, atol=1e-12)
        np.testing.assert_allclose(first.get_xdata(), np.arange(len(first.get_xdata())) + across, atol=1e-12)
        assert axes.get_ylim() == (n - 0.5, -0.5)


def test_boxes_have_their_means_and_every_pair():
    figure = imaging.draw_overlaps({"a": torch.tensor([0.2, 0.4, math.nan]), "b": torch.tensor([0.7])})
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a\n0.300", "b\n0.700"]
    assert [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "."] == [2, 1]


FLAT = torch.zeros(2, 6, 5)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: imaging.draw_alignment(VOLUME, {}), "got no moving image"),
        (lambda: imaging.draw_alignment(VOLUME, {"a": VOLUME[1:]}), r"'a'\): got \(5, 5, 4\), expected \(6, 5, 4\)"),
        (lambda: imaging.draw_alignment(VOLUME[None], {"a": VOLUME[None]}), r"expected \(H, W\) or \(X, Y, Z\)"),
        (lambda: imaging.draw_alignment(VOLUME, {"a": VOLUME}, spacing=(1, 1)), "expected 3 numbers > 0"),
        (lambda: imaging.draw_alignment(VOLUME, {"a": VOLUME}, spacing=(1, 1, 0)), "expected 3 numbers > 0"),
        (lambda: imaging.draw_deformation(FLAT[:1]), "a vector at every voxel"),
        (lambda: imaging.draw_deformation(FLAT, image=torch.zeros(6, 6)), r"expected \(6, 5\) as the field's grid"),
        (lambda: imaging.draw_deformation(FLAT, lines=1), "expected an integer >= 2"),
        (lambda: imaging.draw_overlaps({}), "expected figures"),
        (lambda: imaging.draw_overlaps({"a": torch.tensor([math.nan])}), "some of them finite"),
        (lambda: imaging.draw_overlaps({"a": torch.zeros(2, 2)}), "expected figures"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, said):
    with pytest.raises(ValueError, match=said):
        draw()
