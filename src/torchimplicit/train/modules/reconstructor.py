"""Training of networks that reconstruct images from measurements, with or without the truth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from torchimplicit.core.options import require, require_count
from torchimplicit.imaging import draw_comparison, draw_steps, psnr, ssim
from torchimplicit.imaging.metrics import By
from torchimplicit.train.data.measurement import Measurement, first
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import STAGES, EquilibriumModule, Stage
from torchimplicit.train.modules.meter import SolveMeter
from torchimplicit.train.modules.reconstruction_losses import Judged, ReconstructionLoss, Supervised
from torchimplicit.train.quality.depth import by_steps
from torchimplicit.train.seeds import seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3  # images in the report
STEPS = 50  # of the curves there


class Reconstructor(EquilibriumModule):
    """Trains a network that reconstructs images, such as an `imaging.Reconstruction`; see `EquilibriumModule`.

    Logs `psnr` in decibels and `ssim`, means over images, in every stage in which the data has true images and the
    loss, or else validation and test, reconstruct the whole measurement. Draws for the report reconstructions with
    their errors, and quality against steps (`train.quality.by_steps`).

    The data gives batches `Measurement(y, op, target)`: the physics is an argument of the network, and may be another
    one for every sample.

    Args:
        network: `network(y, op) -> x`, images `(B, ...)` of measurements and the operator between them.
        loss: by what it is trained: the truth (`Supervised`), or measurements alone (`Splitting`, `Risk`,
            `Equivariant`, and of moving objects `Registered`), whose value then stands for the loss in validation and
            test, too. What it leaves out, as pairs that could not be registered, is logged as `left_out`, a part.
        data_range: of PSNR and SSIM; None takes the largest magnitude of every true image.
        by: how complex images are compared; SSIM is always that of magnitudes.
        border: pixels at each side of an image that neither loss nor metrics count.
        scale_rate: by how much faster scales learn than weights do: parameters of one dimension or none, which are
            mostly logarithms.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the data cannot be reconstructed from, or not by this loss (once there are data, before any
            training).
    """

    def __init__(
        self,
        network: nn.Module,
        loss: ReconstructionLoss = Supervised(),
        data_range: float | None = 1.0,
        by: By = "magnitude",
        border: int = 0,
        scale_rate: float = 1.0,
        **options: Any,
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.scale_rate = scale_rate
        self.loss, self.data_range, self.border = loss, data_range, border
        self.by: By = by
        require_count(self, "border", least=0)
        require(self, "data_range", data_range is None or data_range > 0, "None or a number > 0")
        require(self, "scale_rate", 0 <= scale_rate < math.inf, "a finite number >= 0")
        require(self, "by", by in ("magnitude", "difference"), "'magnitude' or 'difference'")
        self.meters |= {f"{stage}/registration": SolveMeter() for stage in STAGES}
        self.measure(psnr=MeanPSNR(data_range, by, border), ssim=MeanSSIM(data_range, by, border))

    def inputs(self, batch: Measurement) -> tuple:
        """What the network is called with."""
        return batch.y, batch.op

    def groups(self) -> list[dict[str, Any]]:
        """Weights, and scales at their rate."""
        parts: tuple[list, list] = ([], [])
        for parameter in self.parameters():
            parts[parameter.dim() < 2].append(parameter)
        rates = (self.learning_rate, self.scale_rate * self.learning_rate)
        return [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True) if part]

    def setup(self, stage: str) -> None:
        """Looks at a sample of every split: images and measurements, and what the loss can do with them.

        Raises:
            UsageError: see the class.
        """
        data: Any = getattr(self._trainer, "datamodule", None)
        if data is None:
            return
        data.setup()
        for name, split in zip(STAGES, data.splits, strict=True):
            with torch.random.fork_rng(devices=()):
                batch = split.__getitems__([0])
            compared = name != "train" or isinstance(self.loss, Supervised)
            self._check(name, batch, compared)
            if batch.target is None or not compared:
                self.metrics[f"{name}_metrics"] = MetricCollection({})

    def evaluate(self, stage: Stage, batch: Measurement) -> Tensor:
        """The mean of the loss over samples."""
        seed = int(torch.randint(2**62, ())) if stage == "train" else seed_of("loss", stage)
        loss, image, used, registration = Judged(*self.loss(self, batch, seed=seed, border=self.border))
        if batch.target is not None and len(self.metrics[f"{stage}_metrics"]):
            with torch.no_grad():
                self.count(stage, self(batch.y, batch.op) if image is None else image.detach(), batch.target)
        if registration is not None:
            self.meters[f"{stage}/registration"].add(registration)
        if used is None:
            return loss.mean()
        if self._trainer is not None:
            part = 1 - used.float().mean()
            self.log(f"{stage}/left_out", part, on_step=False, on_epoch=True, batch_size=len(used), sync_dist=True)
        return torch.where(used, loss, 0).sum() / used.sum().clamp_min(1)

    def pictures(self, batch: Measurement) -> dict[str, Figure]:
        """Truth, measurement, reconstruction and error of a few samples, if there is truth; and what the loss draws."""
        figures = self.loss.pictures(self, batch)
        batch = first(batch, SHOWN)
        y, op, target = batch.y, batch.op, batch.target
        if target is None:
            return figures
        with torch.no_grad():
            image = self(y, op)
        for i, truth in enumerate(target):
            columns = {"measured": seen(batch)[i], type(self.network).__name__: image[i]}
            drawn = {name: _flat(each) for name, each in columns.items()}
            scale = float(truth.abs().max()) if self.data_range is None else self.data_range
            figures[f"sample {i}"] = draw_comparison(_flat(truth), drawn, data_range=scale)
        metric = MeanPSNR(self.data_range, self.by, self.border)
        curves = by_steps(self.network, batch, STEPS, lambda image: metric.figures(image, target))
        if curves is not None:
            name, depth = type(self.network).__name__, getattr(self.network, "steps", None)
            trained = None if depth is None else {name: depth}
            figures["quality against steps"] = draw_steps({name: curves}, trained=trained)
        return figures

    def _check(self, stage: str, batch: Any, compared: bool) -> None:
        """Refuses what is no measurement, and what loss, or metrics where images are compared, cannot be made of."""
        name = type(self).__name__
        if not isinstance(batch, Measurement):
            raise UsageError(
                f"{name}: got {stage} batches of {type(batch).__name__}, expected train.data.Measurement(y, op, "
                "target). Try BlurredPhotographs, or a data set of your own that gives these."
            )
        for part, value in (("measurements", batch.y), ("target", batch.target)):
            if value is not None and not (value.is_floating_point() or value.is_complex()):
                raise UsageError(f"{name}: got {stage} {part} of {value.dtype}, expected floats. Try x.float() / 255.")
            if value is not None and not bool(value.isfinite().all()):
                bad = int((~value.isfinite()).sum())
                raise UsageError(f"{name}: got {bad} values in {stage} {part} that are NaN or infinite, expected none.")
        try:
            self._rehearse(batch, compared)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}, {stage} data: {error}") from error

    def _rehearse(self, batch: Measurement, compared: bool) -> None:
        """Loss and metrics of the adjoint image in the network's place, which costs nothing."""

        def adjoint(y: Tensor, op: Any) -> Tensor:
            return op.A_adjoint(y)

        missing = [each for each in ("A", "A_adjoint") if not callable(getattr(batch.op, each, None))]
        if missing:
            raise TypeError(f"got an operator {type(batch.op).__name__} without {' and '.join(missing)}")
        image = adjoint(batch.y, batch.op)
        if batch.target is not None:
            if image.shape != batch.target.shape:
                raise ValueError(f"the operator's images are {tuple(image.shape)}, the true ones {batch.target.shape}")
            for metric in (MeanPSNR, MeanSSIM) if compared else ():
                metric(self.data_range, self.by, self.border).update(image, batch.target)
        self.loss(adjoint, batch, seed=0, border=self.border)


