"""Data that is drawn: splits that follow from the seed, shapes that are what they say."""

import pytest
import torch
from PIL import Image

from torchimplicit.train.data import DataError, Density, Pendulum, Powers, Spiral

MAKES = [Powers, Spiral, Pendulum, *(lambda shape=shape: Density(shape) for shape in ("moons", "circles", "pinwheel"))]


def tensors(data, split="train"):
    data.setup()
    return getattr(data.splits, split).tensors


@pytest.mark.parametrize("make", MAKES)
def test_splits_follow_from_the_seed(make):
    one, other = make(), make()
    for split in ("train", "val", "test"):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one, split), tensors(other, split), strict=True))
    other = make()
    other.seed = 1
    assert not torch.equal(tensors(one)[0], tensors(other)[0])
    assert torch.equal(tensors(one, "test")[0], tensors(other, "test")[0])
    assert not torch.equal(tensors(one, "val")[0][:10], tensors(one, "test")[0][:10])


def test_powers_are_powers():
    x, y = tensors(Powers(power=5))
    assert torch.equal(y, x**5)
    assert x.shape == (512, 1)


def test_a_spiral_follows_its_field():
    data = Spiral(noise=0.0, times=3, duration=0.01)
    start, path = tensors(data)
    assert path.shape == (1000, 3, 2)
    assert torch.equal(path[:, 0], start)
    slope = (path[:, 2] - path[:, 0]) / 0.01
    assert torch.allclose(slope, data.field(None, path[:, 1]), atol=2e-2)
    noisy = tensors(Spiral(noise=0.1))[1]
    assert float((noisy - tensors(Spiral(noise=0.0))[1]).std()) == pytest.approx(0.1, rel=0.05)


def test_a_pendulum_keeps_its_energy_within_what_was_asked_for():
    data = Pendulum(noise=0.0, energy=1.2)
    y, slope = tensors(data)
    height = data.height(y)
    assert 0.05 < float(height.min()) < float(height.max()) < 1.2001
    assert torch.allclose(slope, torch.stack((y[:, 1], -torch.sin(y[:, 0])), 1))


def test_a_checkerboard_has_empty_fields():
    (points,) = tensors(Density("checkerboard"))
    fields = (points + 2).floor().long()
    assert set(fields.flatten().tolist()) == {0, 1, 2, 3}
    assert bool((fields.sum(1) % 2 == 0).all())


def test_points_of_a_picture_lie_where_it_is_dark(tmp_path):
    picture = Image.new("L", (40, 20), 255)
    picture.paste(0, (0, 0, 10, 20))  # the left quarter
    picture.save(tmp_path / "dark.png")
    (points,) = tensors(Density(str(tmp_path / "dark.png"), samples=500))
    assert float(points[:, 0].min()) >= -2
    assert float(points[:, 0].max()) <= -1
    assert -1 <= float(points[:, 1].min()) < -0.8
    picture.paste(255, (0, 0, 40, 20))
    picture.save(tmp_path / "white.png")
    with pytest.raises(DataError, match="white all over"):
        Density(str(tmp_path / "white.png")).setup()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text.png: cannot identify image file.*a picture to draw from"):
        Density(str(tmp_path / "text.png")).setup()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Density("squares"), "one of moons"),
        (lambda: Density(samples=0), "samples=0"),
        (lambda: Pendulum(energy=2.0), "swings to and fro"),
        (lambda: Spiral(noise=-1.0), "noise=-1"),
        (lambda: Powers(power=0), "power=0"),
    ],
)
def test_impossible_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()
