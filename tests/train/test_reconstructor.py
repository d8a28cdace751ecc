"""Training of reconstruction: losses, metrics, physics of every sample, and what is refused before training."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

import torchimplicit as ti
from torchimplicit.imaging import Blur, Fourier, Gradient, Reconstruction, Ridge, cartesian, psnr, split_loss, ssim
from torchimplicit.train.data import Images, Measured, Measurement, RecipeData, Splits
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Equivariant, ReconstructionLoss, Reconstructor, Risk, Splitting, Supervised
from torchimplicit.train.modules.reconstructor import seen

KERNEL = torch.full((3, 3), 1 / 9)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


class Adjoint(nn.Module):
    """The adjoint image, brighter to the right by what is learned, which mixes frequencies."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, y, op):
        x = op.A_adjoint(y)
        return x * (1 + (self.scale - 1) * torch.linspace(0, 1, x.shape[-1]))


class Given(RecipeData):
    """Splits that are given."""

    def __init__(self, *splits, batch_size=2):
        super().__init__(batch_size)
        self.given = Splits(*splits)

    def load(self):
        return self.given


def blurred(count=4, edge=16, target=True):
    x = torch.rand(count, 1, edge, edge, generator=torch.Generator().manual_seed(0))
    op = Blur(KERNEL)
    return Measured(op.A(x), op, x if target else None)


def scanned(count=4, target=True):
    """Images of 16 x 16, each measured with a mask of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 16, 16, dtype=torch.complex64, generator=generator)
    op = Fourier(torch.stack([cartesian(16, 2, center_fraction=0.25, seed=i) for i in range(count)]))
    return Measured(op.A(x), op, x if target else None)


def whole(data):
    return data.__getitems__(list(range(len(data))))


def trained(module, *splits, **options):
    trainer = Trainer(**QUIET, max_epochs=1, log_every_n_steps=1, **options)
    trainer.fit(module, datamodule=Given(*splits))
    return trainer


def test_the_supervised_loss_and_the_metrics_leave_the_border_out():
    module, batch = Reconstructor(Adjoint(), border=2), whole(blurred())
    loss = module.evaluate("val", batch)
    image, target = batch.op.A_adjoint(batch.y), batch.target
    error = (image - target)[..., 2:-2, 2:-2]
    assert loss.item() == pytest.approx(error.square().mean().item())
    found = module.metrics["val_metrics"].compute()
    assert found["val/psnr"] == pytest.approx(psnr(image, target, data_range=1.0, border=2).mean().item())
    assert found["val/ssim"] == pytest.approx(ssim(image, target, data_range=1.0, border=2).mean().item())


def test_scales_learn_at_their_own_rate():
    layer = Reconstruction(Gradient(Ridge(filters=2, taps=3), weight=1.0))
    for rate in (1.0, 3.0):
        weights, scales = Reconstructor(layer, learning_rate=0.5, scale_rate=rate).groups()
        assert [each.shape for each in weights["params"]] == [(2, 1, 3, 3)]
        assert sorted(each.shape for each in scales["params"]) == [(), (2,)]
        assert (weights["lr"], scales["lr"]) == (0.5, 0.5 * rate)


@pytest.mark.parametrize("by", ["magnitude", "difference"])
def test_complex_images_are_compared_as_asked_and_by_their_own_peak(by):
    module, batch = Reconstructor(Adjoint(), data_range=None, by=by), whole(scanned())
    loss = module.evaluate("test", batch)
    image, target = batch.op.A_adjoint(batch.y), batch.target
    assert loss.item() == pytest.approx((image - target).abs().square().mean().item())
    peak = target.abs().flatten(1).amax(1)
    expected = psnr(image, target, data_range=peak, by=by).mean().item()
    assert module.metrics["test_metrics"].compute()["test/psnr"] == pytest.approx(expected)


def test_physics_of_every_sample_narrows_with_the_batch():
    data = scanned()
    layer = Reconstruction(Gradient(Ridge(filters=2, taps=3), eps=1e-2))
    module = Reconstructor(layer)
    with torch.no_grad():
        together, alone = module(*module.inputs(whole(data))), module(*module.inputs(data.__getitems__([2])))
    assert layer.report.converged
    assert torch.allclose(together[2], alone[0], atol=1e-3)


def test_an_equilibrium_learns_the_weight_of_its_prior():
    module = Reconstructor(
        Reconstruction(Gradient(Ridge(filters=2, taps=3), weight=10.0, eps=1e-3), on_failure="ignore"),
        learning_rate=1.0,
    )
    module.network.cell.prior.requires_grad_(False)
    before = module.evaluate("val", whole(blurred()))
    trainer = trained(module, blurred(), blurred(), blurred())
    assert module.evaluate("val", whole(blurred())) < 0.9 * before
    logged = trainer.logged_metrics
    assert logged["train/forward_unconverged"] == logged["train/backward_unconverged"] == 0
    assert {"train/psnr", "train/ssim", "val/psnr", "val/ssim", "val/forward_steps"} <= logged.keys()


@pytest.mark.parametrize(
    ("loss", "make"),
    [
        (Splitting(held_out=0.5, center_fraction=0.25), scanned),
        (Risk(noise=0.1), scanned),
        (Equivariant(), scanned),
        (Equivariant(group="flip"), blurred),
        (Equivariant(group="turn", weight=0.5), blurred),
        (Risk(noise=0.1), blurred),
    ],
)
def test_losses_that_need_no_truth_train_without_any(loss, make):
    module, data = Reconstructor(Adjoint(), loss=loss, learning_rate=0.1), make(target=False)
    trainer = trained(module, data, data, data)
    assert module.network.scale.item() != 1
    assert np.isfinite(float(trainer.logged_metrics["train/loss"]))
    assert not any("psnr" in name for name in trainer.logged_metrics)


def test_what_a_stage_does_not_compute_is_not_asked_of_its_samples():
    """Slabs too narrow for SSIM train by held-out lines, and are refused where the loss is the truth's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 6, dtype=torch.complex64, generator=generator)
    op = Fourier(cartesian(16, 2, center_fraction=0.25, seed=0).mT, dims=(-2,))
    slabs = Measured(op.A(x), op, x)
    options = {"by": "difference", "data_range": None}
    trained(Reconstructor(Adjoint(), loss=Splitting(), **options), slabs, scanned(), scanned())
    with pytest.raises(UsageError, match=r"train data: ssim: got 16 x 6 pixels, expected at least 11"):
        trained(Reconstructor(Adjoint(), **options), slabs, scanned(), scanned())


