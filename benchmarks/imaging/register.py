"""Registration of 40 pairs of hippocampi beside SimpleITK; rewrites benchmarks/REGISTER.md and draws its picture.

python -m benchmarks.imaging.register                  everything; wants TORCHIMPLICIT_DATA and SimpleITK
python -m benchmarks.imaging.register --pairs 2        some of it, writes nothing
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.table import Table, write_page
from torchimplicit.imaging import draw_overlaps, register

SHAPE = (48, 64, 48)
LABELS = (1, 2)  # anterior and posterior
PAIRS = 40
HOW = (
    "Rewritten by `python -m benchmarks.imaging.register`: one thread, CPU times. MR volumes of hippocampi, about 35 x "
    "50 x 36 voxels of 1 mm, set into the middle of 48 x 64 x 48; 40 ordered pairs of the last 60 subjects (seed 0). "
    "Dice is the mean of two labels, warped to the nearest voxel. voxelmorph was not run."
)
NOTE = (
    "As they come: ours with its default options; SimpleITK with Mattes mutual information (32 bins, gradient descent "
    "of up to 100 steps on two levels) and, from there, diffeomorphic demons (60 steps, deviation 1.5, after matching "
    "histograms), settings that nobody tuned on these pairs. Folds: pairs with voxels where det J <= 0, one voxel of "
    "border left out. The gain is over SimpleITK's demons, pair by pair, with its standard error."
)


class Case(NamedTuple):
    """A pair: images and labels, each `(1, 1, *SHAPE)`."""

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor


class Outcome(NamedTuple):
    """Of one pair: warped labels, how many voxels fold, seconds of the processor, whether every solve converged."""

    labels: Tensor
    folds: int
    seconds: float
    converged: bool | None  # None where nothing judges it


def cases(count: int) -> list[Case]:
    """The pairs.

    Raises:
        SystemExit: the data is not there.
    """
    root = os.environ.get("TORCHIMPLICIT_DATA")
    path = Path(root or ".") / "hippocampus" / "hippocampus.npz"
    if root is None or not path.exists():
        raise SystemExit(f"TORCHIMPLICIT_DATA={root}: expected a folder with hippocampus/hippocampus.npz")
    generator, subjects, pairs = np.random.default_rng(0), np.arange(140, 200), []
    while len(pairs) < count:
        i, j = generator.choice(subjects, 2, replace=False)
        if (i, j) not in pairs:
            pairs.append((i, j))
    with np.load(path, allow_pickle=True) as arrays:
        names = [str(name) for name in arrays["names"]]

        def volume(kind: str, number: int) -> Tensor:
            return centred(torch.from_numpy(arrays[f"{kind}_{names[number]}"].astype(np.int32)))

        return [
            Case(*(volume("img", each).float() for each in (i, j)), *(volume("seg", each) for each in (i, j)))
            for i, j in pairs
        ]


def centred(x: Tensor) -> Tensor:
    """In the middle of zeros, `(1, 1, *SHAPE)`."""
    found = x.new_zeros(SHAPE)
    starts = [(size - n) // 2 for size, n in zip(SHAPE, x.shape, strict=True)]
    found[tuple(slice(start, start + n) for start, n in zip(starts, x.shape, strict=True))] = x
    return found[None, None]


def ours(*kinds: Any) -> Callable[[Case], Outcome]:
    """`align` with some stages."""

    def run(case: Case) -> Outcome:
        start = time.process_time()
        found = register.align(case.fixed, case.moving, list(kinds), on_failure="ignore")
        seconds = time.process_time() - start
        converged = all(report.converged for report in found.stages)
        return Outcome(found.warp_labels(case.moving_labels), int(found.folds(border=1)), seconds, converged)

    return run


def theirs(demons: bool) -> Callable[[Case], Outcome]:
    """SimpleITK: an affine transform by mutual information, and demons from there."""
    import SimpleITK

    sitk: Any = SimpleITK
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def run(case: Case) -> Outcome:
        fixed, moving, labels = (sitk.GetImageFromArray(each[0, 0].numpy()) for each in (case[0], case[1], case[3]))
        start, folds = time.process_time(), 0
        way = _affine(sitk, fixed, moving)
        if demons:
            field = _demons(sitk, fixed, sitk.Resample(moving, fixed, way, sitk.sitkLinear, 0.0))
            volumes = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))[1:-1, 1:-1, 1:-1]
            folds = int((volumes <= 0).sum())
            field = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
            way = sitk.CompositeTransform([way, field])
        seconds = time.process_time() - start
        found = sitk.Resample(labels, fixed, way, sitk.sitkNearestNeighbor, 0)
        return Outcome(torch.from_numpy(sitk.GetArrayFromImage(found))[None, None], folds, seconds, None)

    return run


def _affine(sitk: Any, fixed: Any, moving: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    start = sitk.AffineTransform(3)
    start.SetCenter([size / 2 for size in SHAPE[::-1]])
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def _demons(sitk: Any, fixed: Any, moving: Any) -> Any:
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetNumberOfIterations(60)
    method.SetStandardDeviations(1.5)
    method.SetSmoothDisplacementField(True)
    return method.Execute(fixed, sitk.HistogramMatching(moving, fixed, 256, 12, True))


def methods() -> dict[str, Callable[[Case], Outcome]]:
    """What is compared."""
    return {
        "as they lie": lambda case: Outcome(case.moving_labels, 0, 0.0, None),
        "SimpleITK, affine": theirs(demons=False),
        "ours, affine": ours(register.Affine()),
        "SimpleITK, demons": theirs(demons=True),
        "ours, demons": ours(register.Affine(), register.Demons(form="displacement")),
        "ours, velocity": ours(register.Affine(), register.Demons()),
    }


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="benchmarks.imaging.register", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="fewer write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[tuple[float, Outcome]]] = {name: [] for name in methods()}
    runs = methods()
    for case in cases(options.pairs):  # interleaved, so that the machine's moods are shared
        for name, run in runs.items():
            found = run(case)
            rows[name].append((float(register.dice(found.labels, case.fixed_labels, LABELS).mean()), found))
    overlaps = {name: torch.tensor([each for each, _ in row], dtype=torch.float64) for name, row in rows.items()}
    table = _table(rows, overlaps)
    if options.pairs == PAIRS:
        folder = Path(__file__).parents[2]
        write_page(folder / "benchmarks" / "REGISTER.md", [table], 1, HOW, ("torchimplicit", "simpleitk"))
        draw_overlaps(overlaps, target=folder / "docs" / "register-hippocampus-dice.png")


def _table(rows: dict[str, list[tuple[float, Outcome]]], overlaps: dict[str, Tensor]) -> Table:
    header = ("method", "Dice", "least", "gain", "better in", "pairs with folds", "converged", "CPU s each")
    table = Table(f"Hippocampi, {len(overlaps['as they lie'])} pairs", NOTE, header)
    for name, row in rows.items():
        dice, gain = overlaps[name], overlaps[name] - overlaps["SimpleITK, demons"]
        error = float(gain.std() / len(gain) ** 0.5)
        table.add(
            name,
            f"{float(dice.mean()):.3f} ± {float(dice.std()):.3f}",
            f"{float(dice.min()):.3f}",
            f"{float(gain.mean()):+.3f} ± {error:.3f}",
            f"{int((gain > 0).sum())}",
            f"{sum(found.folds > 0 for _, found in row)}",
            "" if row[0][1].converged is None else f"{sum(bool(found.converged) for _, found in row)}",
            f"{sum(found.seconds for _, found in row) / len(row):.2f}",
        )
    return table


if __name__ == "__main__":
    main()
