"""What more steps do to a reconstruction: of an equilibrium nothing once it is there, of an unrolled network much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.tree import norm
from torchimplicit.imaging import Cell, Reconstruction
from torchimplicit.train.data.measurement import Measurement
from torchimplicit.train.networks.images.reconstruction import UnrolledReconstruction


@torch.no_grad()
def by_steps(
    network: nn.Module, batch: Measurement, steps: int, figure: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor] | None:
    """The residual relative to the state, and a figure of the image, after every step.

    An `imaging.Reconstruction` takes all of them by its solver, whether or not it has converged before. An
    `UnrolledReconstruction` goes on beyond the steps that it was trained for.

    Args:
        network: one of these two, whose state is one tensor.
        batch: what to reconstruct.
        steps: how many.
        figure: of images `(B, ...)`, such as their PSNR, `(B,)`.

    Returns:
        Both `(B, steps)`; None for another network, which has no steps.
    """
    y, op = batch.y, batch.op
    cell: Any = getattr(network, "cell", None)
    if not isinstance(cell, Cell) or isinstance(cell.start(y, op), tuple):
        return None
    if isinstance(network, Reconstruction):
        states = _solved(network, y, op, steps)
    elif isinstance(network, UnrolledReconstruction):
        states = islice(_repeated(cell, y, op), steps)
    else:
        return None
    residuals, figures = [], []
    for z in states:
        moved = (cell(z, y, op) - z).flatten(1)
        residuals.append(norm(moved) / norm(z.flatten(1)))
        figures.append(figure(cell.output(z, y, op)))
    return torch.stack(residuals, 1), torch.stack(figures, 1)


def _solved(network: Reconstruction, y: Tensor, op: Any, steps: int) -> Iterator[Tensor]:
    """States after every step of the network's solver, which nothing stops."""
    kept = network.solver, network.on_failure, network.products, network.report
    tiny = torch.finfo(y.dtype).tiny
    try:
        network.solver = replace(network.solver, rtol=tiny, atol=tiny, max_steps=steps)
        network.on_failure, network.products = "ignore", 0
        _, states = super(Reconstruction, network).forward(y, op, save_steps=list(range(1, steps + 1)))
    finally:
        network.solver, network.on_failure, network.products, network.report = kept
    return iter(states)


def _repeated(cell: Cell, y: Tensor, op: Any) -> Iterator[Tensor]:
    z = cell.start(y, op)
    while True:
        z = cell(z, y, op)
        yield z
