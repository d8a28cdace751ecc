"""Blurred photographs: which files are read, how they are split and cut, and what is refused before training."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchimplicit.imaging import Blur, Fourier, Stack, cartesian, gaussian_kernel, psnr
from torchimplicit.train.data import (
    BlurredPhotographs,
    DataError,
    GaussianKernel,
    Kernel,
    Measured,
    Measurement,
    MotionKernel,
)
from torchimplicit.train.data.measurement import first

REAL = os.environ.get("TORCHIMPLICIT_DATA")
SMALL = {"crop": 9, "evaluated": 12, "validation": 1, "test": 1, "samples": 7, "batch_size": 3}


def picture(number, height=14, width=18):
    """Colours that tell which picture, row and column a pixel is of."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([10 * rows, 10 * columns, np.full_like(rows, 40 * number)], -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Five pictures in formats that lose nothing, and one file that is no picture."""
    place = tmp_path / "mine"
    place.mkdir()
    for number in range(5):
        Image.fromarray(picture(number)).save(place / f"p{number}.{'PNG' if number % 2 else 'png'}")
    (place / "notes.txt").write_text("no picture")
    return place


def loaded(folder, **options):
    data = BlurredPhotographs(str(folder), **SMALL | options)
    data.setup()
    return data


def test_the_last_names_are_tested_and_the_seed_chooses_whom_to_validate(folder):
    chosen = {}
    for seed in (0, 0, 1, 2, 3):
        data = loaded(folder, channels=3, seed=seed)
        number = [round(float(split.target[0, 2, 0, 0]) * 255 / 40) for split in data.splits[1:]]
        assert number[1] == 4
        trained = {int(each[2, 0, 0]) // 40 for each in data.splits.train.pictures}
        assert trained == {0, 1, 2, 3} - {number[0]}
        chosen.setdefault(seed, set()).add(number[0])
    assert all(len(each) == 1 for each in chosen.values())
    assert len(set.union(*chosen.values())) > 1


def test_crops_to_test_are_where_they_are_asked_for(folder):
    middle, corner = (loaded(folder, channels=3, corner=at).splits.test.target for at in (None, (2, 5)))
    assert (middle[0, :2, 0, 0] * 25.5).round().tolist() == [1, 3]
    assert (corner[0, :2, 0, 0] * 25.5).round().tolist() == [2, 5]


def test_a_measurement_is_the_blurred_crop_and_noise_of_its_own(folder):
    data = loaded(folder, noise=0.0, kernel=MotionKernel(size=3, length=2.0), channels=3)
    y, op, target, _ = next(iter(data.test_dataloader()))
    assert torch.equal(y, Blur(MotionKernel(size=3, length=2.0).weights()).A(target))
    noisy = [next(iter(loaded(folder, noise=0.1, channels=3).test_dataloader())).y for _ in range(2)]
    assert torch.equal(*noisy)
    clean = Blur(gaussian_kernel(5, 5.0)).A(target)
    assert (noisy[0] - clean).std() == pytest.approx(0.1, rel=0.2)
    assert not op.kernel.requires_grad


def test_training_crops_are_pieces_in_eight_positions_the_same_for_a_place(folder):
    data = loaded(folder, channels=3, crop=6, samples=2000, kernel=GaussianKernel(size=3, sigma=1.0))
    (batch, again) = ([each.target for each in data.train_dataloader()] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    target = (torch.cat(batch) * 255).round()
    seen = {(int(row), int(column)) for row, column in (target[:, :2].amin((2, 3)) / 10)}
    assert seen == {(row, column) for row in range(9) for column in range(13)}, "every place is reached"
    corner = target[:, :2, 0, 0, None]
    steps = torch.stack([target[:, :2, 0, 1], target[:, :2, 1, 0]], 2) - corner  # to the right, and downwards
    assert len({tuple(step.flatten().tolist()) for step in steps}) == 8
    assert {int(number) // 40 for number in target[:, 2, 0, 0]} == {
        int(p[2, 0, 0]) // 40 for p in data.splits.train.pictures
    }


def test_noise_differs_between_samples_and_between_epochs(folder):
    data = loaded(folder, samples=40, crop=8, evaluated=14, batch_size=40, noise=0.1)
    y, op, target, _ = data.splits.train.__getitems__(list(range(40)))
    noise = (y - op.A(target)).flatten(1)
    assert (torch.corrcoef(noise) - torch.eye(40)).abs().max() < 0.95
    other = data.splits.train.__getitems__(list(range(40)))
    assert not torch.equal(noise, (other.y - op.A(other.target)).flatten(1))


def test_grey_is_what_pil_makes_of_colours(folder):
    grey = loaded(folder).splits.test.target
    expected = np.asarray(Image.fromarray(picture(4)).convert("L"), dtype=np.float32)[1:13, 3:15] / 255
    assert torch.equal(grey[0, 0], torch.from_numpy(expected))


def test_a_folder_of_data_sets_will_do_and_the_variable_too(folder, monkeypatch):
    folder.rename(folder.parent / "kodak")
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(folder.parent))
    data = BlurredPhotographs(**SMALL)
    data.setup()
    assert [len(split) for split in data.splits] == [7, 1, 1]


def test_jpegs_of_any_size_are_read(folder):
    Image.fromarray(picture(0, 30, 13)).save(folder / "a.JPG")
    assert (13, 30) in {tuple(each.shape[:0:-1]) for each in loaded(folder, validation=1, seed=3).splits.train.pictures}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 15, "evaluated": 12}, r"\(crop=15\): got 14 x 18 pixels in .*p\d.*Try a smaller crop, or leave"),
        ({"evaluated": 15}, r"\(evaluated=15\): got 14 x 18 pixels in .*Try a smaller evaluated, or leave"),
        ({"corner": (3, 0)}, r"\(evaluated=12\): got 14 x 18 pixels in .*corner \(3, 0\).*corner: null"),
        ({"validation": 4}, r"\(validation=4, test=1\): got 5 photographs in .*mine, expected at least one more"),
    ],
)
def test_photographs_that_do_not_fit_are_named(folder, options, message):
    with pytest.raises(DataError, match=message):
        loaded(folder, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 5}, r"crop=5\): expected more pixels than the kernel has, 5"),
        ({"evaluated": 3}, r"evaluated=3\): expected more pixels than the kernel has, 5"),
        ({"channels": 2}, r"channels=2\): expected 1 for grey, or 3"),
        ({"noise": -0.1}, r"noise=-0.1\): expected a finite number >= 0"),
        ({"corner": (-1, 0)}, r"corner=\(-1, 0\)\): expected None, or row and column"),
        ({"samples": 0}, r"samples=0\)"),
    ],
)
def test_impossible_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        BlurredPhotographs(**SMALL | options)


