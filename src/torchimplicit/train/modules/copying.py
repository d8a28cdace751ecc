"""The copy memory task: a network that says at every position what it should."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from torchimplicit.core.options import require, require_count
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

Batch = tuple[Tensor, Tensor]


class Copying(EquilibriumModule):
    """Trains a network on `train.data.CopyMemory` by cross entropy, a mean over all positions; see `EquilibriumModule`.

    Logs `accuracy`, that of the recalled symbols alone: of all positions hardly any need a memory.

    Args:
        network: sequences `(B, L)` of whole numbers to logits `(B, L, vocabulary)`.
        symbols: how many are recalled, at the last positions.
        beta2: of AdamW, its memory of squared gradients. These fall by orders of magnitude once a network recalls; with
            torch's 0.999 the steps are too small for hundreds of steps after.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: data and network do not fit each other (once there are data, before any training).
    """

    def __init__(self, network: nn.Module, symbols: int = 10, beta2: float = 0.99, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.symbols, self.beta2 = symbols, beta2
        require(self, "beta2", 0 <= beta2 < 1, "a number in [0, 1)")
        require_count(self, "symbols")
        self.vocabulary: int = getattr(network, "vocabulary", 10)
        self.measure(accuracy=MulticlassAccuracy(self.vocabulary, average="micro", validate_args=False))

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: they do not fit each other.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if getattr(data, "vocabulary", self.vocabulary) != self.vocabulary:
            raise UsageError(
                f"Copying: the data has a vocabulary of {data.vocabulary}, the network one of "
                f"{self.vocabulary}. Try the same number for both."
            )
        if getattr(data, "symbols", self.symbols) != self.symbols:
            raise UsageError(
                f"Copying(symbols={self.symbols}): the data has {data.symbols} symbols to recall. Try the same number "
                "for both."
            )
        room = getattr(self.network, "length", None)
        if room is not None and getattr(data, "length", room) > room:
            raise UsageError(
                f"Copying: sequences of {data.length} positions, but the network has room for {room}. Try "
                f"--model.network.length {data.length}, or fewer --data.blanks."
            )

    def configure_optimizers(self) -> Any:
        """As the base says, with `beta2`."""
        configured = super().configure_optimizers()
        for group in configured["optimizer"].param_groups:
            group["betas"] = (group["betas"][0], self.beta2)
        return configured

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """Cross entropy, a mean over all positions."""
        seen, said = batch
        logits = self(seen)
        recalled, symbols = logits[:, -self.symbols :], said[:, -self.symbols :]
        self.count(stage, recalled.flatten(0, 1), symbols.flatten())
        return nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten())
