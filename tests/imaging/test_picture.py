"""Pictures: what is drawn, in which window and scale, and what is refused."""

import io

import pytest
import torch

from torchimplicit import imaging


def images(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(*shape, dtype=dtype, generator=generator)
    return truth, {name: truth + size for name, size in (("input", 0.1), ("ours", 0.01))}


@pytest.mark.parametrize("shape", [(16, 12), (3, 16, 12)])
def test_all_images_have_one_window_and_all_errors_one_scale(shape):
    truth, others = images(*shape)
    file = io.BytesIO()
    figure = imaging.draw_comparison(truth, others, data_range=2.0, zoom=(2, 3, 5), target=file)
    assert file.getvalue().startswith(b"\x89PNG")
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    limits = [image.get_clim() for image in drawn if image.get_array().ndim == 2 and image.cmap.name == "gray"]
    errors = [image for image in drawn if image.cmap.name == "magma" and image.get_array().ndim == 2]
    assert set(limits) == ({(0.0, 2.0)} if len(shape) == 2 else set())
    assert [round(float(error.get_array().max()), 9) for error in errors] == [0.1, 0.01]
    assert {error.get_clim() for error in errors} == {(0.0, 0.4)}
    assert [axes.get_title() for axes in figure.axes[1:2]] == ["input\n26.02 dB, " + _ssim(truth, others["input"])]


def _ssim(truth, image):
    return f"{imaging.ssim(image[None], truth[None], data_range=2.0).item():.3f}"


def test_complex_images_are_drawn_by_magnitude():
    truth, others = images(12, 12, dtype=torch.complex128)
    figure = imaging.draw_comparison(truth, {"turned": truth * 1j}, data_range=2.0, window=(0.0, 1.0))
    assert "inf dB, 1.000" in figure.axes[1].get_title()
    assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)
    assert len(others) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": {"a": torch.zeros(12, 11)}}, r"'a'\): got \(12, 11\), expected \(12, 12\) as the truth"),
        ({"images": {}}, "0 images"),
        ({"zoom": (8, 8, 6)}, r"expected \(row, column, edge\) within \(12, 12\)"),
        ({"window": (1.0, 0.0)}, "low < high"),
        ({"data_range": -1.0, "window": (0.0, 1.0)}, "expected finite numbers > 0"),
    ],
)
def test_comparison_refuses(change, said):
    given = {"images": {"a": torch.zeros(12, 12)}, "data_range": 1.0} | change
    with pytest.raises(ValueError, match=said):
        imaging.draw_comparison(torch.ones(12, 12), given.pop("images"), **given)


def test_masks_say_their_acceleration():
    mask = torch.zeros(8, dtype=torch.bool)
    mask[::2] = True
    figure = imaging.draw_masks({"lines": mask, "none": torch.zeros(4, 4, dtype=torch.bool)})
    assert [axes.get_title() for axes in figure.axes] == ["lines\n2.00x", "none\ntakes nothing"]
    with pytest.raises(ValueError, match=r"got torch.float32 \(4,\), expected bool"):
        imaging.draw_masks({"lines": torch.ones(4)})
    with pytest.raises(ValueError, match="got no mask"):
        imaging.draw_masks({})


def test_curves_are_medians_with_the_trained_depth_marked():
    residual = torch.tensor([[1.0, 0.1, 0.01], [2.0, 0.2, 0.02], [3.0, 0.3, 0.03]])
    curves = {
        "ours": (residual, 30 - residual),
        "unrolled": (torch.tensor([1.0, torch.inf]), torch.tensor([20.0, 5.0])),
    }
    left, right = imaging.draw_steps(curves, trained={"unrolled": 2}).axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([2.0, 0.2, 0.02])
    assert right.lines[0].get_ydata().tolist() == pytest.approx([28.0, 29.8, 29.98])
    marked = [line for line in right.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in marked] == [2]
    assert [text.get_text() for text in left.get_legend().texts] == ["ours", "unrolled", "trained depth"]
    assert left.get_yscale() == "log"
    for given, said in (
        ({"trained": {"other": 3}}, "expected a curve each"),
        ({"trained": {"ours": 0}}, "expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=said):
            imaging.draw_steps(curves, **given)
    with pytest.raises(ValueError, match="of one shape"):
        imaging.draw_steps({"ours": (torch.ones(2), torch.ones(3))})
