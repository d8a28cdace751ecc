"""The base of the Lightning modules: optimiser, curriculum, penalty, and how the solves go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils import _pytree as pytree
from torchmetrics import Metric, MetricCollection

from torchimplicit.adjoint.unrolled import UnrolledReport
from torchimplicit.core.options import require, require_count
from torchimplicit.core.status import ConvergenceWarning, Report
from torchimplicit.nn import DEQ, jacobian_penalty
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.train.checkpoint import check, origin
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.compiled import compile_cell
from torchimplicit.train.modules.curriculum import Curriculum, Layers
from torchimplicit.train.modules.meter import SolveMeter
from torchimplicit.train.modules.resume import whole_steps
from torchimplicit.train.seeds import seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class EquilibriumModule(LightningModule):
    """Base of the modules that train a network with equilibrium layers: a subclass gives `evaluate` and its metrics.

    Logged in training every `log_every_n_steps`, averaged over these steps: `train/loss`, the metrics, and for the
    forward and the backward solves of all layers together `train/forward_steps` (mean), `train/forward_residual`
    (largest), `train/forward_unconverged` (fraction), `train/forward_evaluations` (of a batch, mean),
    `train/backward_...`. In validation and test `val/...` and `test/...` once an epoch. Solves that do not converge are
    warned of once an epoch. A network without equilibrium layers trains all the same.

    Args:
        network: what is trained; where it has a method `penalty() -> scalar`, of its last solves, this is added to the
            loss in training.
        recipe: name of the recipe; a checkpoint keeps it and is refused by another recipe.
        learning_rate: of AdamW at its highest; it falls to zero along a cosine.
        weight_decay: of AdamW.
        warmup_steps: in which the rate rises from zero, linearly.
        jacobian_penalty: weight of `nn.jacobian_penalty`, summed over the layers, in the loss.
        penalty_every: steps from one penalty to the next.
        curriculum: how the solves change in training.
        compile_cells: compile the layers' cells with `torch.compile`; see `compile_cell`.

    Attributes:
        config: how the command built model and data, for the checkpoint; None when it did not.
    """

    network: Any  # what it offers beyond `forward`, a subclass says
    metrics: Any  # a ModuleDict, of whose entries torch knows no more than that they are modules

    def __init__(
        self,
        network: nn.Module,
        recipe: str = "unnamed",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        jacobian_penalty: float = 0.0,
        penalty_every: int = 1,
        curriculum: Curriculum = Curriculum(),
        compile_cells: bool = False,
    ):
        """Wraps the network."""
        super().__init__()
        self.network, self.recipe = network, recipe
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.jacobian_penalty, self.penalty_every = jacobian_penalty, penalty_every
        self.curriculum, self.compile_cells = curriculum, compile_cells
        require_count(self, "penalty_every")
        require(self, "jacobian_penalty", 0 <= jacobian_penalty < math.inf, "a finite number >= 0")
        self.config: dict[str, Any] | None = None
        self.metrics = nn.ModuleDict()
        self.meters = {f"{stage}/forward": SolveMeter() for stage in STAGES} | {"train/backward": SolveMeter()}
        self._losses: list[Tensor] = []
        self._step = 0
        self._seed: int | None = None
        self._layers = Layers(self.layers())
        for layer in self.layers() if compile_cells else ():
            compile_cell(layer)

    def measure(self, **metrics: Metric) -> None:
        """Says which metrics `count` updates and every stage logs."""
        collection = MetricCollection(dict(metrics))
        for stage in STAGES:  # `train` alone is the name of a method of modules
            self.metrics[f"{stage}_metrics"] = collection.clone(prefix=f"{stage}/")

    def count(self, stage: Stage, prediction: Tensor, target: Tensor) -> None:
        """Updates the metrics of a stage."""
        self.metrics[f"{stage}_metrics"].update(prediction, target)

    def evaluate(self, stage: Stage, batch: Any) -> Tensor:
        """The loss of a batch, a mean over its samples; calls `count`."""
        raise NotImplementedError

    def pictures(self, batch: Any) -> dict[str, Figure]:
        """Figures of what the network makes of a batch, by name; for the report. None here."""
        return {}

    def prediction_writer(self, run: Path) -> Callback:
        """What `torchimplicit predict` writes into the folder of a run; a `UsageError` where it is nothing."""
        raise UsageError(
            f"predict: {type(self).__name__} writes no file of predictions. Try torchimplicit report, or load the "
            "checkpoint with torchimplicit.train.load(path)."
        )

    def forward(self, *inputs: Any) -> Any:
        """The network's output."""
        return self.network(*inputs)

    def inputs(self, batch: Any) -> tuple:
        """What of a batch the network is called with."""
        return (batch[0],)

    def configure_model(self) -> None:
        """Shards the network among processes (FSDP2) under Lightning's `ModelParallelStrategy`, the only one to ask."""
        if self.device_mesh is not None and not isinstance(self.network, FSDPModule):
            # As one unit: a cell's weights must be whole in all of a solve, and where the penalty calls it afterwards.
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """AdamW over all parameters, its rate falling to zero along a cosine where the end of the run is known."""
        optimizer = torch.optim.AdamW(self.groups(), self.learning_rate, weight_decay=self.weight_decay)
        end = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step, end))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def groups(self) -> Any:
        """What the optimiser takes: all parameters alike, or groups of them with options of their own."""
        return self.parameters()

    def rate(self, step: int, end: float) -> float:
        """The learning rate at a step of a run that ends at `end`, as a part of the highest."""
        rise = min((step + 1) / (self.warmup_steps + 1), 1.0)
        way = max(step - self.warmup_steps, 0) / max(end - self.warmup_steps, 1) if math.isfinite(end) else 0.0
        return rise * (1 + math.cos(math.pi * min(way, 1.0))) / 2

    def on_train_start(self) -> None:
        """Takes up where a checkpoint has left off, if there is one."""
        self._step = self.global_step
        if self._seed is None:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the layers to what the curriculum says; what the step draws follows from its place, resumed or not."""
        self._layers.follow(self.curriculum, self.global_step)
        torch.manual_seed(seed_of("step", self._seed or 0, self.current_epoch, self.global_rank, batch_idx))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss, and the penalty where it is due."""
        due = bool(self.jacobian_penalty) and self.global_step % self.penalty_every == 0
        with self._watched() if due else nullcontext([]) as seen:
            loss = self.evaluate("train", batch)
        self._count_solves("train")
        self._losses.append(loss.detach())
        if (penalty := getattr(self.network, "penalty", None)) is not None:
            loss = loss + penalty()
        for layer, inputs, value in seen:
            cell = layer.cell.forward if self.compile_cells else layer  # compiled functions have no second derivatives
            loss = loss + self.jacobian_penalty * jacobian_penalty(cell, value, *inputs)
        return loss

    def on_after_backward(self) -> None:
        """Counts the backward solves, whose reports exist from here on, but not the few steps of `Unrolled`."""
        for report in self.reports():
            if report.backward is not None and not isinstance(report.backward, UnrolledReport):
                self.meters["train/backward"].add(report.backward)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs, when the optimiser has made a step and it is time to."""
        stepped, self._step = self.global_step != self._step, self.global_step
        if stepped and self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_training()

    def on_train_epoch_end(self) -> None:
        """Says in one line what did not converge."""
        self._warn_of_failures("train")
        self._restart()

    def on_validation_start(self) -> None:
        """Solves as the layers say, whatever the curriculum."""
        self._layers.restore()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics."""
        self._evaluation_step("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the solves of the validation."""
        self._log_solves("val")

    on_test_start = on_validation_start

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics."""
        self._evaluation_step("test", batch)

    def on_test_epoch_end(self) -> None:
        """Logs the solves of the test."""
        self._log_solves("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes down whose weights these are, and which batches they have seen."""
        checkpoint.update(origin(self))
        checkpoint["seed"] = self._seed
        if self._trainer is not None and "loops" in checkpoint:
            whole_steps(checkpoint["loops"]["fit_loop"], self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of another recipe, with words in place of a list of keys."""
        check(checkpoint, self)
        self._seed = checkpoint.get("seed")

    def layers(self) -> list[DEQ]:
        """The network's equilibrium layers."""
        return [module for module in self.network.modules() if isinstance(module, DEQ)]

    def reports(self) -> list[Report]:
        """The last report of every layer that solves and has one."""
        layers = [each for each in self.network.modules() if isinstance(each, ImplicitLayer)]
        return [layer.report for layer in layers if layer.report is not None]

    @contextmanager
    def _watched(self) -> Iterator[list[tuple[DEQ, tuple, Any]]]:
        """What went into the layers and what came out; the penalty leaves the path through the fixed point out."""
        seen: list[tuple[DEQ, tuple, Any]] = []

        def keep(layer: DEQ, inputs: tuple, value: Any) -> None:
            seen.append((layer, inputs, pytree.tree_map(torch.detach, value)))

        handles = [layer.register_forward_hook(keep) for layer in self.layers()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _count_solves(self, stage: Stage) -> None:
        if stage == "train" and self.curriculum.unrolls(self.global_step):
            return  # a network of a few layers has nothing to converge
        for report in self.reports():
            self.meters[f"{stage}/forward"].add(report)

    def _log_training(self) -> None:
        metrics, loss = self.metrics["train_metrics"], torch.stack(self._losses).mean()
        counted = any(each.update_called for each in metrics.values())
        metrics = metrics.compute() if counted else {}  # steps may have counted nothing
        solves = self._figures("train")
        self.log_dict({"train/loss": loss} | metrics | solves)
        parts = {name: f"train/forward_{name}" for name in ("steps", "residual")}
        bar = {name: solves[part] for name, part in parts.items() if part in solves}
        self.log_dict({"loss": loss} | bar, prog_bar=True, logger=False)
        self._restart()

    def _restart(self) -> None:
        self._losses = []
        self.metrics["train_metrics"].reset()

    def _evaluation_step(self, stage: Stage, batch: Any) -> None:
        loss = self.evaluate(stage, batch)
        self._count_solves(stage)
        size = len(pytree.tree_leaves(batch)[0])
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)
        metrics: Any = self.metrics[f"{stage}_metrics"]
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True, batch_size=size)

    def _log_solves(self, stage: Stage) -> None:
        self.log_dict(self._figures(stage), sync_dist=True)
        self._warn_of_failures(stage)

    def _figures(self, stage: Stage) -> dict[str, Tensor]:
        """What the meters of a stage have counted."""
        meters = {part: meter for part, meter in self.meters.items() if part.startswith(f"{stage}/")}
        return {f"{part}_{name}": value for part, meter in meters.items() for name, value in meter.read().items()}

    def _warn_of_failures(self, stage: Stage) -> None:
        fractions = {name: meter.finish_epoch() for name, meter in self.meters.items() if name.startswith(stage)}
        parts = {name.rpartition("/")[2]: value for name, value in fractions.items() if value}
        failures = [f"{100 * value:.3g} % of its {part} solves" for part, value in parts.items()]
        if failures:
            rank_zero_warn(
                f"{stage}, epoch {self.current_epoch}: {' and '.join(failures)} did not converge. Try more max_steps, "
                "a looser rtol, another solver; torchimplicit report shows where it stands.",
                category=ConvergenceWarning,
            )
