r"""Unit vectors that repel each other: block coordinate descent to their equilibrium, and its implicit derivative.

The energy $E(V) = \tfrac12 \sum_{i \ne j} C_{ij} v_i^\top v_j + \sum_i f_i^\top v_i$ over unit vectors is least in
$v_i$, the others held, at $v_i = -g_i / |g_i|$ with the force $g_i = f_i + \sum_{j \ne i} C_{ij} v_j$: the mixing
method of P.-W. Wang, W.-C. Chang, J. Z. Kolter, arXiv 1706.00476. Here a whole block of vectors moves at once, for all
samples, by one matrix product: with $\sigma$ the largest eigenvalue of the block's own part of $C$, the energy minus
$\tfrac{\sigma}{2} \sum |v_i|^2$ (a constant) is concave in the block, so its tangent lies above it, and its minimum
$v_i = -(g_i - \sigma v_i) / |g_i - \sigma v_i|$ never raises the energy. The fixed points are those of single steps.

At a fixed point $P_i g_i = 0$, where $P_i = I - v_i v_i^\top$. Differentiating it with $dv_i$ in the tangent space,

$$ |g_i|\, dv_i + P_i \sum_j C_{ij}\, dv_j = -P_i \Bigl( df_i + \sum_j dC_{ij}\, v_j \Bigr), $$

whose matrix $H$ is the energy's Hessian on the spheres: symmetric, and positive semidefinite where the energy is least.
So the backward pass is one solve $H w = P\, \partial L / \partial V$ by conjugate gradients, preconditioned by $|g_i|$,
and $\partial L / \partial f = -w$, $\partial L / \partial C_{ij} = -w_i^\top v_j$.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from torchimplicit.core.call import Call
from torchimplicit.core.options import check_on_failure, is_number, require, require_count
from torchimplicit.core.status import OnFailure, Report, Status
from torchimplicit.linear import CG, LinearOperator
from torchimplicit.solve.report import SolveReport


@dataclass(frozen=True)
class Descent:
    """How far to go, forward and backward; see `nn.MaxSAT` for what each says."""

    blocks: int = 10
    rtol: float = 1e-3
    max_steps: int = 100
    backward_rtol: float = 1e-2
    backward_max_steps: int = 50
    on_failure: OnFailure = "warn"

    def __post_init__(self):
        """Refuses what cannot be."""
        require_count(self, "blocks", "max_steps", "backward_max_steps")
        for name in ("rtol", "backward_rtol"):
            value = getattr(self, name)
            require(self, name, is_number(value) and 0 < value < 1, "a number in (0, 1)")
        check_on_failure(self.on_failure)


class Equilibrium(Function):
    """`(n, B, k)` unit vectors where none can be moved to a lower energy, those that are not free staying."""

    @staticmethod
    def forward(
        ctx: Any, coupling: Tensor, force: Tensor, start: Tensor, free: Tensor, descent: Descent, call: Call
    ) -> Tensor:
        """Descends from the start; keeps the equilibrium and nothing of the steps."""
        value, report = descend(coupling, force, start, free, descent)
        ctx.save_for_backward(coupling, force, value, free)
        ctx.descent, ctx.call, call.record.report = descent, call, report
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One linear solve for all inputs."""
        coupling, force, value, free = ctx.saved_tensors
        w, report = respond(coupling, force, value, free, grad, ctx.descent, ctx.call.record.report)
        ctx.call.finish_backward(report)
        product = w.flatten(1) @ value.flatten(1).T
        # A fixed vector acts through the forces on the others, and is an output itself.
        held = torch.where(free.unsqueeze(2), 0.0, grad - (coupling @ w.flatten(1)).view_as(w))
        return -(product + product.T) / 2, -w.sum(1), held, None, None, None


def descend(coupling: Tensor, force: Tensor, start: Tensor, free: Tensor, descent: Descent) -> tuple[Tensor, Report]:
    """Sweeps over all blocks until every sample's vectors rest; a sample that does is left alone from then on.

    Args:
        coupling: symmetric, diagonal zero, `(n, n)`.
        force: on every vector, the same for all samples, `(n, k)`.
        start: unit vectors, `(n, B, k)`.
        free: which of them may move, `(n, B)`.
        descent: the options.

    Returns:
        The vectors, and the report; a sample's residual is the RMS length of its free vectors' last moves.
    """
    n, batch, _ = start.shape
    value, z, moving = start.clone(), start.clone(), free
    status = torch.full((batch,), int(Status.MAX_STEPS), device=start.device)
    steps, residual = torch.zeros_like(status), start.new_zeros(batch)
    running, count = torch.arange(batch, device=start.device), free.sum(0).clamp_min(1)
    spans = [
        slice(int(rows[0]), int(rows[-1]) + 1)
        for rows in torch.arange(n, device="cpu").tensor_split(min(descent.blocks, n))
    ]
    shifts = [_top(coupling[span, span]) for span in spans]
    sweep = 0
    for sweep in range(1, descent.max_steps + 1):
        rms = (_sweep(coupling, force, z, moving, spans, shifts) / count[running]).sqrt()
        residual[running], steps[running] = rms, sweep
        status[running[rms <= descent.rtol]] = int(Status.CONVERGED)
        status[running[~rms.isfinite()]] = int(Status.NON_FINITE)  # stays where it started
        left = status[running] == Status.MAX_STEPS
        arrived = status[running] == Status.CONVERGED
        value[:, running[arrived]] = z[:, arrived]
        if bool(left.all()):
            continue
        running, z, moving = running[left], z[:, left], moving[:, left]
        if not len(running):
            break
    value[:, running] = z
    return value, SolveReport(status, steps, residual, sweep, name="MaxSAT")