def test_truth_that_is_known_is_only_looked_at():
    module = Reconstructor(Adjoint(), loss=Splitting(center_fraction=0.25), data_range=None)
    trainer = trained(module, scanned(target=False), scanned(), scanned())
    assert "val/psnr" in trainer.logged_metrics
    assert "train/psnr" not in trainer.logged_metrics
    (found,) = trainer.test(module, datamodule=trainer.datamodule, verbose=False)
    assert {"test/psnr", "test/ssim", "test/loss"} <= found.keys()


def test_losses_are_those_of_imaging():
    batch, network = whole(scanned()), Adjoint()
    network.scale.data.fill_(2)
    loss, image, used, registration = Splitting(held_out=0.3, center_fraction=0.25)(network, batch, seed=5)
    expected = split_loss(network, batch.y, batch.op, held_out=0.3, center_fraction=0.25, seed=5)
    assert torch.equal(loss, expected)
    assert image is used is registration is None
    turned = [Equivariant(group=group)(network, batch, seed=1)[0] for group in ("shift", "flip", "turn")]
    assert len({each.sum().item() for each in turned}) == 3
    weighted = [Equivariant(weight=weight)(network, batch, seed=1)[0].sum() for weight in (0.0, 1.0, 2.0)]
    assert (weighted[2] - weighted[0]).item() == pytest.approx(2 * (weighted[1] - weighted[0]).item(), rel=1e-4)


