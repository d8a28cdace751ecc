"""The base of the modules whose networks draw images: what a test measures of them, and what they look like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require_count
from torchimplicit.nn.score.samplers.base import Sampler
from torchimplicit.path.solver import PathSolver
from torchimplicit.train.data.scaling import Linear, Scaling
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage
from torchimplicit.train.modules.flow import square_images
from torchimplicit.train.quality import Quality, Reference, Verdict, compare, plot_qualities
from torchimplicit.train.seeds import seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class GenerativeModule(EquilibriumModule):
    """Trains a network that draws images, and measures what it draws; see `EquilibriumModule`.

    The data module is one of dequantised images, such as `DequantisedMNIST`: it has `levels` and `classes`, and its
    batches are images of numbers in [0, levels) and their classes.

    Validation and test draw the same noise at any time, so that losses can be compared. The test also logs
    `test/bits`, see `bits`, of the first test images; `test/frechet_floor` and `test/sliced_floor`, the distances of
    real test images to the training images (see `train.quality`); and of every sampler, such as `HeunEDM` with 19
    evaluations, `test/frechet/HeunEDM-19`, `test/sliced/...`, with classes `test/agreement/...`, means over draws, and
    `test/frechet_spread/...`, the standard deviation over draws.

    Args:
        network: what is trained; it has `shape`, of a sample, and may have `classes`.
        samplers: whose samples a test judges.
        samples: of a draw.
        draws: of every sampler.
        likelihoods: how many test images have their likelihood measured; 0 for none.
        scaling: from the data's numbers to what the network sees.
        **options: see `EquilibriumModule`.

    Attributes:
        levels: of the data; None before it was seen.

    Raises:
        UsageError: data and network do not fit each other (once there are data, before any training).
    """

    def __init__(
        self,
        network: nn.Module,
        samplers: Sequence[Sampler | PathSolver] = (),
        samples: int = 1000,
        draws: int = 3,
        likelihoods: int = 100,
        scaling: Scaling = Linear(),
        **options: Any,
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.samplers, self.scaling = tuple(samplers), scaling
        self.samples, self.draws, self.likelihoods = samples, draws, likelihoods
        require_count(self, "samples", "draws")
        require_count(self, "likelihoods", least=0)
        self.classes: int | None = getattr(network, "classes", None)
        self.levels: int | None = None
        self.measure()
        self._judged: tuple[list[Quality], Verdict] | None = None

    def draw(self, count: int, sampler: Any, seed: int, label: Tensor | None) -> tuple[Tensor, int]:
        """Samples as the network has them, `(count, *shape)`, and how many evaluations of it they took.

        Args:
            count: how many.
            sampler: one of `samplers`, or None for the network's own.
            seed: of the noise.
            label: classes `(count,)`; None for none.
        """
        raise NotImplementedError

    def log_prob(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The log-density `(B,)`, in nats, of samples as the network sees them."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: they do not fit each other.
        """
        data: Any = getattr(self._trainer, "datamodule", None)
        if data is None:
            return
        if getattr(data, "levels", None) is None or getattr(data, "classes", None) is None:
            raise UsageError(
                f"{type(self).__name__}: got data of {type(data).__name__}, expected images with noise, with `levels` "
                "and `classes`. Try DequantisedMNIST or DequantisedDigits."
            )
        data.setup()
        train = data.splits.train
        _compare(self, data, *train.__getitems__(list(range(min(256, len(train))))))
        self.levels = data.levels

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss, with noise that is the same in every epoch."""
        with _same_noise("val", batch_idx):
            super().validation_step(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss, with noise that is the same at every test."""
        with _same_noise("test", batch_idx):
            super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs the likelihood, and what the samplers reach."""
        super().on_test_epoch_end()
        splits = self.trainer.datamodule.splits  # type: ignore[attr-defined]
        if self.likelihoods:
            images, labels = splits.test.__getitems__(list(range(min(self.likelihoods, len(splits.test)))))
            self.log("test/bits", float(self.bits(images.to(self.device), labels.to(self.device)).mean()))
        if not self.samplers:
            return
        with torch.inference_mode(False):  # a classifier is trained here
            train, labels = splits.train.tensors
            reference = Reference(self.unit(train), labels, int(labels.max()) + 1)
            qualities, floor = self._judged = self.judge(splits, reference)
        self.log_dict({"test/frechet_floor": floor.frechet, "test/sliced_floor": floor.sliced})
        for quality in qualities:
            name = f"{quality.sampler}-{quality.evaluations}"
            for figure in ("frechet", "sliced", *(("agreement",) if self.classes else ())):
                self.log(f"test/{figure}/{name}", quality.mean(figure))
            if self.draws > 1:
                self.log(f"test/frechet_spread/{name}", quality.spread("frechet"))

    def bits(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of images in bits for each of their numbers, `(B,)`.

        Of a network with classes that of an image given its class, and the cost of telling one of so many classes: a
        bound on that of the image, at most that cost (0.004 bits of MNIST) from it.

        Args:
            images: numbers in [0, levels), `(B, *shape)`.
            labels: classes `(B,)`.
        """
        label = None if self.classes is None else labels
        levels = self._known_levels()
        with torch.no_grad(), _same_noise("bits"):
            found = self.log_prob(self.scaling(images, levels), label) + self.scaling.log_det(images, levels)
        cost = 0.0 if label is None else log(self.classes or 1)
        return (cost - found) / (log(2) * images[0].numel())

    def judge(self, splits: Any, reference: Reference) -> tuple[list[Quality], Verdict]:
        """What all samplers reach, and what as many real test samples would.

        Args:
            splits: the data's, with `tensors` of samples and classes each.
            reference: what judges.
        """
        (_, labels), (test, test_labels) = (split.tensors for split in (splits.train, splits.test))

        def draw(sampler: Any, seed: int) -> tuple[Tensor, Tensor | None, int]:
            label = labels[: self.samples].to(self.device) if self.classes else None
            count = self.samples if label is None else len(label)
            z, evaluations = self.draw(count, sampler, seed, label)
            return self.unit(self._shown(z)).cpu(), None if label is None else label.cpu(), evaluations

        floor = reference.judge(self.unit(test[: self.samples]), test_labels[: self.samples])
        return compare(self.samplers, draw, reference, self.draws), floor

    def unit(self, images: Tensor) -> Tensor:
        """Numbers in [0, levels] brought to [-1, 1]."""
        return 2 * images / self._known_levels() - 1

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Samples beside data; and after a test what the samplers have reached."""
        images, labels = batch[0][:36], batch[1][:36]
        label, sampler = labels if self.classes else None, self.samplers[0] if self.samplers else None
        drawn = self._shown(self.draw(len(images), sampler, 0, label)[0])
        figures = {"samples": square_images({"data": images.flatten(1), "samples": drawn.flatten(1)})}
        if self._judged is not None:
            figures["evaluations against quality"] = plot_qualities(*self._judged)
        return figures

    def _shown(self, z: Tensor) -> Tensor:
        """Numbers in [0, levels] of samples as the network has them."""
        return self.scaling.inverse(z, self._known_levels())

    def _count_solves(self, stage: Stage) -> None:
        """Nothing: a loss solves nothing, and the last report is that of samples."""

    def _known_levels(self) -> int:
        if self.levels is None:
            raise UsageError(f"{type(self).__name__}: has seen no data yet. Try module.levels = 256, or what it has.")
        return self.levels


def _compare(module: GenerativeModule, data: Any, images: Tensor, labels: Tensor) -> None:
    """Refuses data that the network is not made for, by some of it."""
    owner, expected = type(module).__name__, tuple(module.network.shape)
    low, high = float(images.min()), float(images.max())
    strange = [label for label in labels.tolist() if not 0 <= label < data.classes]
    wrong = None
    if module.classes not in (None, data.classes):
        wrong = f"the data has {data.classes} classes, the network is made for {module.classes}"
    elif tuple(images.shape[1:]) != expected:
        wrong = f"the data has samples of shape {tuple(images.shape[1:])}, the network is made for {expected}"
    elif not (low >= 0 and high <= data.levels):
        wrong = f"the data has numbers from {low:.4g} to {high:.4g}, expected them in [0, {data.levels})"
    elif strange:
        wrong = f"the data has class {strange[0]}, expected 0 to {data.classes - 1}"
    if wrong:
        raise UsageError(f"{owner}: {wrong}. Try another network or other data.")


@contextmanager
def _same_noise(*place: int | str) -> Iterator[None]:
    """Torch's generator in a state that follows from a place, and then as it was."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed_of(*place))
        yield
