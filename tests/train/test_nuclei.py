"""The multiscale recipes: nuclei from both sources, the segmenter, the networks, and training them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import torchimplicit as ti
from torchimplicit.train.command.catalogue import shipped
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.data import DataError, Masked, Nuclei
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Segmenter
from torchimplicit.train.modules.segmenter import soft_dice
from torchimplicit.train.networks import MDEQClassifier, MDEQSegmenter, UNet, UNetSegmenter

REAL = os.environ.get("TORCHIMPLICIT_DATA")
SMALL = {"channels": (4, 8), "groups": 2, "width": 4}
COUNTS = {"validation": 3, "test": 4}


def slides(count, edge):
    """Bright discs on noise, `(N, edge, edge)`: images, and instances numbered from one."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:edge, :edge]
    instances = np.zeros((count, edge, edge), np.uint16)
    for image in instances:
        for number in (1, 2):
            row, column = generator.integers(4, edge - 4, 2)
            image[(rows - row) ** 2 + (columns - column) ** 2 < 9] = number
    noise = generator.integers(0, 40, instances.shape)
    return (noise + 100 * (instances > 0)).astype(np.uint8), instances


@pytest.fixture
def archive(tmp_path):
    """The archive, 12 images of 20 x 20."""
    path = tmp_path / "sets" / "nuclei" / "dsb2018_256_gray.npz"
    path.parent.mkdir(parents=True)
    images, instances = slides(12, 20)
    np.savez(path, images=images, instances=instances)
    return path


def test_the_archive_is_found_and_read(archive, monkeypatch):
    direct, above = (Nuclei(str(folder), crop=8, **COUNTS) for folder in (archive.parent, archive.parent.parent))
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(archive.parent.parent))
    images, instances = (torch.from_numpy(each.astype(np.int64)) for each in slides(12, 20))
    for data in (direct, above, Nuclei(crop=8, **COUNTS)):
        data.setup()
        assert [len(split) for split in data.splits] == [5, 3, 4]
        for split in data.splits:
            places = [(images == image).flatten(1).all(1).nonzero().item() for image in split.images]
            assert torch.equal(split.masks, instances[places] > 0)
    x, label = next(iter(direct.val_dataloader()))
    assert (x.shape, label.shape) == ((3, 1, 20, 20), (3, 20, 20))
    assert (x.dtype, label.dtype) == (torch.float32, torch.int64)
    assert x.mean((1, 2, 3)).abs().max() < 1e-5
    assert (x.std((1, 2, 3)) - 1).abs().max() < 1e-5
    assert set(label.unique().tolist()) == {0, 1}
    assert [each.shape[-1] for each in next(iter(direct.train_dataloader()))] == [8, 8]


def test_the_folder_of_the_publication_is_read(tmp_path):
    from PIL import Image

    images, instances = slides(3, 256)
    for number, (image, instance) in enumerate(zip(images, instances, strict=True)):
        place = tmp_path / "stage1_train" / f"slide{number}"
        (place / "images").mkdir(parents=True)
        (place / "masks").mkdir()
        Image.fromarray(image).convert("RGBA").save(place / "images" / "one.png")
        for nucleus in (1, 2):
            Image.fromarray(((instance == nucleus) * 255).astype(np.uint8)).save(place / "masks" / f"{nucleus}.png")
    odd = tmp_path / "stage1_train" / "odd" / "images"
    odd.mkdir(parents=True)
    Image.fromarray(images[0][:100]).save(odd / "one.png")
    data = Nuclei(str(tmp_path), validation=1, test=1)
    data.setup()
    got = torch.cat([split.images for split in data.splits]).sum((1, 2)).sort().values
    assert got.tolist() == sorted(images.sum((1, 2), dtype=np.int64).tolist())
    for split in data.splits:
        assert torch.equal(split.masks, split.images >= 100)
    (odd / "one.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*odd: cannot identify image file.*Try to fetch it again from"):
        Nuclei(str(tmp_path)).setup()


def test_validation_belongs_to_the_seed_and_the_test_split_does_not(archive):
    one, same, other = (Nuclei(str(archive.parent), seed=seed, crop=8, **COUNTS) for seed in (0, 0, 1))
    for data in (one, same, other):
        data.setup()
    assert torch.equal(one.splits.val.images, same.splits.val.images)
    assert not torch.equal(one.splits.val.images, other.splits.val.images)
    assert torch.equal(one.splits.test.images, other.splits.test.images)


def test_crops_are_pieces_in_all_eight_positions_and_masks_go_along():
    image = torch.arange(36, dtype=torch.uint8).view(1, 6, 6)
    data = Masked(image.expand(400, 6, 6), image.expand(400, 6, 6) >= 18, crop=2)
    x, label = data.__getitems__(list(range(400)))
    values = (x[:, 0] * data.std + data.mean).round().long()
    assert torch.equal(label, (values >= 18).long())
    corner = values[:, 0, 0].view(-1, 1)
    steps = (values[:, [0, 1], [1, 0]] - corner).tolist()  # to the right and downwards, in places of the image
    expected = {(a, b) for a, b in ((1, 6), (6, 1))}
    expected = {(s * a, t * b) for a, b in expected for s in (1, -1) for t in (1, -1)}
    assert {tuple(step) for step in steps} == expected
    assert len(values.flatten(1).min(1).values.unique()) == 25, "every place is reached"
    assert [each.shape for each in data[3]] == [(1, 2, 2), (2, 2)]


