"""Finding the solutions of a batch of cone programs: Clarabel or the last solution, Newton's method, and a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torchimplicit.adjoint.products import fold
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Remedy, Status
from torchimplicit.core.tree import norm
from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.interior_point import solve_one
from torchimplicit.optim.cone.product import times
from torchimplicit.optim.cone.sound import LUOrLeastSquares
from torchimplicit.optim.quadprog import ProgramReport
from torchimplicit.solve import Newton, iterate

# Newton's method goes on to where it no longer gets better: what remains of the residual is an error of the gradient.
POLISH = Newton(linear_solver=LUOrLeastSquares(), rtol=1e-14, atol=1e-14, max_steps=12, halvings=4)
ROUNDING = 1e-6  # of data that may come from float32, relative to their largest
LOST = (
    Status.INFEASIBLE,
    Status.UNBOUNDED,
    Status.NON_FINITE,
    Status.NONCONVEX,
)  # no solution, so nothing to differentiate

CONES = {
    Status.INFEASIBLE: Remedy(
        "No point satisfies the constraints (Clarabel has a certificate). Such samples add nothing to the gradients.",
        ("to relax them with slack variables that cost something", "to leave such samples out"),
    ),
    Status.UNBOUNDED: Remedy(
        "The objective falls without end (Clarabel has a certificate). Such samples add nothing to the gradients.",
        ("bounds on the variables", "a small multiple of their square in the objective"),
    ),
    Status.NON_FINITE: Remedy(
        "NaN or infinity in the parameters: look for them in the inputs. Such samples add nothing to the gradients."
    ),
    Status.NONCONVEX: Remedy(
        "P has a negative eigenvalue.", ("L @ L.mT in its place", "a multiple of the identity added to it")
    ),
    Status.MAX_STEPS: Remedy("", ("more max_steps",)),
    Status.STAGNATED: Remedy(
        "The solution is inaccurate, so its gradient is, too.", ("a larger tol if that is enough",)
    ),
}


class Data(NamedTuple):
    """Cone programs: `P` `(B, n, n)` or None for zero, `q` `(B, n)`, `A` `(B, m, n)`, `b` `(B, m)`."""

    P: Tensor | None
    q: Tensor
    A: Tensor
    b: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Data:
        """A function of every part that is there."""
        P = None if self.P is None else function(self.P)
        return Data(P, function(self.q), function(self.A), function(self.b))


class ConeReport(ProgramReport):
    """How cone programs were solved: `steps` are Clarabel's, `residual` is the RMS of the optimality conditions."""

    table = CONES


def normal_map(z: Tensor, data: Data, cones: Cones) -> Tensor:
    r"""The optimality conditions as one equation in $z = (x, v)$, with slack and multiplier read off $v = s - y$.

    $$F(x, v) = (P x + q + A^\top y,\; A x + s - b), \quad s = \Pi_K(v), \quad y = \Pi_K(v) - v.$$

    Slack in the cone, multiplier in the dual cone and $s^\top y = 0$ hold for every $v$ (Moreau), so the norm of $F$ is
    the whole error. (S. Robinson, Normal maps induced by linear transformations, Math. Oper. Res. 17 (1992) 691.)

    Args:
        z: `(B, n + m)`.
        data: the programs.
        cones: `K`, of size m.
    """
    P, q, A, b = data
    x, v = z.split([q.shape[-1], b.shape[-1]], dim=-1)
    slack = cones.project(v)
    stationarity = q + times(A.mT, slack - v)
    if P is not None:
        stationarity = stationarity + times(P, x)
    return torch.cat([stationarity, times(A, x) + slack - b], dim=-1)