class SphereHessian(LinearOperator):
    """The energy's Hessian on the spheres, `(B, n k)`, with half of its diagonal $|g_i|$ on either side divided out.

    $D^{-1/2} H D^{-1/2}$ with $D = |g_i|$: a factor of every vector, which its projection does not see. Conjugate
    gradients on it are those on $H$, preconditioned by $D$.

    Args:
        coupling: symmetric, `(n, n)`.
        stiffness: $|g_i|$, `(n, B, 1)`.
        value: unit vectors, `(n, B, k)`.
        free: which of them may move, `(n, B)`.
    """

    def __init__(self, coupling: Tensor, stiffness: Tensor, value: Tensor, free: Tensor):
        """Keeps what it is given; a vector that nothing pulls at is left in its units."""
        self.coupling, self.stiffness, self.value, self.free = coupling, stiffness, value, free.unsqueeze(2)
        self.root = torch.where(stiffness > 0, stiffness, 1.0).sqrt()

    def matvec(self, v: Tensor) -> Tensor:
        """The product with moves `(B, n k)`, tangent to their spheres."""
        x = self.unpack(v)
        return self.pack(self.stiffness * x + (self.coupling @ x.flatten(1)).view_as(x))

    def rmatvec(self, v: Tensor) -> Tensor:
        """The same: it is symmetric."""
        return self.matvec(v)

    def pack(self, x: Tensor) -> Tensor:
        """A gradient `(n, B, k)` as a right-hand side `(B, n k)`."""
        tangent = torch.where(self.free, x - (x * self.value).sum(2, keepdim=True) * self.value, 0.0)
        return (tangent / self.root).movedim(1, 0).flatten(1)

    def unpack(self, v: Tensor) -> Tensor:
        """A solution `(B, n k)` as moves `(n, B, k)`."""
        return v.view(len(v), *self.value.shape[::2]).movedim(0, 1) / self.root


def respond(
    coupling: Tensor, force: Tensor, value: Tensor, free: Tensor, grad: Tensor, descent: Descent, forward: Report
) -> tuple[Tensor, Report]:
    """Solves `H w = P grad` for tangent vectors `w` of the free vectors, `(n, B, k)`, by conjugate gradients.

    A sample that was not finite gets zero, and so does one whose gradient is not.
    """
    stiffness = ((coupling @ value.flatten(1)).view_as(value) + force.unsqueeze(1)).norm(dim=2, keepdim=True)
    finite = (forward.status != Status.NON_FINITE) & grad.isfinite().all(0).all(1)
    hessian = SphereHessian(coupling, stiffness, value, free)
    b = hessian.pack(torch.where(finite[:, None], grad, 0.0))
    scale = b.abs().amax(1, keepdim=True).clamp_min(torch.finfo(b.dtype).tiny)  # squares of tiny gradients underflow
    solver = CG(rtol=descent.backward_rtol, max_steps=descent.backward_max_steps)
    x, report = solver.prepare(hessian).solve(b / scale)
    status = Status.NON_FINITE.unless(finite, report.status)
    report = replace(report, status=status, residual=report.residual * scale.squeeze(1))
    return hessian.unpack(torch.where((status == Status.NON_FINITE)[:, None], 0.0, x * scale)), report


def _sweep(
    coupling: Tensor, force: Tensor, z: Tensor, moving: Tensor, spans: list[slice], shifts: list[Tensor]
) -> Tensor:
    """Moves every block of `z` once, in place; returns the squared lengths of all moves, summed `(B,)`."""
    moved = z.new_zeros(z.shape[1])
    flat = z.flatten(1)
    for span, shift in zip(spans, shifts, strict=True):
        old = z[span]
        slope = (coupling[span] @ flat).view_as(old) - shift * old + force[span].unsqueeze(1)
        new = -slope * torch.rsqrt((slope * slope).sum(2, keepdim=True))
        new = torch.where(moving[span].unsqueeze(2), new, old)
        moved += (new - old).square().sum((0, 2))
        z[span] = new
    return moved


def _top(block: Tensor) -> Tensor:
    """The largest eigenvalue; that of a matrix without a trace is never negative."""
    return torch.linalg.eigvalsh(torch.nan_to_num(block))[-1]