def test_it_says_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no folder to look in. Try git clone https://github.com/lopuhin/.*--data-dir"):
        Nuclei().setup()
    with pytest.raises(DataError, match=r"looked for stage1_train and dsb2018_256_gray.npz in .*nowhere/nuclei"):
        Nuclei(str(tmp_path / "nowhere")).setup()
    (tmp_path / "stage1_train").mkdir()
    with pytest.raises(DataError, match=r"stage1_train: no image of 256 x 256 pixels"):
        Nuclei(str(tmp_path)).setup()


def test_it_says_what_is_broken(archive):
    content = archive.read_bytes()
    for broken in (content[:3000], b"no archive"):
        archive.write_bytes(broken)
        with pytest.raises(DataError, match=r"cannot read .*npz: .*Try to fetch it again"):
            Nuclei(str(archive.parent)).setup()
    np.savez(archive, images=np.zeros((2, 4, 4), np.uint8), instances=np.zeros((2, 4, 5), np.uint16))
    with pytest.raises(DataError, match=r"images \(2, 4, 4\) of uint8, instances \(2, 4, 5\); expected bytes"):
        Nuclei(str(archive.parent)).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 8, "test": 4}, r"Nuclei\(validation=8, test=4\).*less than the 12 images"),
        ({"validation": 0, "test": 4}, r"Nuclei\(validation=0, test=4\): expected more than 0 each"),
        ({"crop": 21, **COUNTS}, r"Nuclei\(crop=21\): expected more than 0, and at most 20"),
        ({"crop": 0, **COUNTS}, r"Nuclei\(crop=0\): expected more than 0"),
    ],
)
def test_impossible_splits_are_refused(archive, options, message):
    with pytest.raises(DataError, match=message):
        Nuclei(str(archive.parent), **options).setup()


def test_soft_dice_of_certain_probabilities_is_the_dice_coefficient():
    label, guess = torch.tensor([[[0, 1, 1], [0, 0, 1]]]), torch.tensor([[[0, 1, 0], [1, 0, 1]]])
    certain = torch.nn.functional.one_hot(guess, 2).movedim(-1, 1).double()
    assert soft_dice(certain, label).item() == pytest.approx((2 * 2 + 1) / (3 + 3 + 1))
    half = torch.full((1, 2, 2, 3), 0.5, dtype=torch.float64)
    assert soft_dice(half, label).item() == pytest.approx((2 * 1.5 + 1) / (3 + 3 + 1))
    absent = torch.zeros(1, 2, 3, dtype=torch.int64)
    assert soft_dice(torch.nn.functional.one_hot(absent, 2).movedim(-1, 1), absent) == 1


@pytest.mark.parametrize("make", [MDEQSegmenter, UNetSegmenter])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 22)])
def test_segmenters_answer_at_every_pixel(make, height, width):
    network = make(classes=3, **SMALL)
    logits = network(torch.randn(2, 1, height, width))
    assert logits.shape == (2, 3, height, width)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_classifier_answers_once_an_image():
    network = MDEQClassifier(channels=(4, 8), groups=2, strides=(2, 2), classes=7)
    assert network(torch.randn(3, 3, 17, 16)).shape == (3, 7)
    assert network.backbone.equilibrium.report.converged


def test_the_rival_has_as_many_parameters_and_the_same_ends():
    one, other = MDEQSegmenter(), UNetSegmenter()
    count = [sum(p.numel() for p in network.parameters()) for network in (one, other)]
    assert count[0] == pytest.approx(count[1], rel=1e-2)
    assert one.head.state_dict().keys() == other.head.state_dict().keys()
    assert [p.shape for p in one.backbone.stem.parameters()] == [p.shape for p in other.stem.parameters()]
    with pytest.raises(ValueError, match=r"UNet\(channels=\(4, 5\)\): expected multiples of groups=2"):
        UNet((4, 5), 2)


def test_every_part_of_the_rival_counts():
    network, x = UNet((4, 8, 8), 2), torch.randn(2, 4, 9, 8)
    before = network(x)
    assert [tuple(each.shape) for each in before] == [(2, 4, 9, 8), (2, 8, 5, 4), (2, 8, 3, 2)]
    for name, weight in network.named_parameters():
        if name.endswith("conv1.weight") or ("scend" in name and name.endswith("weight")):
            kept = weight.detach().clone()
            with torch.no_grad():
                weight.neg_()
                assert not torch.allclose(network(x)[0], before[0])
                weight.copy_(kept)


def test_options_reach_the_layer():
    network = MDEQSegmenter(solver=ti.Broyden(), adjoint=ti.Phantom(steps=2), warm_start=True, **SMALL)
    layer = network.backbone.equilibrium
    assert (layer.solver, layer.adjoint, layer.on_failure) == (ti.Broyden(), ti.Phantom(steps=2), "ignore")
    assert layer.warm_start


