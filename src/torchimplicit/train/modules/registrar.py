"""Training of networks that register pairs of images, by labels of training images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import Status
from torchimplicit.imaging import draw_alignment, draw_deformation, draw_overlaps
from torchimplicit.imaging.register import Chain, Displacement, Linear, Registration, Velocity, dice, soft_dice
from torchimplicit.imaging.register.similarity import normalised
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.train.data.volumes import ImagePair
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 2  # pairs in the report


class Registrar(EquilibriumModule):
    r"""Trains a network that registers images, such as a `register.LearnedDemons`; see `EquilibriumModule`.

    The loss is that of what the features say of each image alone, where they are maps of labels (cross entropy and soft
    Dice), and after some epochs also that of the registration: one minus the soft Dice of warped and fixed labels, and
    a penalty on volumes $\det J$ below a margin, by the implicit function theorem. Pairs that did not converge are left
    out of it, and counted; so is a whole step whose backward solve failed, as its gradient is not one.

    Logs `dice` (labels warped to the nearest voxel, mean of labels and pairs), `folds` (voxels a pair, border left
    out), and `left_out`, the part of the pairs that did not converge.

    Args:
        network: `network(fixed, moving, initial, spacing=...) -> register.Registration`, with `features`.
        label_epochs: at first, in which features alone are trained, by labels.
        register_every: steps from one registration to the next after that: its gradient wants a tight solve, as dear
            as some fifty steps of features alone. 1 where nothing but the registration trains.
        label_weight: of the loss of features; 0 trains them through the registration alone.
        fold_weight: of the penalty.
        fold_margin: determinants below are penalised.
        scale_rate: by how much faster single numbers learn than weights do, such as a learned step.
        turn: how much images are sheared, turned and scaled at random when features are trained by labels.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the data gives no pairs (once there are data, before any training).
    """

    def __init__(
        self,
        network: nn.Module,
        label_epochs: int = 0,
        register_every: int = 1,
        label_weight: float = 1.0,
        fold_weight: float = 1.0,
        fold_margin: float = 0.1,
        scale_rate: float = 10.0,
        turn: float = 0.07,
        **options: Any,
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.label_epochs, self.register_every, self.label_weight = label_epochs, register_every, label_weight
        self.fold_weight, self.fold_margin = fold_weight, fold_margin
        self.scale_rate, self.turn = scale_rate, turn
        require_count(self, "label_epochs", least=0)
        require_count(self, "register_every")
        for name in ("label_weight", "fold_weight", "fold_margin", "scale_rate", "turn"):
            value = getattr(self, name)
            require(self, name, is_number(value) and 0 <= value < math.inf, "a finite number >= 0")
        by_labels = hasattr(getattr(network, "features", None), "logits")
        if (label_epochs or label_weight) and not by_labels:
            raise UsageError(
                f"Registrar(label_weight={label_weight}): the features of {type(network).__name__} have no method "
                "`logits`, so that labels cannot train them. Try LabelMaps, or label_epochs=0 and label_weight=0."
            )
        self.labels: list[int] = []
        self._overlaps: list[Tensor] = []
        self.measure(dice=MeanMetric(), folds=MeanMetric(), left_out=MeanMetric())

    def inputs(self, batch: ImagePair) -> tuple:
        """What the network is called with."""
        return batch.fixed, batch.moving, Linear(batch.matrix.cpu())

    def groups(self) -> list[dict[str, Any]]:
        """Weights, and single numbers at their rate."""
        numbers = [each for each in self.parameters() if not each.dim()]
        weights = [each for each in self.parameters() if each.dim()]
        groups = [{"params": weights, "lr": self.learning_rate}]
        if numbers:  # without decay, which would draw them towards the middle of their bounds
            groups.append({"params": numbers, "lr": self.scale_rate * self.learning_rate, "weight_decay": 0.0})
        return groups

    def setup(self, stage: str) -> None:
        """Takes the labels from the data.

        Raises:
            UsageError: the data gives no pairs, or has other labels than the features.
        """
        data: Any = getattr(self._trainer, "datamodule", None)
        if data is None:
            return
        data.setup()
        self.labels = list(getattr(data, "labels", []))
        count = getattr(getattr(self.network, "features", None), "labels", len(self.labels))
        if not self.labels or (self.label_weight and count != len(self.labels)):
            raise UsageError(
                f"Registrar: got data with labels {self.labels}, expected train.data.ImagePair with the {count} that "
                "the features map. Try Hippocampus, and LabelMaps(labels=...) of as many."
            )

    def evaluate(self, stage: Stage, batch: ImagePair) -> Tensor:
        """See the class; a mean over what converged."""
        loss = batch.fixed.new_zeros(())
        if self.label_weight:
            loss = loss + self.label_weight * self._of_features(stage, batch)
        if stage == "train" and not self._registers():
            for layer in self.network.modules():
                if isinstance(layer, ImplicitLayer):
                    layer.report = None  # else an earlier solve is counted again
            return loss
        found = self.register(batch)
        converged = found.report.status == Status.CONVERGED
        self._count(stage, found, batch, converged)
        each = self._of_registration(_kept(found, converged), batch)
        # Where nothing converged this is zero, and so is its gradient.
        return loss + torch.where(converged, each, 0.0).sum() / converged.sum().clamp_min(1)

    def _registers(self) -> bool:
        """Whether this step of training does."""
        if not self.label_weight:
            return True
        return self.current_epoch >= self.label_epochs and self.global_step % self.register_every == 0

    def register(self, batch: ImagePair) -> Registration:
        """The registration of a batch, from its affine one."""
        return self.network(*self.inputs(batch), spacing=batch.spacing)

    def on_after_backward(self) -> None:
        """Leaves a step out whose backward solve did not converge."""
        super().on_after_backward()
        failed = [each.backward for each in self.reports() if each.backward is not None]
        if any(not bool(each.converged) for each in failed):
            for parameter in self.parameters():
                parameter.grad = None

    def on_test_start(self) -> None:
        """Forgets the overlaps of an earlier test."""
        super().on_test_start()
        self._overlaps = []

    def pictures(self, batch: ImagePair) -> dict[str, Figure]:
        """Boxes of the overlaps of the last test; checkerboards, and how space is bent, of a few pairs."""
        with torch.no_grad():
            found = self.register(batch)
        overlaps = torch.cat(self._overlaps, 1) if self._overlaps else self._of_labels(found, batch)
        figures = {"overlap": draw_overlaps(dict(zip(("affine", type(self.network).__name__), overlaps, strict=True)))}
        affine, warped = (each.warp(batch.moving).cpu() for each in (_affine(found, batch), found))
        field = found.displacement().cpu() / torch.tensor(batch.spacing, dtype=torch.float64).view(1, -1, 1, 1, 1)
        for i in range(min(SHOWN, len(batch.fixed))):
            status = Status(int(found.report.status[i])).name.lower()
            fixed, images = batch.fixed[i, 0].cpu(), {"affine": affine[i, 0], "warped": warped[i, 0]}
            figures[f"pair {i}, {status}"] = draw_alignment(fixed, images, spacing=batch.spacing)
            figures[f"deformation of pair {i}"] = draw_deformation(field[i], image=fixed, spacing=batch.spacing)
        return figures

    def _of_labels(self, found: Registration, batch: ImagePair) -> Tensor:
        """Dice before and after, `(2, B)`."""
        names = self.labels or sorted({int(each) for each in batch.fixed_labels.unique()} - {0})
        warped = [each.warp_labels(batch.moving_labels) for each in (_affine(found, batch), found)]
        return torch.stack([dice(each, batch.fixed_labels, names).nanmean(1) for each in warped])

    def _count(self, stage: Stage, found: Registration, batch: ImagePair, converged: Tensor) -> None:
        metrics = self.metrics[f"{stage}_metrics"]
        with torch.no_grad():
            overlaps = self._of_labels(found, batch)
            metrics["dice"].update(overlaps[1])
            metrics["folds"].update(found.folds(border=1).double())
            metrics["left_out"].update(1 - converged.double())
        if stage == "test":
            self._overlaps.append(overlaps)

    def _of_registration(self, found: Registration, batch: ImagePair) -> Tensor:
        """The loss of every pair, `(B,)`."""
        maps = [(batch.moving_labels == label) for label in self.labels]
        truth = [(batch.fixed_labels == label) for label in self.labels]
        warped = found.warp(torch.cat(maps, 1).to(batch.fixed))
        loss = 1 - soft_dice(warped, torch.cat(truth, 1).to(warped)).nanmean(1)
        if self.fold_weight:
            margin = F.relu(self.fold_margin - found.det_jacobian()).flatten(1).mean(1)
            loss = loss + self.fold_weight * margin.to(loss)
        return loss

    def _of_features(self, stage: Stage, batch: ImagePair) -> Tensor:
        """What features say of each image alone: cross entropy, and one minus soft Dice."""
        images = normalised(torch.cat((batch.fixed, batch.moving)))
        labels = torch.cat((batch.fixed_labels, batch.moving_labels))
        if stage == "train" and self.turn:
            images, labels = turned(images, labels, self.turn)
        places = torch.zeros_like(labels[:, 0])
        for number, label in enumerate(self.labels, 1):
            places[labels[:, 0] == label] = number
        logits = self.network.features.logits(images)
        maps = F.one_hot(places, len(self.labels) + 1).movedim(-1, 1)[:, 1:].to(logits)
        overlap = soft_dice(logits.softmax(1)[:, 1:], maps).nanmean()
        return F.cross_entropy(logits, places) + 1 - overlap


def turned(images: Tensor, labels: Tensor, amount: float) -> tuple[Tensor, Tensor]:
    """Images `(B, 1, X, Y, Z)` and labels, each by a random affine map near the identity, drawn from torch's generator.

    Args:
        images: floating.
        labels: integers.
        amount: deviation of the entries of the map, in halves of the image's edges.
    """
    maps = torch.eye(3, 4) + amount * torch.randn(len(images), 3, 4)
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    shown = F.grid_sample(labels.to(images), grid, mode="nearest", align_corners=False)
    return seen, shown.to(labels.dtype)


def _kept(found: Registration, keep: Tensor) -> Registration:
    """Without the fields of some pairs: a zero in front of what is not finite would be no zero."""
    parts = found.transform.parts if isinstance(found.transform, Chain) else (found.transform,)
    keep = keep.view(-1, *[1] * (found.fixed.space + 1))
    fields = (Velocity, Displacement)
    cut = [replace(p, vectors=torch.where(keep, p.vectors, 0.0)) if isinstance(p, fields) else p for p in parts]
    return replace(found, transform=Chain(tuple(cut)))


def _affine(found: Registration, batch: ImagePair) -> Registration:
    """That which a registration started from."""
    return replace(found, transform=Linear(batch.matrix.cpu()))
