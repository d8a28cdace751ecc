"""What the equilibrium benchmark solves: cells, inputs, and tight float64 references from no library at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RADIUS = 0.9  # spectral radius that the weights of the tanh cells are scaled to


class TanhCell(nn.Module):
    """`f(z) = tanh(z W + x)`, `W` Gaussian, scaled to a spectral radius."""

    def __init__(self, width: int, radius: float = RADIUS):
        super().__init__()
        W = torch.randn(width, width) / width**0.5
        self.W = nn.Parameter(W * (radius / torch.linalg.eigvals(W).abs().max()))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W + x)


class LinearCell(TanhCell):
    """`f(z) = z W + x`."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z @ self.W + x


class ConvCell(nn.Module):
    """The residual cell of the implicit layers tutorial (implicit-layers-tutorial.org, chapter 4), as it starts."""

    def __init__(self, channels: int = 48, inner: int = 64, groups: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, inner)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.norm3 = nn.GroupNorm(groups, channels)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, 0, 0.01)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y = self.norm1(F.relu(self.conv1(z)))
        return self.norm3(F.relu(z + self.norm2(x + self.conv2(y))))


@dataclass
class Case:
    """A cell, its input, and the gradient that comes back.

    Attributes:
        name: for the table.
        cell: `cell(z, x)`.
        x: input `(B, ...)`, like the state; gets a gradient.
        bars: tolerance -> how many times faster than the peer (forward, forward + backward).
        reference_rtol: of the reference; rounding of nothing that is printed.
    """

    name: str
    cell: nn.Module
    x: Tensor
    bars: dict[float, tuple[float, float]]
    reference_rtol: float = 1e-10

    def __post_init__(self) -> None:
        self.x.requires_grad_()
        self.z0, self.cotangent = torch.zeros_like(self.x), torch.randn_like(self.x)

    @property
    def leaves(self) -> list[Tensor]:
        """What is differentiated by: input and weights."""
        return [self.x, *self.cell.parameters()]

    def gradients(self, value: Tensor) -> list[Tensor]:
        """The backward pass of a value."""
        return list(torch.autograd.grad(value, self.leaves, self.cotangent))

    @cached_property
    def double(self) -> tuple[nn.Module, Tensor]:
        """Cell and input in float64."""
        return copy.deepcopy(self.cell).double(), self.x.detach().double().requires_grad_()

    def residual(self, z: Tensor) -> float:
        """The largest `|f(z) - z| / |z|` of all samples, in float64."""
        cell, x = self.double
        z = z.detach().double()
        with torch.no_grad():
            return float(((cell(z, x) - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).max())

    @cached_property
    def reference(self) -> list[Tensor]:
        """The gradients in float64: plain iteration forward, plain iteration backward, autograd for the rest."""
        cell, x = self.double
        with torch.no_grad():
            z = _iterate(lambda z: cell(z, x), self.z0.double(), self.reference_rtol)
        z.requires_grad_()
        value, g = cell(z, x), self.cotangent.double()
        u = _iterate(lambda u: torch.autograd.grad(value, z, u, retain_graph=True)[0] + g, g, self.reference_rtol)
        return list(torch.autograd.grad(value, [x, *cell.parameters()], u))

    def gradient_error(self, gradients: list[Tensor]) -> float:
        """Relative error of all gradients together."""
        pairs = list(zip(gradients, self.reference, strict=True))
        gap = sum(float((got - true).square().sum()) for got, true in pairs)
        return (gap / sum(float(true.square().sum()) for _, true in pairs)) ** 0.5


def _iterate(f: Callable[[Tensor], Tensor], z: Tensor, rtol: float, limit: int = 2000) -> Tensor:
    """Plain iteration to a relative step."""
    for _ in range(limit):
        z, previous = f(z), z
        if float((z - previous).norm()) <= rtol * float(z.norm()):
            return z
    raise RuntimeError(f"the reference did not converge to {rtol} in {limit} iterations")


def tanh_case(batch: int, width: int, radius: float = RADIUS) -> Case:
    """The cheap cells."""
    name = f"tanh {batch} x {width}" + (f", radius {radius}" if radius != RADIUS else "")
    bars = {1e-4: (4.0, 2.0), 1e-6: (6.0, 3.0)}
    return Case(name, TanhCell(width, radius), torch.randn(batch, width), bars)


def conv_case(batch: int, channels: int, inner: int, size: int, reference_rtol: float = 1e-5) -> Case:
    """The expensive cell."""
    name = f"conv {batch} x {channels} x {size} x {size}"
    return Case(
        name,
        ConvCell(channels, inner),
        torch.randn(batch, channels, size, size),
        {1e-2: (1.6, 2.0)},
        reference_rtol=reference_rtol,
    )


def double_case(case: Case) -> Case:
    """The same cell and input in float64."""
    cell, x = case.double
    twin = Case(f"{case.name}, float64", cell, x.detach().clone(), case.bars, case.reference_rtol)
    twin.cotangent, twin.reference = case.cotangent.double(), case.reference
    return twin


def count_calls(cell: nn.Module, run: Callable[[], object]) -> int:
    """Evaluations of a cell in a run."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = cell.register_forward_pre_hook(count)
    try:
        run()
    finally:
        handle.remove()
    return calls