class MeanPSNR(MeanMetric):
    """The mean over images of `imaging.psnr`.

    Args:
        data_range: see `Reconstructor`.
        by: see `Reconstructor`.
        border: see `Reconstructor`.
    """

    def __init__(self, data_range: float | None, by: By, border: int):
        """Has seen nothing yet."""
        super().__init__()
        self.data_range, self.border = data_range, border
        self.by: By = by

    def update(self, image: Tensor, target: Tensor) -> None:
        """Counts images."""
        super().update(self.figures(image, target))

    def figures(self, image: Tensor, target: Tensor) -> Tensor:
        """Of every image, `(B,)`."""
        return psnr(image, target, **self._options(target, self.by))

    def _options(self, target: Tensor, by: Any) -> dict[str, Any]:
        scale = target.abs().flatten(1).amax(1) if self.data_range is None else self.data_range
        return {"data_range": scale, "by": by if target.is_complex() else None, "border": self.border}


class MeanSSIM(MeanPSNR):
    """The mean over images of `imaging.ssim`; see `MeanPSNR`."""

    def figures(self, image: Tensor, target: Tensor) -> Tensor:
        """Of every image, `(B,)`."""
        return ssim(image, target, **self._options(target, "magnitude"))


def seen(batch: Measurement) -> Tensor:
    """Measurements as images: what the operator guesses from them, or its adjoint."""
    guess = batch.op.guess(batch.y) if hasattr(batch.op, "guess") else None
    return batch.op.A_adjoint(batch.y) if guess is None else guess


def _flat(image: Tensor) -> Tensor:
    """An image as it is drawn: `(H, W)` or `(3, H, W)`."""
    image = image.detach().cpu()
    return image[0] if image.dim() == 3 and image.shape[0] != 3 else image
