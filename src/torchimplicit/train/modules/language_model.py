"""A language model with equilibrium layers and a memory of the last segment."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchmetrics.aggregation import MeanMetric

from torchimplicit.train.checkpoint import CheckpointError
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import STAGES, EquilibriumModule, Stage

Batch = tuple[Tensor, Tensor]


class Perplexity(MeanMetric):
    """The exponential of the mean negative log-likelihood of a token."""

    def compute(self) -> Tensor:
        """A scalar."""
        return super().compute().exp()


class BitsPerCharacter(MeanMetric):
    """The mean negative log-likelihood in bits, by the characters that tokens stand for."""

    characters_per_token = 1.0

    def compute(self) -> Tensor:
        """A scalar."""
        return super().compute() / (math.log(2) * self.characters_per_token)


class LanguageModel(EquilibriumModule):
    """Trains a network to say what comes next, by cross entropy; logs perplexity and bits per character.

    The memory that a network makes of a segment goes to the next one; every epoch begins without, and so do validation
    and test. A checkpoint keeps the memory that belongs to it, and a run that is resumed in one process goes on as if
    it had not been interrupted; with several processes they begin without one.

    Args:
        network: `network(tokens, memory) -> features, memory` and `network.losses(features, tokens)`; see
            `train.networks.LanguageNetwork`.
        remember: whether there is a memory at all.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: data and network do not fit each other (once there are data, before any training).
    """

    def __init__(self, network: nn.Module, remember: bool = True, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.remember = remember
        self.measure(perplexity=Perplexity(), bits_per_character=BitsPerCharacter())
        self._place: tuple[Stage, int] = ("train", 0)
        self._memories: dict[tuple[Stage, int], Any] = {}  # by stage and the number of batches that they come after
        self._texts: list[str] | None = None

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: they do not fit each other.
        """
        data = getattr(self.trainer, "datamodule", None)
        symbols = getattr(data, "symbols", None)
        if data is None or symbols is None:
            return
        self._texts = symbols.tokens
        if self.network.vocabulary != len(symbols.tokens):
            raise UsageError(
                f"LanguageModel: the network has a vocabulary of {self.network.vocabulary} tokens, the data one of "
                f"{len(symbols.tokens)}. Try --model.network.vocabulary {len(symbols.tokens)}."
            )
        need = data.length * (2 if self.remember else 1)
        room: Any = getattr(self.network, "length", None)
        if room is not None and need > room:
            memory = " and as many to remember" if self.remember else ""
            raise UsageError(
                f"LanguageModel: segments of {data.length} tokens{memory}, but "
                f"the network has room for {room}. Try --model.network.length {need}, or a shorter --data.length."
            )
        for each in STAGES:
            metrics: Any = self.metrics[f"{each}_metrics"]
            metrics["bits_per_character"].characters_per_token = data.characters_per_token[each]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, given what was remembered of the batch before."""
        self._place = ("train", batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metrics."""
        self._place = ("val", batch_idx)
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metrics."""
        self._place = ("test", batch_idx)
        super().test_step(batch, batch_idx)

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """Cross entropy, a mean over the tokens."""
        seen, said = batch
        features, memory = self.network(seen, self._recalled() if self.remember else None)
        if self.remember:
            self._keep(memory)
        losses = self.network.losses(features, said)
        self.count(stage, losses.detach().mean(), losses.new_tensor(float(losses.numel())))
        return losses.mean()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the vocabulary, and the memory after the batches that the checkpoint has seen."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = self._texts
        if self._trainer is not None and "loops" in checkpoint and self.trainer.world_size == 1:
            done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
            checkpoint["memory"] = (done, pytree.tree_leaves(self._memories.get(("train", done))))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of other data, and remembers.

        Raises:
            CheckpointError: it was trained on another vocabulary.
        """
        super().on_load_checkpoint(checkpoint)
        theirs, ours = checkpoint.get("vocabulary"), self._texts
        if theirs is not None and ours is not None and theirs != ours:
            which = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
            first = "" if which is None else f"; token {which}: got {theirs[which]!r}, expected {ours[which]!r}"
            raise CheckpointError(
                f"checkpoint: trained on another vocabulary than that of the data{first}. Try the data that it was "
                "trained on: the same --data.source, --data.tokens and --data.pairs."
            )
        done, leaves = checkpoint.get("memory", (0, []))
        if leaves:
            self._memories = {("train", done): tuple(leaves)}

    @torch.no_grad()
    def say(self, prompt: Tensor, count: int, temperature: float = 1.0) -> Tensor:
        """Goes on from a prompt, a token at a time, seeing as many as the network was trained to see.

        Args:
            prompt: tokens `(T,)`.
            count: how many to add.
            temperature: below 1 the likelier tokens are preferred.

        Returns:
            The prompt and what comes after it, `(T + count,)`.
        """
        room: Any = getattr(self.network, "length", None)
        tokens = prompt
        for _ in range(count):
            features, _ = self.network(tokens[None, -(room or len(tokens)) :], None)
            scores = self.network.log_probabilities(features[:, -1:])[0, 0] / temperature
            tokens = torch.cat((tokens, torch.multinomial(scores.softmax(-1), 1)))
        return tokens

    def _recalled(self) -> Any:
        stage, batch = self._place
        memory = self._memories.get((stage, batch)) if batch else None
        return memory if memory is None else pytree.tree_map(lambda each: each.to(self.device), memory)

    def _keep(self, memory: Any) -> None:
        """Keeps it for the next batch, and in training those that a checkpoint since the last step may ask for."""
        stage, batch = self._place
        oldest = batch - self.trainer.accumulate_grad_batches if stage == "train" else batch
        self._memories = {
            (name, done): each
            for (name, done), each in self._memories.items()
            if name != stage or oldest <= done <= batch
        }
        self._memories[stage, batch + 1] = memory
