"""Training on puzzles: boards whose blanks are to be filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch

from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class Puzzle(EquilibriumModule):
    """Trains a network that fills boards, by the squared distance from the solution; see `EquilibriumModule`.

    Logs `solved`, the fraction of the boards whose every cell is right, and `cells`, that of the cells.

    Args:
        network: boards `(B, cells)`, 0 for a blank, to scores `(B, cells, size)` of the numbers 1 to `size`, of which
            the solution's should be 1 and all others 0.
        size: how many numbers there are; those of the network and of the data are compared with it before any training.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the network says that it has another size.
    """

    def __init__(self, network: nn.Module, size: int = 4, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.size = size
        self._compare("network", getattr(network, "size", size))
        self.measure(
            solved=MulticlassExactMatch(size, validate_args=False),
            cells=MulticlassAccuracy(size, average="micro", validate_args=False),
        )

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: the data has another size.
        """
        self._compare("data", getattr(getattr(self.trainer, "datamodule", None), "size", self.size))

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """The mean square of the scores' errors."""
        board, solution = batch
        scores, target = self(board), solution - 1
        self.count(stage, scores.detach().argmax(-1), target)
        return nn.functional.mse_loss(scores, nn.functional.one_hot(target, self.size).to(scores.dtype))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Full boards `(B, cells)`."""
        return self(batch[0]).argmax(-1) + 1

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Eight boards: what is given in black, right numbers in green, wrong ones in red."""
        from matplotlib.figure import Figure

        boards, solutions = (each[:8].cpu() for each in batch)
        with torch.no_grad():
            filled = self.predict_step((batch[0][:8], batch[1][:8]), 0).cpu()
        edge = round(boards.shape[1] ** 0.5)
        figure = Figure(figsize=(10, 5), layout="constrained")
        grid = figure.subplots(2, 4, squeeze=False).flat
        for axes in grid:
            axes.set_axis_off()
        for axes, *board in zip(grid, boards.tolist(), solutions.tolist(), filled.tolist(), strict=False):
            _draw(axes, edge, *board)
        return {"boards": figure}

    def _compare(self, whose: str, size: int) -> None:
        if size != self.size:
            raise UsageError(
                f"Puzzle(size={self.size}): the {whose} has size {size}. Try the same size for the network, the module "
                "and the data."
            )


def _draw(axes: Any, edge: int, board: list[int], solution: list[int], filled: list[int]) -> None:
    block = round(edge**0.5)
    for line in range(edge + 1):
        width = 1.5 if line % block == 0 else 0.4
        axes.plot([0, edge], [line, line], color="k", linewidth=width)
        axes.plot([line, line], [0, edge], color="k", linewidth=width)
    for place, (given, right, number) in enumerate(zip(board, solution, filled, strict=True)):
        colour = "k" if given == number else "tab:green" if number == right else "tab:red"
        axes.text(place % edge + 0.5, edge - place // edge - 0.5, number, color=colour, ha="center", va="center")
    axes.set_aspect("equal")
