"""The curves of a training run, from its TensorBoard log or from that in CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]

SOLVES = ("forward_", "backward_")


def read_curves(run: Path) -> dict[str, Curve]:
    """Steps and values of every scalar logged in the folder of a run; empty where there is no log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(run.glob("events.out.tfevents.*")):
        return _from_csv(sorted(run.glob("metrics*.csv"), key=lambda path: (path.stem == "metrics", path.name)))
    log = EventAccumulator(str(run), size_guidance={"scalars": 0})
    log.Reload()
    curves = {}
    for name in log.Tags()["scalars"]:
        points = sorted({event.step: event.value for event in log.Scalars(name)}.items())  # a resumed step counts once
        curves[name] = ([step for step, _ in points], [value for _, value in points])
    return curves


def _from_csv(files: list[Path]) -> dict[str, Curve]:
    """Those of a log in CSV, a file for every time that the run was resumed."""
    found: dict[str, dict[int, float]] = {}
    for path in files:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                for name, value in line.items():
                    if value and name not in ("epoch", "step"):
                        found.setdefault(name, {})[int(line["step"])] = float(value)
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in found.items()}


def plot_curves(curves: dict[str, Curve], title: str = "") -> Figure:
    """Loss, the recipe's first metric, solver steps and residuals against the optimiser's steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title)
    for axes, (name, logarithmic, shown) in zip(figure.subplots(2, 2).flat, _panels(curves), strict=True):
        for tag, label in shown.items():
            if tag in curves:
                axes.plot(*curves[tag], label=label, marker="." if tag.startswith("val") else None, linewidth=1.2)
        values = [value for tag in shown for value in curves.get(tag, ([], []))[1]]
        if logarithmic and any(value > 0 for value in values) and not any(value < 0 for value in values):
            axes.set_yscale("log")  # of negative losses, which densities have, it would show nothing
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure


def _panels(curves: dict[str, Curve]) -> list[tuple[str, bool, dict[str, str]]]:
    """Title, logarithmic or not, the curves with their labels."""
    metrics = [tag.removeprefix("val/") for tag in curves if tag.startswith("val/")]
    metrics = [name for name in metrics if name != "loss" and not name.startswith(SOLVES)]
    metric = metrics[0] if metrics else "accuracy"
    return [
        ("loss", True, {"train/loss": "training", "val/loss": "validation"}),
        (metric, False, {f"train/{metric}": "training", f"val/{metric}": "validation"}),
        ("steps to converge, mean", False, {"train/forward_steps": "forward", "train/backward_steps": "backward"}),
        ("residual, largest", True, {"train/forward_residual": "forward", "train/backward_residual": "backward"}),
    ]
