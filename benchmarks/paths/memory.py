"""The most memory that a training step along a path holds, over the number of steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import torchimplicit as ti
from benchmarks.kit.measure import peak_memory
from benchmarks.kit.table import Table, at_most
from torchimplicit.ode import RK4, Backsolve, Checkpointed, Direct, PathAdjoint, Reversible

try:
    import torchdiffeq  # pyright: ignore[reportMissingImports]
except ImportError:
    torchdiffeq = None


class Swirl(nn.Module):
    """A field that neither contracts nor expands, so that it can be integrated back."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y.tanh() @ (self.weight - self.weight.T)


def memory(batch: int, width: int, steps: tuple[int, ...]) -> Table:
    """Peak of forward and backward at some numbers of RK4 steps, for every adjoint and torchdiffeq's two."""
    table = Table(
        "Memory",
        f"Peak of one training step beyond what was held before, in MiB by the allocator's account. RK4 on a "
        f"swirl {batch} x {width} in single precision, two outputs; one state is {batch * width * 4 / 2**20:.2g} MiB. "
        "The ratio is of the last column over the first.",
        ["adjoint", *(f"{count} steps" for count in steps), "ratio", "bar", "verdict"],
    )
    torch.manual_seed(0)
    field, y0, ts = Swirl(width), torch.randn(batch, width), torch.tensor([0.0, 1.0])

    def train(solve: Callable[[], Tensor]) -> int:
        return peak_memory(lambda: torch.autograd.grad(solve().square().sum(), field.weight))

    def ours(adjoint: PathAdjoint, count: int) -> Tensor:
        return ti.odeint(field, y0, ts, solver=RK4(dt=1 / count), adjoint=adjoint, stepping="joint").value[-1]

    runs: dict[str, tuple[Callable[[int], Tensor], bool]] = {
        f"torchimplicit, {adjoint}": (lambda count, adjoint=adjoint: ours(adjoint, count), adjoint != Direct())
        for adjoint in (Checkpointed(16), Checkpointed(64), Backsolve(), Reversible(), Direct())
    }
    if torchdiffeq is not None:
        for peer in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint):

            def theirs(count: int, peer: Callable = peer) -> Tensor:
                return peer(field, y0, ts, method="rk4", options={"step_size": 1 / count})[-1]

            runs[f"torchdiffeq, {peer.__name__}"] = theirs, False
    for name, (solve, barred) in runs.items():
        peaks = [train(lambda solve=solve, count=count: solve(count)) for count in steps]
        ratio = peaks[-1] / peaks[0]
        cells = (f"{peak / 2**20:.2f}" for peak in peaks)
        table.add(name, *cells, f"{ratio:.2f}", *(at_most(ratio, 1.05) if barred else ("", "")))
    return table