def test_splits_are_new_at_every_step_and_the_same_in_every_validation():
    module, batch = Reconstructor(Adjoint(), loss=Splitting(center_fraction=0.25)), whole(scanned(target=False))
    module.network.scale.data.fill_(2)
    assert module.evaluate("train", batch) != module.evaluate("train", batch)
    assert module.evaluate("val", batch) == module.evaluate("val", batch)


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (Reconstructor(Adjoint()), blurred(target=False), "without true images. Try a loss that needs none"),
        (Reconstructor(Adjoint(), loss=Splitting()), blurred(), "got a Blur, expected a Fourier or Sense"),
        (Reconstructor(Adjoint()), Measured(torch.ones(2, 1, 4, 4).int(), Blur(KERNEL)), "measurements of torch.int32"),
        (
            Reconstructor(Adjoint()),
            Measured(torch.ones(2, 1, 14, 14), Blur(KERNEL), torch.ones(2, 1, 16, 16).byte()),
            r"target of torch.uint8, expected floats. Try x.float\(\) / 255",
        ),
        (Reconstructor(Adjoint()), Measured(torch.full((2, 1, 4, 4), torch.nan), Blur(KERNEL)), "16 values .* NaN"),
        (Reconstructor(Adjoint()), Measured(torch.ones(2, 1, 9, 9), None), "operator NoneType without A and A_adj"),
        (
            Reconstructor(Adjoint()),
            Measured(torch.ones(2, 1, 14, 14), Blur(KERNEL), torch.ones(2, 1, 20, 20)),
            "images are .*16, 16.*the true ones .*20, 20",
        ),
        (Reconstructor(Adjoint(), border=3), blurred(), "got 10 x 10 pixels, expected at least 11 each way"),
    ],
)
def test_data_that_cannot_be_reconstructed_from_is_refused_before_training(module, data, message):
    with pytest.raises(UsageError, match=message):
        trained(module, data, data, data)


def test_batches_of_another_kind_are_refused():
    data = Images(torch.ones(2, 1, 4, 4).byte(), torch.ones(2), 0.0, 1.0)
    with pytest.raises(UsageError, match=r"train batches of tuple, expected train.data.Measurement\(y, op, target\)"):
        trained(Reconstructor(Adjoint()), data, data, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reconstructor(Adjoint(), border=-1), "border=-1"),
        (lambda: Reconstructor(Adjoint(), scale_rate=-1.0), "scale_rate=-1.0"),
        (lambda: Reconstructor(Adjoint(), data_range=0.0), "data_range=0.0"),
        (lambda: Reconstructor(Adjoint(), by="phase"), "by='phase'"),
        (lambda: Risk(noise=0.0), "noise=0.0"),
        (lambda: Equivariant(group="affine"), "group='affine'"),
        (lambda: Equivariant(weight=-1.0), "weight=-1.0"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_of_losses_says_what_it_needs():
    with pytest.raises(NotImplementedError, match="expected a method __call__"):
        ReconstructionLoss()(Adjoint(), whole(blurred()), seed=0)
    with pytest.raises(UsageError, match="Supervised: got measurements without true images"):
        Supervised()(Adjoint(), whole(blurred(target=False)), seed=0)


def test_it_draws_truth_measurement_and_reconstruction():
    module = Reconstructor(Adjoint())
    figures = module.pictures(whole(blurred()))
    assert len(figures) == 3
    titles = [ax.get_title() for ax in figures["sample 0"].axes]
    assert [title.split("\n")[0] for title in titles[:3]] == ["truth", "measured", "Adjoint"]
    assert module.pictures(whole(blurred(target=False))) == {}
    assert len(Reconstructor(Adjoint(), data_range=None).pictures(whole(scanned()))) == 3


def test_measurements_are_shown_as_they_are_or_by_their_adjoint():
    batch = whole(blurred())
    shown = seen(batch)
    assert torch.equal(shown[..., 1:-1, 1:-1], batch.y)
    assert shown.shape == batch.target.shape
    scan = whole(scanned())
    assert torch.equal(seen(scan), scan.op.A_adjoint(scan.y))


def test_the_loss_takes_what_the_solver_finds_through_its_adjoint():
    data = whole(blurred(2))
    layer = Reconstruction(
        Gradient(Ridge(filters=2, taps=3), weight=0.5, eps=1e-2).double(),
        ti.Anderson(rtol=1e-10, atol=1e-12, max_steps=500),
    )
    module = Reconstructor(layer)
    batch = Measurement(data.y.double(), Blur(KERNEL.double()), data.target.double())
    module.evaluate("train", batch).backward()
    weight = layer.cell.log_weight
    slope, step = float(weight.grad), 1e-4
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step)
            values.append(float(module.evaluate("train", batch)))
            weight.sub_(sign * step)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)
