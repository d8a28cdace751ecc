"""What is known of a layer's value and gradient at an input: to print, to keep, to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchimplicit import picture
from torchimplicit.adjoint import Adjoint
from torchimplicit.core import Report, Status
from torchimplicit.diagnose.advice import certificate_advice
from torchimplicit.diagnose.conditioning import Conditioning
from torchimplicit.solve import Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BELOW_ONE = 0.9995  # what prints as 1 is not below it


@dataclass(frozen=True)
class Certificate:
    """How far a layer's value and gradient can be trusted, per sample and as a whole; made by `certify`.

    Errors and residuals are relative. Infinite is what is not known: no reference was found for that sample.

    Attributes:
        report: of the layer's forward solve, with its backward solve.
        size: RMS of `z`, `(B,)`.
        residual: forward, `|cell(z) - z| / |z|`, `(B,)`.
        backward: the true residual `|g - B^T u| / |g|` of the layer's backward solve, `(B,)`; not what it claims.
        point_error: estimated error of `z`, `(B,)`.
        adjoint_error: estimated error of `u`, the gradient by an offset of the cell's output, `(B,)`.
        adjoint_bound: bound of the same, `(B,)`; see `certify` for what it rests on.
        gradient_error: estimated error of the gradient by all tensors together.
        gradient_bound: bound of the same.
        shares: what the backward residual and the point's error add to the gradient's bound, absolutely.
        conditioning: spectral radius and norm of `J`, and the extreme singular values of `B = I - J`.
        regular: samples that are locally unique, `(B,)`: `B` is regular at the point, and up to the fixed point.
        starts: random starts tried.
        arrived: from how many of them each sample converged, `(B,)`.
        elsewhere: from how many to another point, `(B,)`.
        tolerance: the error of the gradient up to which a sample is certified.
        adjoint: the layer's adjoint.
        solver: the layer's solver.
        everywhere: a bound of the map's Lipschitz constant that the layer's structure gives (its method `contraction`,
            see `MonotoneDEQ`), for all states and inputs; None where the layer has none.
        coupled: which samples depend on others' states, `(B,)`; such are not certified, and nothing else is true of
            them sample by sample.
    """

    report: Report
    size: Tensor = field(repr=False)
    residual: Tensor
    backward: Tensor
    point_error: Tensor
    adjoint_error: Tensor
    adjoint_bound: Tensor
    gradient_error: float
    gradient_bound: float
    shares: tuple[float, float] = field(repr=False)
    conditioning: Conditioning
    regular: Tensor
    starts: int
    arrived: Tensor
    elsewhere: Tensor
    tolerance: float
    adjoint: Adjoint
    solver: Solver = field(repr=False)
    everywhere: float | None = None
    coupled: Tensor = field(kw_only=True, repr=False)

    @property
    def certified(self) -> Tensor:
        """Which independent samples converged to a regular point, with an estimated error in the tolerance, `(B,)`."""
        converged = (self.report.status == Status.CONVERGED) & ~self.coupled
        return converged & self.regular & (self.adjoint_error <= self.tolerance)

    @property
    def ok(self) -> bool:
        """Whether every sample is certified, and the gradient by all tensors together is within the tolerance."""
        return bool(self.certified.all()) and self.gradient_error <= self.tolerance

    @property
    def condition(self) -> Tensor:
        """Condition number of `I - J`, `(B,)`; infinite where it is singular, or not known to be regular."""
        return self.conditioning.largest / self.conditioning.smallest

    @property
    def unique(self) -> bool | None:
        """False when random starts arrived at different points, True where the structure proves it, None else."""
        if bool((self.elsewhere > 0).any()):
            return False
        return True if self.everywhere is not None and self.everywhere < 1 else None

    @property
    def uniqueness(self) -> str:
        """What can be claimed, in words."""
        count, batch = int(self.regular.sum()), len(self.regular)
        local = "locally unique (I - J regular)"
        text = local if count == batch else f"{count} of {batch} samples {local}"
        if self.unique is False:
            samples = torch.nonzero(self.elsewhere).flatten().tolist()
            return f"{text}; not unique: starts arrive at different points (samples {_listed(samples)})"
        if self.unique:
            least = self.everywhere or 0.0
            factor = f"{least:.3g}" if least < BELOW_ONE else f"1 - {1 - least:.1e}"
            return f"unique, from any start: every step comes closer by {factor} at least, by construction"
        arrived = self.arrived[self.report.status == Status.CONVERGED]
        if not self.starts or not len(arrived):
            return text
        fewest = int(arrived.min())
        if fewest == self.starts:
            return f"{text}; evidence for global: {fewest} of {self.starts} starts agree"
        return f"{text}; little evidence for global: for some samples only {fewest} of {self.starts} starts converge"

    def __str__(self) -> str:
        """The verdict, what it rests on, and what to try where it fails."""
        count, batch, known = int(self.certified.sum()), len(self.certified), self.conditioning
        verdict = "holds" if self.ok else "FAILS"
        source = "from all singular values" if known.exact else "estimated"
        lines = [
            f"Certificate: {verdict}; {count} of {batch} samples certified to a gradient error of {self.tolerance:.0e}",
            f"  forward       residual {_most('up to', self.residual)}, error {_most('about', self.point_error)}; "
            f"{batch - len(self.report.failed)} of {batch} converged{self._gap()}",
            f"  backward      residual {_most('up to', self.backward)}, error {_most('about', self.adjoint_error)}, "
            f"{_most('at most', self.adjoint_bound)}",
            f"  gradient      error {_number('about', self.gradient_error)}, "
            f"{_number('at most', self.gradient_bound)}, all tensors together",
            f"  contraction   {self._contraction()}",
            f"  conditioning  of I - J: {_most('up to', self.condition, '.3g')}, {source}{self._monotone()}",
            f"  uniqueness    {self.uniqueness}",
        ]
        return "\n".join(lines + [f"  Try: {text}" for text in certificate_advice(self)])

    def _gap(self) -> str:
        if self.report.gap is None or self.report.bound is None:
            return ""
        return f"; duality gap {_most('up to', self.report.gap)}, so {_most('at most', self.report.bound)} (rms) off"

    def _monotone(self) -> str:
        least = float(self.conditioning.monotone.min())
        return f"; strongly monotone by {least:.3g} at least" if least > 0 else ""

    def _contraction(self) -> str:
        radius, size = self.conditioning.radius, self.conditioning.norm
        verdict = "some samples do not contract"
        if bool((radius[radius.isfinite()] < BELOW_ONE).all()):
            verdict = "plain steps come closer in the end"
        if bool((size[size.isfinite()] < BELOW_ONE).all()):
            verdict = "every plain step comes closer"
        if self.everywhere is not None and self.everywhere < 1:
            verdict = "every plain step comes closer"
        if not bool(size.isfinite().any()):
            verdict = "no finite Jacobian"
        numbers = f"spectral radius {_most('up to', radius, '.3g')}, norm {_most('up to', size, '.3g')}"
        return f"at the point: {numbers}: {verdict}"

    @property
    def order(self) -> Tensor:
        """Sample indices, worst first: those not certified, then by the estimated error, `(B,)`."""
        order = torch.argsort(self.adjoint_error.nan_to_num(math.inf), descending=True, stable=True)
        return order[torch.argsort(self.certified[order].long(), stable=True)]

    def table(self, worst: int = 5) -> str:
        """The worst samples, as plain text.

        Args:
            worst: how many samples to list.
        """
        names = ("forward", "backward", "error", "bound", "radius", "norm", "condition")
        lines = [f"{'worst samples':>13}  {'status':<12}" + "".join(f"{name:>11}" for name in names) + "  unique"]
        listed = self.order[:worst].tolist()
        for i in listed:
            numbers = [self.residual, self.backward, self.adjoint_error, self.adjoint_bound]
            cells = [f"{float(each[i]):>11.1e}" for each in numbers]
            shape = [self.conditioning.radius, self.conditioning.norm, self.condition]
            cells += [f"{float(each[i]):>11.3g}" for each in shape]
            words = "no" if int(self.elsewhere[i]) else ("locally" if bool(self.regular[i]) else "?")
            lines.append(f"{i:>13}  {_name(self.report.status[i]):<12}{''.join(cells)}  {words}")
        if len(self.regular) > len(listed):
            lines.append(f"{'':13}  ({len(self.regular) - len(listed)} samples more)")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, words and lists of them, for a log or JSON; None stands for what is infinite or NaN."""
        per_sample = {
            "residual": self.residual,
            "backward_residual": self.backward,
            "point_error": self.point_error,
            "adjoint_error": self.adjoint_error,
            "adjoint_bound": self.adjoint_bound,
            "spectral_radius": self.conditioning.radius,
            "norm": self.conditioning.norm,
            "condition": self.condition,
            **({} if self.report.gap is None else {"duality_gap": self.report.gap}),
        }
        return {
            "ok": self.ok,
            "tolerance": float(self.tolerance),
            "gradient_error": _plain(self.gradient_error),
            "gradient_bound": _plain(self.gradient_bound),
            "uniqueness": self.uniqueness,
            "exact_conditioning": self.conditioning.exact,
            "starts": self.starts,
            "status": [_name(status) for status in self.report.status],
            "certified": self.certified.tolist(),
            "locally_unique": self.regular.tolist(),
            "starts_converged": self.arrived.tolist(),
            "starts_elsewhere": self.elsewhere.tolist(),
            **{name: [_plain(value) for value in values.tolist()] for name, values in per_sample.items()},
        }

    def plot(self, target: Any = None) -> Figure:
        """Left residuals and the gradient's error against the spectral radius; right conditioning against the norm.

        Args:
            target: path or binary file to save to; None only returns the figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = picture.new_figure(9.6, 4.0)
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        self._draw_errors(left)
        self._draw_conditioning(right)
        verdict = "holds" if self.ok else "FAILS"
        count = f"{int(self.certified.sum())} of {len(self.certified)} samples"
        figure.suptitle(f"Certificate {verdict}: {count}", fontsize=12, fontweight="bold")
        return picture.save(figure, target)

    def _draw_errors(self, axes: Axes) -> None:
        radius = self.conditioning.radius.cpu()
        error, bound = _drawable(self.adjoint_error), _drawable(self.adjoint_bound)
        axes.vlines(radius, error, torch.maximum(error, bound), color=picture.RED, lw=0.8, alpha=0.4)
        series = (
            (self.residual, picture.BLUE, "o", "forward residual"),
            (self.backward, picture.ORANGE, "s", "backward residual"),
            (self.adjoint_error, picture.RED, "^", "gradient's error; line: up to its bound"),
        )
        for values, color, marker, label in series:
            axes.scatter(radius, _drawable(values), s=16, color=color, marker=marker, alpha=0.8, label=label, lw=0)
        axes.axhline(self.tolerance, color="black", lw=1.1, ls="--", label="asked for")
        axes.set_yscale("log")
        picture.tidy(axes, "Residuals and errors", "spectral radius of J", "relative, per sample")
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))

    def _draw_conditioning(self, axes: Axes) -> None:
        size = self.conditioning.norm.cpu()
        for mask, color, label in (
            (self.certified.cpu(), picture.BLUE, "certified"),
            (~self.certified.cpu(), picture.RED, "not certified"),
        ):
            if bool(mask.any()):
                axes.scatter(
                    size[mask], _drawable(self.condition)[mask], s=16, color=color, alpha=0.8, label=label, lw=0
                )
        edge = torch.linspace(0, float(size.nan_to_num(0).max().clamp(0.1, 0.98)), 100, device="cpu")
        axes.plot(
            edge, (1 + edge) / (1 - edge), color=picture.GREY, lw=1.2, ls="--", label="most that a norm < 1 allows"
        )
        axes.set_yscale("log")
        picture.tidy(axes, "Conditioning of I - J", "norm of J", "condition number")
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _drawable(values: Tensor) -> Tensor:
    """On a logarithmic scale: zeros at rounding, what is not finite left out."""
    values = values.double().cpu().clamp_min(1e-17)
    return torch.where(values.isfinite(), values, torch.nan)


def _most(words: str, values: Tensor, form: str = ".1e") -> str:
    """The largest finite one, after these words, and how many are not finite."""
    finite = values[values.isfinite()]
    if not len(finite):
        return f"{words} ?"
    rest = len(values) - len(finite)
    return f"{words} {float(finite.max()):{form}}" + (f" (not finite for {rest})" if rest else "")


def _number(words: str, value: float) -> str:
    return f"{words} {value:.1e}" if math.isfinite(value) else f"{words} ?"


def _name(status: Tensor) -> str:
    return Status(int(status)).name.lower()


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _listed(samples: list[int], show: int = 5) -> str:
    return ", ".join(map(str, samples[:show])) + (", ..." if len(samples) > show else "")
