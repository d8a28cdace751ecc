"""The recipe `flow-digits`: noise between whole numbers, densities in the units of a pixel, pictures of samples."""

import math
import re
from pathlib import Path

import pytest
import torch

from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.data import DequantisedDigits, Digits
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Flow
from torchimplicit.train.modules.flow import gaussian_nll, square_images
from torchimplicit.train.networks import WhitenedFlow


@pytest.fixture(scope="module")
def splits():
    return DequantisedDigits().load()


def small(width=3, **options):
    torch.manual_seed(0)
    return WhitenedFlow(width, hidden=8, layers=1, **options)


def moved(flow):
    """The same flow with a last layer that does something."""
    torch.nn.init.normal_(flow.flow.field.net[-1].weight, std=0.5)
    return flow


def test_pixels_are_those_of_the_digits_with_noise_between_them(splits):
    plain = Digits().load()
    for name, count in (("train", 1257), ("val", 180), ("test", 360)):
        rows, labels = getattr(splits, name).tensors
        assert rows.shape == (count, 64)
        assert torch.equal(labels, getattr(plain, name).labels)
        assert 0 <= float(rows.min()) < float(rows.max()) < 17
        assert torch.equal(rows.floor(), getattr(plain, name).images.flatten(1).float())
        assert float((rows - rows.floor()).mean()) == pytest.approx(0.5, abs=0.01)


def test_noise_is_drawn_anew_in_training_only(splits):
    torch.manual_seed(0)
    for name, fresh in (("train", True), ("val", False), ("test", False)):
        split = getattr(splits, name)
        (one, _), (other, _) = split.__getitems__([3, 1]), split.__getitems__([3, 1])
        assert torch.equal(one.floor(), split.tensors[0][[3, 1]].floor())
        assert torch.equal(one, other) != fresh
    again = DequantisedDigits().load()
    assert all(torch.equal(a.tensors[0], b.tensors[0]) for a, b in zip(splits, again, strict=True))


def test_a_flow_starts_as_the_normal_density_of_its_data(splits):
    train, test = splits.train.tensors[0], splits.test.tensors[0]
    flow = WhitenedFlow(hidden=8, layers=1)
    flow.settle(train)
    with torch.no_grad():
        nll = -float(flow.eval().log_prob(test[:100]).mean())
    assert nll == pytest.approx(gaussian_nll(train, test[:100]), abs=1e-2)


def test_the_density_of_whitened_vectors_is_one_of_the_vectors_themselves():
    flow = moved(small(width=2)).double().eval()
    flow.settle(torch.randn(500, 2).double() @ torch.tensor([[3.0, 1.0], [0.0, 0.2]]).double() + 5)
    side = torch.linspace(-12, 12, 161).double()
    z = torch.cartesian_prod(side, side)
    x = flow.mean + z @ flow.factor.mT
    with torch.no_grad():
        total = flow.log_prob(x).exp().sum() * (side[1] - side[0]) ** 2 * torch.linalg.det(flow.factor)
        assert float(total) == pytest.approx(1, abs=1e-3)
        weight = flow.log_prob(x).exp()
        samples = flow.sample(4000)
    assert torch.allclose(samples.mean(0), (weight @ x) / weight.sum(), atol=0.2)


def test_the_estimate_of_the_trace_is_for_training_only():
    flow = moved(small(trace="hutchinson"))
    x = torch.randn(4, 3)
    with torch.no_grad():
        assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
        flow.eval()
        assert torch.equal(flow.log_prob(x), flow.log_prob(x))


def test_samples_in_a_plane_are_refused():
    with pytest.raises(UsageError, match="covariance of the 50 training samples is singular"):
        small().settle(torch.ones(50, 3))


def test_images_have_a_gap_beside_each_and_one_scale():
    rows = torch.arange(3 * 16.0).reshape(3, 16)
    figure = square_images({"data": rows, "samples": rows[:2]})
    first, second = (torch.tensor(ax.images[0].get_array()) for ax in figure.axes)
    assert [ax.get_title() for ax in figure.axes] == ["data", "samples"]
    assert first.shape == (10, 10)  # two by two images of four by four pixels
    assert second.shape == (5, 10)
    assert torch.equal(first[5:9, :4], rows[2].reshape(4, 4))
    assert (first[4] == 47).all()
    assert figure.axes[1].images[0].get_clim() == (0, 47)


def test_a_flow_draws_squares_of_vectors_that_are_some(splits):
    module = Flow(WhitenedFlow(hidden=8, layers=1))
    assert list(module.pictures(splits.test.__getitems__([0, 1, 2, 3]))) == ["samples"]
    assert module.pictures((torch.randn(4, 3),)) == {}


def test_the_recipe_trains_and_reports_bits_and_baselines(capsys):
    recipe = "--config flow-digits --model.network.hidden 8 --trainer.enable_progress_bar false"
    short = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.log_every_n_steps 1"
    assert main(f"fit {recipe} {short} --trainer.check_val_every_n_epoch 1".split()) == 0
    assert main(f"test {recipe}".split()) == 0
    printed = capsys.readouterr().out
    figures = {name: float(value) for name, value in re.findall(r"(test/\w+)\W+([\d.]+)", printed)}
    assert figures["test/bits"] == pytest.approx(figures["test/nll"] / 64 / math.log(2), rel=1e-4)
    assert figures["test/nll"] == pytest.approx(figures["test/nll_gaussian"], abs=1)
    assert figures["test/nll_kernel_density"] == pytest.approx(149.3, abs=1)
    curves = read_curves(Path("runs/flow-digits/version_0"))
    assert curves["val/bits"][1][0] == pytest.approx(curves["val/nll"][1][0] / 64 / math.log(2), rel=1e-4)
