"""Batches whose samples need unequal numbers of steps: what the solve saves that goes on without those that arrived."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torchimplicit as ti
from benchmarks.kit.measure import Run, interleaved
from benchmarks.kit.table import Table, at_least

GAINS = (0.7, 0.94)  # of the fast samples and of the slow ones: about five times the steps


class GainCell(nn.Module):
    """`f(z) = g activation(z Q) + (1 - g) x` with a gain `g` per sample and `Q` orthogonal: contracts by the gain."""

    def __init__(self, width: int, activation: nn.Module):
        super().__init__()
        self.Q = nn.Parameter(torch.linalg.qr(torch.randn(width, width))[0])
        self.activation = activation

    def forward(self, z: Tensor, x: Tensor, gain: Tensor) -> Tensor:
        return gain * self.activation(z @ self.Q) + (1 - gain) * x


def batches(batch: int, width: int, seconds: float, rtol: float = 1e-5) -> Table:
    """A whole batch against one that is narrowed to the samples that still run."""
    table = Table(
        "Unequal samples",
        f"Forward of {batch} samples of {width} unknowns to {rtol:.0e}; each contracts by its own gain, a tenth of "
        "them so slowly that they need about five times the steps of the others. The solve as it is, and with "
        "`batched_args`, which lets it go on without the samples that have arrived. The difference is the largest of "
        "any entry, relative to the largest entry.",
        ["map", "solver", "steps, most samples", "steps, a tenth", "whole ms", "batched_args ms", "ratio", "bar",
         "verdict", "difference"],
    )  # fmt: skip
    for name, activation in (("linear", nn.Identity()), ("tanh", nn.Tanh())):
        torch.manual_seed(0)
        cell, x = GainCell(width, activation), torch.randn(batch, width)
        slow = torch.arange(batch) % 10 == 0
        gain = torch.where(slow, *reversed(GAINS)).unsqueeze(1)
        z0 = torch.zeros_like(x)
        for solver in (ti.Picard, ti.Anderson, ti.Broyden):
            chosen = solver(rtol=rtol, atol=0, max_steps=400)

            def solve(batched_args: tuple[int, ...] | None, chosen: ti.Picard = chosen) -> ti.Solution:
                with torch.no_grad():
                    return ti.fixed_point(cell, z0, x, gain, solver=chosen, batched_args=batched_args)  # noqa: B023

            runs: dict[str, Run] = {"whole": lambda: solve(None), "narrowed": lambda: solve((0, 1))}
            whole, narrowed = solve(None), solve((0, 1))
            times = interleaved(runs, seconds)
            ratio = times["whole"] / times["narrowed"]
            gap = (whole.value - narrowed.value).abs().max() / whole.value.abs().max()
            table.add(
                name, solver.__name__, f"{whole.steps[~slow].median()}", f"{whole.steps[slow].median()}",
                f"{times['whole']:.1f}", f"{times['narrowed']:.1f}", f"{ratio:.2f}", *at_least(ratio, 2.0),
                f"{gap:.0e}",
            )  # fmt: skip
    return table