def test_the_segmenter_scores_its_predictions():
    class Known(torch.nn.Module):
        def forward(self, x):
            return torch.cat([-x, x], 1)

    module = Segmenter(Known())
    truth = torch.zeros(2, 4, 4, dtype=torch.int64)
    truth[0, :2], truth[1, :, 0] = 1, 1
    guess = truth.clone()
    guess[0, 1] = 0  # half of the first one's eight pixels are missed
    module.evaluate("val", (20.0 * (2 * guess.unsqueeze(1) - 1), truth))
    values = module.metrics["val_metrics"].compute()
    assert values["val/dice"].item() == pytest.approx((2 * 4 / 12 + 1) / 2)
    assert values["val/mean_iou"].item() == pytest.approx(((4 / 8 + 8 / 12) / 2 + 1) / 2)
    perfect = module.evaluate("test", (20.0 * (2 * truth.unsqueeze(1) - 1), truth))
    assert perfect < 1e-6


def test_it_draws_image_truth_and_prediction():
    module, x, label = Segmenter(MDEQSegmenter(**SMALL)), torch.randn(6, 1, 16, 16), torch.randint(2, (6, 16, 16))
    (figure,) = module.pictures((x, label)).values()
    axes = np.array(figure.axes).reshape(4, 3)
    assert [ax.get_title() for ax in axes[0]] == ["image", "truth", "prediction"]
    with torch.no_grad():
        prediction = module(x).argmax(1)
    for row, images in zip(axes, zip(x[:4, 0], label, prediction, strict=False), strict=True):
        for ax, image in zip(row, images, strict=True):
            assert np.array_equal(ax.images[0].get_array(), image.numpy())


def test_wrong_numbers_of_classes_are_refused():
    with pytest.raises(UsageError, match=r"Segmenter\(classes=3\): the network has 2 classes"):
        Segmenter(MDEQSegmenter(**SMALL), classes=3)
    with pytest.raises(ValueError, match=r"Segmenter\(picture_every=0\): expected an integer >= 1"):
        Segmenter(MDEQSegmenter(**SMALL), picture_every=0)


@pytest.mark.skipif(not REAL, reason="TORCHIMPLICIT_DATA is unset: no real nuclei to read")
def test_the_real_set_is_whole():
    data = Nuclei(REAL)
    data.setup()
    assert [len(split) for split in data.splits] == [234, 40, 60]
    x, label = next(iter(data.train_dataloader()))
    assert (x.shape, label.shape) == ((16, 1, 128, 128), (16, 128, 128))
    inside, outside = (x[:, 0][label == kind].mean() for kind in (1, 0))
    assert inside > outside + 1, "nuclei are bright"


def test_the_recipe_trains_logs_pictures_and_is_reported(archive):
    words = ["fit", "--config", "nuclei-mdeq", "--data-dir", str(archive.parent), "--data.validation", "3"]
    words += ["--data.test", "4", "--data.crop", "16", "--data.batch_size", "3", "--trainer.max_epochs", "6"]
    words += ["--model.network.channels", "[8, 16]"]
    words += ["--trainer.log_every_n_steps", "2", "--trainer.enable_progress_bar", "false"]
    assert main([*words, "--trainer.accelerator", "cpu"]) == 0
    run = Path("runs/nuclei-mdeq/version_0")
    curves = read_curves(run)
    assert curves["train/forward_unconverged"][1][-1] == 0.0
    assert len(curves["val/dice"][1]) == len(curves["val/mean_iou"][1]) == 2
    assert curves["train/loss"][1][-1] < curves["train/loss"][1][0]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run))
    log.Reload()
    assert log.Tags()["images"] == ["segmentation"]
    words = ["report", str(run / "checkpoints" / "best.ckpt"), "--data-dir", str(archive.parent), "--samples", "1"]
    assert main(words) == 0
    page = (run / "report.html").read_text()
    assert "segmentation" in page
    assert "Could not be made" not in page


def test_the_recipe_of_the_classifier_trains(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        records = generator.integers(0, 256, (8, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    words = ["fit", "--config", "cifar10-mdeq", "--data-dir", str(tmp_path), "--data.validation", "8"]
    words += ["--data.batch_size", "16", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
    assert main([*words, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]) == 0
    curves = read_curves(Path("runs/cifar10-mdeq/version_0"))
    assert curves["train/forward_unconverged"][1] == [0.0, 0.0]
    assert curves["train/backward_unconverged"][1] == [0.0, 0.0]
    assert 0 <= curves["val/accuracy"][1][0] <= 1


def test_every_epoch_leaves_a_checkpoint_to_go_on_from_though_few_are_validated():
    settings = yaml.safe_load(shipped()["nuclei-mdeq"].read_text())["trainer"]
    (last,) = (each["init_args"] for each in settings["callbacks"] if each["init_args"]["filename"] == "last")
    assert settings["check_val_every_n_epoch"] > 1, "Lightning saves after validations, unless it is told"
    assert last["save_on_train_epoch_end"]
