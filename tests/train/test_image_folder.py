"""A user's own pictures, one folder a class."""

import numpy as np
import pytest
import torch
from PIL import Image

from torchimplicit.train.data import DataError, ImageFolder
from torchimplicit.train.data.pictures import facts_of, pixels_of

KINDS = {"cats": (200, 60, 40), "dogs": (40, 200, 60), "owls": (60, 40, 200)}


def picture(path, colour=(200, 60, 40), size=(20, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash(path.name)) % 2**32).integers(-30, 30, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Ten pictures a class, of sizes of their own."""
    for kind, colour in KINDS.items():
        for i in range(10):
            picture(tmp_path / "photos" / kind / f"{i}.{'jpg' if i % 2 else 'png'}", colour, (20 + i, 16 + 2 * i))
    return tmp_path / "photos"


def paths(data, split):
    return sorted(map(str, data._listed[split].paths))


def test_classes_sizes_and_splits_come_from_the_folder(photos):
    data = ImageFolder(str(photos), size=8, validation=0.2, test=0.2)
    data.setup()
    assert data.names() == ["cats", "dogs", "owls"]
    assert data.sizes() == {"in_channels": 3, "classes": 3, "image": 8}
    assert [len(split) for split in data.splits] == [18, 6, 6]
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (18, 3, 8, 8)
    assert y.bincount().tolist() == [6, 6, 6]
    together = torch.stack([data.splits.train[i][0] for i in range(18)])
    torch.testing.assert_close(together.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(together.square().mean((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_splits_follow_the_seed_and_the_test_split_is_always_the_same(photos):
    first, again, other = (ImageFolder(str(photos), size=8, seed=seed) for seed in (3, 3, 4))
    for each in (first, again, other):
        each.look()
    assert paths(first, "train") == paths(again, "train") != paths(other, "train")
    assert paths(first, "test") == paths(other, "test")
    everything = [path for name in ("train", "val", "test") for path in paths(first, name)]
    assert sorted(everything) == sorted(str(path) for path in photos.rglob("*.*"))


def test_a_checkpoint_needs_no_folder_to_know_what_was_found(photos):
    data = ImageFolder(str(photos), size=8)
    data.look()
    again = ImageFolder("gone", **data.found())
    assert again.format() == data.format()
    assert again.names() == data.names()
    assert again.sizes() == data.sizes()


@pytest.mark.parametrize("seed", [0, 1])
def test_processes_that_read_give_the_same_batches(photos, seed):
    options = {"size": 8, "shift": 2, "flip": True, "batch_size": 7, "seed": seed}
    alone, helped = ImageFolder(str(photos), **options), ImageFolder(str(photos), num_workers=2, **options)
    for name in ("train_dataloader", "val_dataloader"):
        batches = list(zip(getattr(alone, name)(), getattr(helped, name)(), strict=True))
        for (x, y), (other_x, other_y) in batches:
            torch.testing.assert_close(other_x, x, rtol=0, atol=1e-6)
            assert torch.equal(other_y, y)


def test_folders_of_the_splits_are_taken_as_they_are(photos, tmp_path):
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        for kind in ("a", "b"):
            for i in range(count):
                picture(tmp_path / "parted" / split / kind / f"{i}.png")
    data = ImageFolder(str(tmp_path / "parted"))
    data.setup()
    assert [len(split) for split in data.splits] == [8, 4, 6]
    assert all("/valid/" in path for path in paths(data, "val"))
    picture(tmp_path / "parted" / "test" / "c" / "0.png")
    with pytest.raises(DataError, match=r"test has the class 'c', expected one of those that train, a, b"):
        ImageFolder(str(tmp_path / "parted")).setup()


def test_a_folder_without_colours_is_grey(tmp_path):
    for kind in ("a", "b"):
        for i in range(3):
            picture(tmp_path / kind / f"{i}.png", mode="L")
    data = ImageFolder(str(tmp_path))
    data.setup()
    assert data.colour == "grey"
    assert data.size == (16, 20)
    assert data.splits.train[0][0].shape == (1, 16, 20)


def test_pictures_are_turned_as_the_camera_says_and_cut_in_the_middle(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255  # the middle
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert facts_of(tmp_path / "turned.png").size == (30, 10)
    whole = pixels_of(tmp_path / "turned.png", "grey", None)
    assert whole.shape == (1, 30, 10)
    assert (whole[0, 10:20] == 255).all()
    assert (whole[0, :10] == 0).all()
    assert (pixels_of(tmp_path / "turned.png", "grey", (10, 10)) == 255).all()


def broken(photos):
    (photos / "cats" / "0.png").write_bytes((photos / "cats" / "0.png").read_bytes()[:200])


def deep(photos):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(photos / "cats" / "deep.png")


def emptied(photos):
    for path in (photos / "dogs").iterdir():
        path.rename(path.with_suffix(".heic"))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (broken, {}, r"cannot read .*cats/0\.png: .*truncated"),
        (deep, {}, r"cannot read .*cats/deep\.png: more than 8 bits"),
        (emptied, {}, r"dogs has no pictures .*, but 10 others, such as 0\.heic"),
        (lambda photos: None, {"size": None}, r"cats/.* has \d+ x \d+ pixels, .*expected one size"),
        (lambda photos: None, {"labels": ["cats", "dogs"]}, r"has the class 'owls', expected one of those that train"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_anything_trains(photos, change, options, said):
    change(photos)
    for workers in (0, 2) if change is not broken else (0,):
        with pytest.raises(DataError, match=said):
            ImageFolder(str(photos), **{"size": 8, "num_workers": workers} | options).look()


def test_a_broken_picture_is_named_by_the_process_that_reads_it(photos):
    data = ImageFolder(str(photos), size=8, num_workers=1)
    data.setup()
    broken_path = data._listed["train"].paths[0]
    broken_path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"cannot read {broken_path}"):
        list(data.train_dataloader())


def test_a_tree_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        ImageFolder(str(tmp_path / "nowhere")).look()
    with pytest.raises(DataError, match=r"has no folders\. Expected a folder for every class"):
        ImageFolder(str(tmp_path)).look()
    picture(tmp_path / "loose.jpg")
    with pytest.raises(DataError, match=r"has 1 pictures, but in no folder of a class"):
        ImageFolder(str(tmp_path)).look()
    picture(tmp_path / "cats" / "0.jpg")
    with pytest.raises(DataError, match=r"has one class, 'cats', expected two or more"):
        ImageFolder(str(tmp_path)).look()
    for i in range(3):
        picture(tmp_path / "dogs" / f"{i}.jpg")
    with pytest.raises(DataError, match=r"class 'cats' has 1 pictures .*expected 3 at least"):
        ImageFolder(str(tmp_path)).look()


def test_other_files_are_left_out_and_told(photos):
    (photos / "cats" / "notes.txt").write_text("a note")
    (photos / "cats" / ".DS_Store").write_text("nobody's")
    with pytest.warns(UserWarning, match=r"has 1 files that are no pictures by their names, such as .*notes\.txt"):
        ImageFolder(str(photos), size=8).look()


IMPOSSIBLE = [{"size": 0}, {"validation": 0.0}, {"test": 0.9}, {"num_workers": -1}, {"colour": "red"}]


@pytest.mark.parametrize("wrong", IMPOSSIBLE)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageFolder("photos", **wrong)
