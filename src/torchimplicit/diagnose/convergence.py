"""How a layer's forward solve converges, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchimplicit import picture
from torchimplicit.core import Report, Status
from torchimplicit.core.tree import Layout, norm
from torchimplicit.diagnose.probe import require_layer, untouched
from torchimplicit.equations import fixed_point
from torchimplicit.nn import DEQ
from torchimplicit.solve import ForwardBackward, Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Convergence:
    """How every sample of a batch converged.

    Attributes:
        report: the solve's `Report` with its trace; `steps`, `residual` and `status` are here too.
        tolerance: RMS residual at which each sample counts as converged, `atol + rtol * rms(z)`, `(B,)`.
        solver: the layer's solver.
    """

    report: Report
    tolerance: Tensor
    solver: Solver = field(repr=False)

    @property
    def order(self) -> Tensor:
        """Sample indices, worst first: by how the solve ended, by steps, by residual over tolerance, `(B,)`."""
        order = torch.argsort(self.report.residual / self.tolerance, descending=True, stable=True)
        order = order[torch.argsort(self.report.steps[order], descending=True, stable=True)]
        return order[torch.argsort(self.report.status[order], descending=True, stable=True)]

    def __str__(self) -> str:
        """One line: how many converged, steps and residuals; and what to try when some did not."""
        steps, residual = self.report.steps.double(), self.report.residual
        text = (
            f"{self._converged()} in {self.solver.max_steps} steps or fewer; "
            f"steps: median {float(steps.median()):.0f}, most {float(steps.max()):.0f}; "
            f"residual: median {float(residual.median()):.2e}, largest {float(residual.max()):.2e}"
        )
        tries = [f"  {status.name.lower()}: {remedy}" for status, remedy in self.report.remedies.items()]
        return "\n".join([text, *tries])

    def table(self, worst: int = 5) -> str:
        """Quantiles over the samples, and the worst samples, as plain text.

        Args:
            worst: how many samples to list.
        """
        lines = [f"{self._converged()}; {self.report.nfev} evaluations; {self.solver}", ""]
        lines.append(f"{'':21}{'least':>10}{'25 %':>10}{'median':>10}{'75 %':>10}{'most':>10}")
        rows = (
            ("steps", self.report.steps, "{:.4g}"),
            ("residual (RMS)", self.report.residual, "{:.2e}"),
            ("residual / tolerance", self.report.residual / self.tolerance, "{:.3g}"),
        )
        for name, values, form in rows:
            values = values.double()
            quantiles = torch.quantile(values, values.new_tensor(QUANTILES), interpolation="lower").tolist()
            lines.append(f"{name:21}" + "".join(f"{form.format(value):>10}" for value in quantiles))
        listed = self.order[:worst].tolist()
        lines += ["", f"{'worst samples':>13}  {'status':<12}{'steps':>7}{'residual':>11}{'tolerance':>11}"]
        for i in listed:
            name = Status(int(self.report.status[i])).name.lower()
            lines.append(
                f"{i:>13}  {name:<12}{int(self.report.steps[i]):>7}"
                f"{float(self.report.residual[i]):>11.2e}{float(self.tolerance[i]):>11.2e}"
            )
        if len(self.report.steps) > len(listed):
            lines.append(f"{'':13}  ({len(self.report.steps) - len(listed)} samples more)")
        return "\n".join(lines)

    def plot(self, target: Any = None) -> Figure:
        """Left the residual against the step, one faint line a sample; right how many samples took how many steps.

        Args:
            target: path or binary file to save to; None only returns the figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = picture.new_figure(9.6, 4.0)
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        self._draw_residuals(left)
        self._draw_steps(right)
        figure.suptitle(f"{type(self.solver).__name__}: {self._converged()}", fontsize=12, fontweight="bold")
        return picture.save(figure, target)

    def _draw_residuals(self, axes: Axes) -> None:
        from matplotlib.collections import LineCollection

        assert self.report.trace is not None
        trace = self.report.trace.double().cpu()
        floor = _floor(trace)
        lines = [line[~line.isnan()].clamp_min(floor) for line in trace.T]
        segments = [
            torch.stack([torch.arange(len(line), device="cpu").double(), line], dim=1).numpy() for line in lines
        ]
        faint = min(0.5, max(0.04, 12 / len(lines)))
        axes.add_collection(LineCollection(segments, colors=picture.BLUE, linewidths=0.7, alpha=faint))
        worst = int(self.order[0])
        axes.plot(_carried(trace).clamp_min(floor).median(dim=1).values, color=picture.BLUE, lw=2.4, label="median")
        worst_style = {"color": picture.ORANGE, "lw": 2.2, "label": f"worst (sample {worst})"}
        axes.plot(lines[worst], marker="o" if len(lines[worst]) == 1 else None, **worst_style)
        least, most = float(self.tolerance.min()), float(self.tolerance.max())
        axes.axhline(
            float(self.tolerance.median()), color="black", lw=1.1, ls="--", label="tolerance (band: all samples)"
        )
        axes.axhspan(least, most, color="black", alpha=0.08, lw=0)
        axes.set_yscale("log")
        axes.set_xlim(0, max(1, trace.shape[0] - 1))
        axes.locator_params(axis="x", integer=True)
        picture.tidy(axes, "Residual against step", "solver step", "residual, RMS per sample")
        axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")

    def _draw_steps(self, axes: Axes) -> None:
        steps = self.report.steps.cpu()
        first, last = int(steps.min()), int(steps.max())
        width = max(1, -(-(last - first + 1) // 30))
        edges = [first - 0.5 + width * i for i in range((last - first) // width + 2)]
        good = steps[self.report.status.cpu() == Status.CONVERGED]
        bad = steps[self.report.status.cpu() != Status.CONVERGED]
        axes.hist(
            [good.numpy(), bad.numpy()],
            bins=edges,
            stacked=True,
            rwidth=0.9 if len(edges) < 20 else 1.0,
            color=[picture.BLUE, picture.RED],
            label=["converged", "not converged"],
        )
        axes.set_xlim(min(edges[0], first - 2.5), max(edges[-1], last + 2.5))
        axes.locator_params(axis="both", integer=True)
        picture.tidy(axes, "Steps a sample takes", "solver steps", "samples")
        if len(bad):
            axes.legend(fontsize=8, frameon=False)

    def _converged(self) -> str:
        return f"{self._count(Status.CONVERGED)} of {len(self.report.status)} samples converged"

    def _count(self, status: Status) -> int:
        return int((self.report.status == status).sum())


def _carried(trace: Tensor) -> Tensor:
    """The trace with every stopped sample's last residual carried on, so that a median is one over all samples."""
    rows = [trace[0]]
    for row in trace[1:]:
        rows.append(torch.where(row.isnan(), rows[-1], row))
    return torch.stack(rows).nan_to_num(torch.inf)


def _floor(trace: Tensor) -> float:
    """A level just below the smallest positive residual, where exact zeros are drawn on a logarithmic scale."""
    positive = trace[trace > 0]
    return float(positive.min()) / 3 if len(positive) else 1e-16


def convergence(layer: DEQ, x: Any, *args: Any) -> Convergence:
    """Solves a layer's equation and keeps every step's residuals.

    The solve is the one that `layer(x, *args)` would do next (the same start, solver and tolerances), without gradients
    and without a mark on the layer: `layer.report`, warm start, buffers and random state stay as they are. Nothing is
    raised for samples that do not converge; the result shows them. Not for every training step: use `layer.report`.

    Args:
        layer: the layer.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.

    Returns:
        A `Convergence`: print it, its `table()`, or draw its `plot()`.

    Raises:
        TypeError: `layer` is no `DEQ`.
        ValueError: an empty batch, or a cell that returns another shape than the state's.

    Examples:
        >>> import torch
        >>> from torchimplicit import diagnose, nn
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x)
        >>> result = diagnose.convergence(layer, torch.linspace(-1, 1, 12).reshape(4, 3))
        >>> result.report.converged, result.report.steps.shape
        (True, torch.Size([4]))
    """
    layer = require_layer(layer, "convergence")
    with untouched(layer, (x, *args)), torch.no_grad():
        z0 = layer.initial_state(x, *args)
        solution = fixed_point(layer.cell, z0, x, *args, solver=layer.solver, trace=True, on_failure="ignore")
        layout = Layout(z0)
        scale = norm(layout.flatten(solution.value)) / layout.width**0.5
    solver = layer.cell.tolerances(layer.solver) if isinstance(layer.cell, ForwardBackward) else layer.solver
    return Convergence(solution.report, solver.absolute + solver.rtol * scale, layer.solver)
