"""The picture of the kinds of gradients: error against time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FAMILIES = {  # by how a name starts: label, colour, marker
    "Implicit, GMRES": ("Implicit(GMRES)", "tab:blue", "o"),
    "Implicit, pre": ("Implicit(precondition=True)", "tab:cyan", "s"),
    "Implicit, Neu": ("Implicit(Neumann)", "tab:green", "^"),
    "Phantom": ("Phantom", "tab:orange", "v"),
    "Shine": ("Shine", "tab:purple", "D"),
    "Unrolled": ("Unrolled", "tab:red", "X"),
}


def draw(points: Mapping[str, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """Draws a panel a case.

    Args:
        points: case -> name of the gradient -> (milliseconds of the backward pass, relative error).
        path: the picture to write.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(points), figsize=(4.2 * len(points), 4.0), squeeze=False, sharey=True)
    for axes, (case, some) in zip(panels[0], points.items(), strict=True):
        for start, (label, colour, marker) in FAMILIES.items():
            family = {name: point for name, point in some.items() if name.startswith(start)}
            if not family:
                continue
            times, errors = zip(*family.values(), strict=True)
            axes.plot(times, errors, color=colour, marker=marker, linewidth=0.8, label=label)
            for name, point in family.items():
                note = " ".join(name.removeprefix("Implicit, ").split()[1:])
                axes.annotate(note, point, fontsize=6, xytext=(4, 3), textcoords="offset points")
        axes.set(title=case, xscale="log", yscale="log", xlabel="backward pass, ms")
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("relative error of the gradient")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
