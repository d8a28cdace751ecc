"""A segmenter of images with equilibrium layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.segmentation import DiceScore, MeanIoU

from torchimplicit.core.options import require_count
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class Segmenter(EquilibriumModule):
    """Trains a network that gives every pixel a class, by cross entropy and soft Dice; see `EquilibriumModule`.

    Logs `dice`, of the foreground classes, and `mean_iou`, over all classes: both are means over images. Draws image,
    truth and prediction of a few validation images into the TensorBoard log, and for the report.

    Args:
        network: images `(B, C, H, W)` to logits `(B, classes, H, W)`.
        classes: number of classes, 0 being the background; compared with network and data before any training.
        picture_every: validations from one picture in the log to the next.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the network says that it has another number of classes.
    """

    def __init__(self, network: nn.Module, classes: int = 2, picture_every: int = 5, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.classes, self.picture_every = classes, picture_every
        require_count(self, "classes", least=2)
        require_count(self, "picture_every")
        self._compare("network", getattr(network, "classes", classes))
        self.measure(
            dice=DiceScore(classes, include_background=False, average="macro", input_format="index"),
            mean_iou=MeanIoU(classes, input_format="index"),
        )
        self._shown: Batch | None = None
        self._validations = 0

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: the data has another number of classes.
        """
        self._compare("data", getattr(getattr(self.trainer, "datamodule", None), "classes", self.classes))

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """Cross entropy, and one minus the soft Dice coefficient of the foreground."""
        x, label = batch
        logits = self(x).float()
        self.count(stage, logits.argmax(1), label)
        return nn.functional.cross_entropy(logits, label) + 1 - soft_dice(logits.softmax(1), label)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metrics; keeps some samples of the first batch to draw."""
        super().validation_step(batch, batch_idx)
        if batch_idx == 0:
            self._shown = batch[0][:4], batch[1][:4]

    def on_validation_epoch_end(self) -> None:
        """Logs the solves of the validation, and a picture when it is time to."""
        super().on_validation_epoch_end()
        board = getattr(self.logger, "experiment", None)
        due = self._validations % self.picture_every == 0 and not self.trainer.sanity_checking
        self._validations += not self.trainer.sanity_checking
        if due and self._shown is not None and hasattr(board, "add_figure"):
            for name, figure in self.pictures(self._shown).items():
                board.add_figure(name, figure, self.global_step)  # type: ignore[union-attr]

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Up to four samples of a batch, a row each: image, truth, prediction."""
        from matplotlib.figure import Figure

        x, label = (each[:4] for each in batch)
        with torch.no_grad():
            prediction = self(x).argmax(1)
        figure = Figure(figsize=(7, 2.4 * len(x)), layout="constrained")
        grid = figure.subplots(len(x), 3, squeeze=False)
        for axes, *images in zip(grid, x.float().mean(1).cpu(), label.cpu(), prediction.cpu(), strict=True):
            for ax, image, top in zip(axes, images, (None, self.classes - 1, self.classes - 1), strict=True):
                ax.imshow(image.numpy(), cmap="gray", vmin=None if top is None else 0, vmax=top)
                ax.set_axis_off()
        for ax, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
            ax.set_title(title)
        return {"segmentation": figure}

    def _compare(self, whose: str, classes: int) -> None:
        if classes != self.classes:
            raise UsageError(
                f"Segmenter(classes={self.classes}): the {whose} has {classes} classes. Try the same number for the "
                "network, the segmenter and the data."
            )


def soft_dice(probabilities: Tensor, label: Tensor) -> Tensor:
    r"""The Dice coefficient of probabilities, $2 \sum p t / (\sum p + \sum t)$, over all pixels of a batch.

    A mean over the classes but the background. One pixel is added above and below, for classes that are absent.

    Source: F. Milletari, N. Navab, S.-A. Ahmadi, 3DV 2016, arXiv 1606.04797, section 3, with $p$ for its $p^2$.

    Args:
        probabilities: `(B, classes, ...)`.
        label: whole numbers below `classes`, `(B, ...)`.

    Returns:
        A scalar.
    """
    truth = nn.functional.one_hot(label, probabilities.shape[1]).movedim(-1, 1)
    over = [dim for dim in range(probabilities.dim()) if dim != 1]
    overlap, total = (probabilities * truth).sum(over), (probabilities + truth).sum(over)
    return ((2 * overlap + 1) / (total + 1))[1:].mean()