def test_impossible_kernels_are_refused_at_once():
    with pytest.raises(ValueError, match=r"gaussian_kernel\(size=4\): expected an odd"):
        GaussianKernel(size=4)
    with pytest.raises(ValueError, match=r"motion_kernel\(length=9\).*within the kernel"):
        MotionKernel(size=5, length=9)
    with pytest.raises(NotImplementedError, match="try GaussianKernel"):
        Kernel()


def test_it_says_where_it_looked(tmp_path):
    with pytest.raises(DataError, match=r"no folder to look in. Try --data-dir"):
        BlurredPhotographs().setup()
    with pytest.raises(DataError, match=r"no PNG or JPEG in .* and .*kodak"):
        BlurredPhotographs(str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no picture", "cannot identify image file"), ("deep", r"more than 8 bits a channel \(mode I;16\)")],
)
def test_broken_files_are_named(folder, content, message):
    path = folder / "p1.PNG"
    if content == "deep":
        Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*p1.PNG: .*{message}.*Expected PNG or JPEG"):
        loaded(folder)


def test_a_subclass_measures_by_its_own_operator(folder):
    class Both(BlurredPhotographs):
        def operator(self):
            return Stack(super().operator(), super().operator())

    data = Both(str(folder), **SMALL)
    data.setup()
    assert next(iter(data.train_dataloader())).y.shape == (3, 2, 1, 5, 5)


def test_first_narrows_tensors_and_operators():
    mask = torch.stack([cartesian(8, 2, center_fraction=0.25, seed=i) for i in range(4)])
    op = Fourier(mask)
    batch = Measurement(op.A(torch.ones(4, 8, 8, dtype=torch.complex64)), op, None)
    few = first(batch, 2)
    assert len(few.y) == 2
    assert few.target is None
    assert torch.equal(few.op.mask, mask[:2])
    assert len(first(batch, 9).y) == 4
    assert first((torch.ones(3, 2), torch.ones(3)), 2)[0].shape == (2, 2)


def test_measured_gives_the_operators_of_its_rows():
    mask = torch.stack([cartesian(8, 2, center_fraction=0.25, seed=i) for i in range(4)])
    y = torch.randn(4, 8, 8, dtype=torch.complex64)
    data = Measured(y, Fourier(mask))
    batch = data.__getitems__([3, 1])
    assert torch.equal(batch.y, y[[3, 1]])
    assert torch.equal(batch.op.mask, mask[[3, 1]])
    with pytest.raises(ValueError, match="got 3 targets of 4 measurements"):
        Measured(y, Fourier(mask), y[:3])


@pytest.mark.skipif(not (REAL and Path(REAL, "kodak").is_dir()), reason="needs the photographs")
def test_the_crops_of_the_recipe_are_blurred_to_28_decibels():
    data = BlurredPhotographs(REAL, corner=(120, 220))
    data.setup()
    y, _, target, _ = next(iter(data.test_dataloader()))
    assert psnr(y, target[..., 2:-2, 2:-2], data_range=1.0).mean() == pytest.approx(28.45, abs=0.01)
