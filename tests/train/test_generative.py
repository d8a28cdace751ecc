"""Score models and flows of images as recipes: what is refused before training, what is logged, what is drawn."""

import math
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import torchimplicit as ti
from torchimplicit.train import load
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import DataError, DequantisedDigits, DequantisedMNIST, Digits, Linear, Logit
from torchimplicit.train.data.dequantised import Dequantised, DequantisedData
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import ImageFlowMatching, Score
from torchimplicit.train.networks import ConditionalMLP, ImageFlow
from torchimplicit.train.quality import Reference, hidden_psnr, inpaint, upper_half


class Whites(torch.nn.Module):
    """The exact network of normal data of standard deviation 1 about 0: its denoiser is `u / (1 + s^2)`."""

    def forward(self, t, x):
        return torch.zeros_like(x)


class Toy(DequantisedData):
    """Squares of 4 x 4 numbers below 8, of two classes: dark ones and bright ones."""

    levels, classes = 8, 2

    def __init__(self, shape=(1, 4, 4), high=8, least=0):
        super().__init__(batch_size=16)
        self.shape, self.high, self.least = shape, high, least

    def parts(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(64) % 2
        numbers = torch.randint(self.least, self.high // 2, (64, *self.shape), generator=generator)
        numbers += self.high // 2 * labels.view(-1, *(1,) * len(self.shape))
        return dict.fromkeys(("train", "val", "test"), (numbers, labels))


def denoiser(classes=None, shape=16, **options):
    torch.manual_seed(0)
    network = ConditionalMLP(16, hidden=16, blocks=1, classes=classes)
    return ti.nn.Denoiser(network, ti.nn.EDM(0.05, 20.0), shape=shape, std=0.7, classes=classes, **options)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)


def test_mnist_gets_noise_between_its_numbers(mnist_folder):
    data = DequantisedMNIST(str(mnist_folder), batch_size=8, validation=10)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert 0 <= float(images.min()) < float(images.max()) < 256
    assert torch.equal(images[:, 0, 0, 0].floor() // 25, labels.float()) or bool((images[:, 0, 0, 0] < 256).all())
    assert [len(split) for split in data.splits] == [30, 10, 10]
    held = data.splits.test
    assert torch.equal(held.tensors[0].floor(), held.levels.float())
    assert torch.equal(held[3][0], held.tensors[0][3])


def test_numbers_that_are_no_levels_are_refused():
    with pytest.raises(DataError, match="got numbers from 0 to 9, expected whole numbers from 0 to 7"):
        Toy(high=10).load()
    with pytest.raises(DataError, match=r"got numbers from -2"):
        Toy(least=-2).load()


class Strange(Toy):
    """Data of somebody's own, which checks nothing."""

    change = staticmethod(lambda images, labels: (images, labels))

    def load(self):
        splits = super().load()
        return splits._replace(train=_Changed(splits.train, self.change))


class _Changed(Dequantised):
    def __init__(self, split, change):
        super().__init__(split.levels, split.labels, 0)
        self.change = change

    def __getitems__(self, indices):
        return self.change(*super().__getitems__(indices))


REFUSED = {
    "another size": (lambda x, y: (x[:, :9], y), r"samples of shape \(9,\), the network is made for \(16,\)"),
    "another range": (lambda x, y: (x / 8 - 1, y), r"numbers from -0\.\d+ to .*, expected them in \[0, 8\)"),
    "a strange class": (lambda x, y: (x, y + 1), "has class 2, expected 0 to 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_data_that_does_not_fit_is_refused_before_training(what):
    change, message = REFUSED[what]
    data = Strange(shape=(16,))
    data.change = change
    module = Score(denoiser(classes=2))
    before = {name: each.clone() for name, each in module.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        trainer(max_epochs=1).fit(module, datamodule=data)
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())


def test_other_classes_and_images_without_noise_are_refused():
    with pytest.raises(UsageError, match="the data has 2 classes, the network is made for 3"):
        trainer(max_epochs=1).fit(Score(denoiser(classes=3)), datamodule=Toy(shape=(16,)))
    with pytest.raises(UsageError, match="got data of Digits, expected images with noise"):
        trainer(max_epochs=1).fit(Score(denoiser()), datamodule=Digits())
    with pytest.raises(UsageError, match="has seen no data yet"):
        Score(denoiser()).bits(torch.rand(2, 16))


def test_bits_of_a_normal_law_are_exact():
    torch.manual_seed(0)
    model = ti.nn.Denoiser(Whites(), ti.nn.EDM(1e-3, 1e4), shape=16, std=1.0, interval=None).double()
    exact = {"trace": "exact", "solver": ti.Tsit5(rtol=1e-8, atol=1e-8)}
    images = 17 * torch.rand(3, 16).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    for scaling in (Linear(), Logit(mean=0.0, std=2.0)):
        module = Score(model, scaling=scaling, **exact)
        module.levels = 17
        nats = -normal.log_prob(scaling(images, 17)).sum(1) - scaling.log_det(images, 17)
        torch.testing.assert_close(module.bits(images), nats / 16 / math.log(2), rtol=1e-5, atol=1e-5)


def test_the_bound_of_an_exact_denoiser_is_the_likelihood():
    """Of normal data the bound is met: no path is better than the one that it is about."""
    torch.manual_seed(0)
    model = ti.nn.Denoiser(Whites(), ti.nn.EDM(0.02, 50.0), shape=16, std=1.0, interval=None).double()
    module = Score(model)
    module.levels = 2  # the scaling is then a shift by 1
    module.evaluate("val", (torch.randn(100_000, 16).double() + 1, torch.zeros(100_000)))
    found = float(module.metrics["val_metrics"].compute()["val/bound"])
    assert found == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), abs=0.06)


def test_a_test_measures_likelihoods_samplers_and_inpainting():
    samplers = (ti.nn.DPMSolverMultistep(steps=3), ti.nn.HeunEDM(steps=2))
    module = Score(denoiser(2), samplers=samplers, samples=20, draws=2, likelihoods=4, inpaintings=6, trace="exact")
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=Toy(shape=(16,)))
    first, second = (run.test(module, datamodule=Toy(shape=(16,)), verbose=False)[0] for _ in range(2))
    assert first == second
    for name in ("DPMSolverMultistep-3", "HeunEDM-3"):
        assert first[f"test/frechet/{name}"] > first["test/frechet_floor"] >= 0
        assert first[f"test/frechet_spread/{name}"] > 0
        assert 0 <= first[f"test/agreement/{name}"] <= 1
    for name in ("guidance", "replacement"):
        assert math.isfinite(first[f"test/inpainting_psnr/{name}"])
        assert 0 <= first[f"test/inpainting_agreement/{name}"] <= 1
    gain = first["test/inpainting_psnr/guidance"] - first["test/inpainting_psnr/replacement"]
    assert first["test/inpainting_psnr/gain"] == pytest.approx(gain)
    assert first["test/inpainting_psnr/gain_spread"] > 0
    assert first["test/bits"] == pytest.approx(3, abs=1.5)  # of a uniform law it is 3
    figures = module.pictures(next(iter(Toy(shape=(16,)).test_dataloader())))
    assert set(figures) == {
        "samples", "evaluations against quality", "from noise to images", "the lower half drawn",
    }  # fmt: skip


def test_validation_has_the_same_noise_in_every_epoch_and_leaves_the_generator_alone():
    module = Score(denoiser())
    run = trainer()
    losses = []
    for _ in range(2):
        torch.manual_seed(len(losses))
        losses.append(run.validate(module, datamodule=Toy(shape=(16,)), verbose=False)[0]["val/loss"])
    assert losses[0] == losses[1]


def test_a_trajectory_goes_from_noise_to_a_sample():
    torch.manual_seed(0)
    model = ti.nn.Denoiser(Whites(), ti.nn.EDM(0.01, 50.0), shape=16, std=1.0)
    noisy, clean = Score(model).trajectory(3, times=5)
    assert noisy.shape == clean.shape == (5, 3, 16)
    assert float(clean[0].abs().max()) < 0.1  # nothing is known yet
    torch.testing.assert_close(noisy[-1], clean[-1], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(noisy[0], noisy[-1], atol=0.02, rtol=0.02)  # the flow of a normal law only scales


@pytest.mark.parametrize("shape", [(16,), (1, 4, 4), (3, 4, 4)])
def test_the_lower_half_is_drawn_and_the_upper_one_kept(shape):
    seen = upper_half(torch.Size(shape))
    assert seen.shape == shape
    assert int(seen.sum()) == seen.numel() // 2
    assert seen.reshape(*shape[:-1], -1).flatten()[0]
    model = ti.nn.Denoiser(Whites(), ti.nn.EDM(0.01, 20.0), shape=shape, std=1.0, interval=None)
    images = torch.randn(2, *shape)
    for drawn in inpaint(model, images, steps=5).values():
        torch.testing.assert_close(drawn.images[:, seen], images[:, seen], atol=0.05, rtol=0.05)
        assert not torch.allclose(drawn.images[:, ~seen], images[:, ~seen], atol=0.5)
        assert drawn.evaluations == pytest.approx(15, abs=3)


def test_the_signal_to_noise_ratio_is_that_of_the_hidden_half():
    truth = torch.zeros(2, 1, 4, 4)
    found = truth.clone()
    found[:, :, 2:] = 0.2
    found[:, :, :2] = 9.0
    assert hidden_psnr(found, truth) == pytest.approx(20)  # 10 log10(4 / 0.04)


def test_a_flow_of_images_is_trained_and_drawn_with_any_solver():
    torch.manual_seed(0)
    flow = ImageFlow((1, 4, 4), channels=(4,), groups=2, classes=2)
    module = ImageFlowMatching(
        flow, samplers=(ti.Midpoint(dt=0.5),), samples=10, draws=1, likelihoods=2, scaling=Logit(mean=0.0)
    )
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=Toy())
    found = run.test(module, datamodule=Toy(), verbose=False)[0]
    (name,) = [name for name in found if name.startswith("test/frechet/Midpoint-")]
    assert found[name] > 0
    assert int(name.rpartition("-")[2]) == pytest.approx(
        4, abs=2
    )  # two steps of two evaluations, and looks at its ends
    assert math.isfinite(found["test/bits"])
    assert not any(name.startswith("test/frechet_spread") for name in found)
    assert isinstance(flow.flow.solver, ti.Tsit5)
    assert set(module.pictures(next(iter(Toy().test_dataloader())))) >= {"samples", "from noise to images"}


RECIPES = {
    "digits-score": "--model.network.network.hidden 8 --model.inpaintings 2",
    "mnist-score": "--model.network.network.channels [8] --model.inpaintings 2",
    "mnist-flow-matching": "--model.network.channels [8]",
}
LOWER_HALF = {recipe: {"the lower half drawn"} for recipe in ("digits-score", "mnist-score")}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_train_test_and_report(recipe, mnist_folder, capsys, monkeypatch):
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(mnist_folder))
    small = f"--config {recipe} {RECIPES[recipe]} --trainer.enable_progress_bar false --model.samples 4 "
    small += "--model.draws 1 --model.likelihoods 2 --model.samplers [] "
    small += "--model.trace hutchinson " if recipe == "digits-score" else "--data.validation 10 "
    short = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.check_val_every_n_epoch 1"
    assert main(f"fit {small} {short} --trainer.log_every_n_steps 1".split()) == 0
    assert main(f"test {small} --trainer.limit_test_batches 1".split()) == 0
    printed = capsys.readouterr().out
    bits = float(re.search(r"test/bits\W+([\d.]+)", printed)[1])
    assert 0 < bits < 20
    module, data = load(f"runs/{recipe}/version_0/checkpoints/best.ckpt")
    assert type(data) in (DequantisedDigits, DequantisedMNIST)
    assert not module.training
    assert main(["report", f"runs/{recipe}/version_0/checkpoints/best.ckpt", "--samples", "4"]) == 0
    page = Path(f"runs/{recipe}/version_0/report.html").read_text()
    assert "Could not be made" not in page
    expected = {"Test split", "Training", "samples", "from noise to images"}
    assert set(re.findall("<h2>(.*?)</h2>", page)) == expected | LOWER_HALF.get(recipe, set())


def test_a_reference_keeps_few_samples_to_compare_with():
    samples, labels = torch.rand(50, 16), torch.arange(50) % 2
    assert len(Reference(samples, labels, 2, most=20).samples) == 20