class Search:
    """How to look for solutions, and how it went.

    Args:
        cones: of the programs.
        warm: where to look first, `(B, n + m)`, or None.
        tol: largest RMS of the optimality conditions, relative to one more than that of `q`, `b`, `x` and `s`.
        max_steps: of Clarabel.

    Attributes:
        report: of the last search.
    """

    report: ConeReport

    def __init__(self, cones: Cones, warm: Tensor | None, tol: float, max_steps: int):
        """Keeps the options."""
        self.cones, self.warm, self.tol, self.max_steps = cones, warm, tol, max_steps

    def run(self, data: Data) -> tuple[Tensor, Tensor]:
        """The points `(B, n + m)`, float64 and without a graph, and which of them are near enough to differentiate at.

        Near is what satisfies the conditions to the root of the tolerance.
        """
        q, b = data.q, data.b
        status = _examined(data)
        sound = status == Status.STAGNATED  # until solved
        z = q.new_zeros(len(q), q.shape[1] + b.shape[1])
        steps, residual = torch.zeros_like(status), torch.full_like(z[:, 0], torch.nan)
        nfev = 0
        if self.warm is not None and self.warm.shape == z.shape and bool(sound.any()):
            rows = torch.nonzero(sound).flatten()
            z[rows], residual[rows], nfev = self._polish(self.warm[rows].to(z), rows, data)
            status = Status.CONVERGED.where(self._small(z, residual, data, self.tol), status)
        asked = sound & (status != Status.CONVERGED)
        for row in torch.nonzero(asked).flatten().tolist():
            one = data.map(lambda part, row=row: part[row].cpu())
            found = solve_one(*one, self.cones, self.max_steps)
            z[row] = torch.cat([found.x, found.v]).to(z).nan_to_num(0, 0, 0)
            status[row], steps[row] = int(found.status), found.steps
        rows = torch.nonzero(asked & ~_is(status, LOST)).flatten()
        if len(rows):
            z[rows], residual[rows], more = self._polish(z[rows], rows, data)
            nfev += more
            doubtful = Status.STAGNATED.where(status == Status.CONVERGED, status)
            polished = Status.CONVERGED.where(self._small(z, residual, data, self.tol), doubtful)
            status[rows] = polished[rows]
        self.report = ConeReport(status, steps, residual, nfev, "cone program")
        return z, ~_is(status, LOST) & self._small(z, residual, data, self.tol**0.5)

    def _polish(self, z: Tensor, rows: Tensor, data: Data) -> tuple[Tensor, Tensor, int]:
        some = data.map(lambda part: part[rows])

        def evaluate(z: Tensor, out: Tensor | None = None) -> Tensor:
            return normal_map(z, some, self.cones)

        result = iterate(POLISH, Residual(evaluate, torch.finfo(z.dtype).eps), z)
        return result.z, norm(evaluate(result.z)) / z.shape[1] ** 0.5, result.report.nfev

    def _small(self, z: Tensor, residual: Tensor, data: Data, tol: float) -> Tensor:
        """Whether the conditions hold, relative to the sizes of `q`, `b`, `x` and `s`.

        Not to that of the multipliers: they grow without end where there is no solution, and with them what would pass.
        """
        x, v = z.split([data.q.shape[1], data.b.shape[1]], dim=1)
        sizes = torch.cat([data.q, data.b, x, self.cones.project(v)], dim=1)
        return residual <= tol * (1 + norm(sizes) / sizes.shape[1] ** 0.5)


class Start(Function):
    """The result of a search, which has no derivative of its own; a function of autograd to meet plain tensors."""

    @staticmethod
    def forward(search: Search, *data: Any) -> tuple[Tensor, Tensor]:
        """Runs the search."""
        return search.run(Data(*data))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Neither output has a gradient."""
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, None]:
        """Neither output has a tangent."""
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, search: Search, *data: Tensor | None) -> tuple:
        """The mapped dimension joins the batch."""
        count = info.batch_size
        folded = [t if t is None else fold(t, dim, count) for t, dim in zip(data, in_dims[1:], strict=True)]
        found = Start.apply(search, *folded)
        return tuple(part.unflatten(0, (count, -1)) for part in found), (0, 0)


def _examined(data: Data) -> Tensor:
    """`STAGNATED`, as nothing is solved yet; or what is wrong with the data, for every sample."""
    finite = torch.stack([part.flatten(1).isfinite().all(1) for part in data if part is not None]).all(0)
    status = Status.STAGNATED.where(finite, Status.NON_FINITE)
    if data.P is None:
        return status
    P = torch.where(finite[:, None, None], data.P, 0)
    size = P.abs().flatten(1).amax(1)
    crooked = torch.nonzero((P - P.mT).abs().flatten(1).amax(1) > ROUNDING * size).flatten()
    if len(crooked):
        raise ValueError(f"P: got a matrix that is not symmetric at batch index {int(crooked[0])}; try (P + P.mT) / 2")
    concave = torch.linalg.eigvalsh(P).amin(1) < -ROUNDING * size
    return Status.NONCONVEX.where(concave, status)


def _is(status: Tensor, which: tuple[Status, ...]) -> Tensor:
    return torch.stack([status == one for one in which]).any(0)
