"""Reconstructions of real undersampled k-space, all on the same masks: decibels by mask, steps, times.

python -m benchmarks.imaging              everything; rewrites benchmarks/IMAGING.md; wants TORCHIMPLICIT_DATA
python -m benchmarks.imaging --quick      one mask, writes nothing
python -m benchmarks.imaging --only 8x    some of it, writes nothing
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import torchimplicit as ti
from benchmarks.imaging.cases import CENTRE, NOISE, Scan, acquisition, psnr, scan
from benchmarks.kit.table import Table, write_page

HOW = (
    "Rewritten by `python -m benchmarks.imaging`: one thread, CPU times. Rivals see the same masks with the same "
    "noise, and are to be compared mask by mask: masks differ by more than rivals do."
)
MASKS = 5
Method = Callable[[Tensor, Any], "ti.Solution | Tensor"]


def methods() -> dict[str, Method]:
    """What is compared, with the weights that were best of a few on the first two masks, fourfold."""
    return {
        "zero-filled": ti.imaging.zero_filled,
        "CG-SENSE, 1e-3": lambda y, op: ti.imaging.cg_sense(y, op, weight=1e-3, on_failure="ignore"),
        "wavelets, 5e-5": lambda y, op: ti.imaging.wavelet(y, op, weight=5e-5, on_failure="ignore"),
        "total variation, 2e-4": lambda y, op: ti.imaging.total_variation(y, op, weight=2e-4, on_failure="ignore"),
        "the same by PrimalDual": primal_dual,
    }


def primal_dual(y: Tensor, op: Any) -> ti.Solution:
    """Total variation by the primal-dual cell, to where its residual is that of alternating directions."""
    imaging = ti.imaging
    cell = imaging.PrimalDual(imaging.Analysis(imaging.Differences(), weight=2e-4))
    solver = ti.Anderson(window=10, rtol=1e-5, max_steps=1000)
    with torch.no_grad():
        found = ti.fixed_point(cell, cell.start(y, op), y, op, solver=solver, on_failure="ignore")
    return replace(found, value=found.value[0])


def decibels(of: Scan, acceleration: int, masks: int) -> Table:
    """Of every method on every mask."""
    note = (
        f"A real head, 8 coils, 230 x 180; 1 of {acceleration} lines along the first axis, at random, "
        f"the centre's {CENTRE[acceleration]:.0%} always, with noise of {NOISE}. PSNR in dB of the complex difference, "
        f"peak {of.peak:.3f}. Steps, and the residual, by RMS, where they ended: the most of any mask. "
        "The reference is itself the image of the fewest wavelets that fits a scan, so it holds of the head what "
        "wavelets let pass: here that favours them."
    )
    header = ["method", *map(str, range(masks)), "mean", "converged", "steps", "residual", "CPU s each"]
    table = Table(f"K-space, {acceleration}x, by mask", note, header)
    for name, method in methods().items():
        found, steps, residual, converged, start = [], 0, 0.0, 0, time.process_time()
        for number in range(masks):
            y, op = acquisition(of, acceleration, number)
            result = method(y, op)
            if isinstance(result, ti.Solution):
                steps, converged = max(steps, int(result.steps.max())), converged + result.report.converged
                residual = max(residual, float(result.residual.max()))
                result = result.value
            found.append(psnr(result, of))
        seconds = (time.process_time() - start) / masks
        how = (f"{converged} of {masks}", str(steps), f"{residual:.0e}") if steps else ("", "", "")
        table.add(name, *(f"{each:.2f}" for each in found), f"{mean(found):.2f}", *how, f"{seconds:.1f}")
    return table


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="benchmarks.imaging", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one mask, writes nothing")
    parser.add_argument("--only", choices=[f"{acceleration}x" for acceleration in CENTRE], help="writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    of = scan()
    wanted = [acceleration for acceleration in CENTRE if options.only in (None, f"{acceleration}x")]
    tables = [decibels(of, acceleration, 1 if options.quick else MASKS) for acceleration in wanted]
    if not (options.quick or options.only):
        write_page(Path(__file__).parent.parent / "IMAGING.md", tables, 1, HOW, ("torchimplicit",))


if __name__ == "__main__":
    main()
