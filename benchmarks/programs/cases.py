"""Random quadratic programs, and their exact solutions and gradients by a method of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NAMES = ("Q", "q", "G", "h", "A", "b")


@dataclass(frozen=True)
class Programs:
    """A batch of programs: least `z'Qz / 2 + q'z` subject to `Gz <= h` and `Az = b`, in double precision.

    Attributes:
        root: `L` of `Q = LL' / n + 0.1 I`, `(B, n, n)`.
        q: `(B, n)`.
        G: `(B, m, n)`.
        slack: of the inequalities at `point`, positive, `(B, m)`.
        A: `(B, p, n)`.
        point: a point that meets all constraints, `(B, n)`.
        weight: `w` of the loss `w'z`, `(B, n)`.
    """

    root: Tensor
    q: Tensor
    G: Tensor
    slack: Tensor
    A: Tensor
    point: Tensor
    weight: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """`Q, q, G, h, A, b`."""
        n = self.q.shape[1]
        Q = self.root @ self.root.mT / n + 0.1 * torch.eye(n, dtype=self.q.dtype)
        return Q, self.q, self.G, times(self.G, self.point) + self.slack, self.A, times(self.A, self.point)

    def leaves(self) -> tuple[Tensor, ...]:
        """The same, to be differentiated by."""
        return tuple(part.detach().requires_grad_() for part in self.tensors)

    def moved(self, amount: float, seed: int = 1) -> Programs:
        """All data moved by random normal numbers of this size: what a step of training may do; still feasible."""
        random = torch.Generator().manual_seed(seed)
        parts = {name: getattr(self, name) for name in ("root", "q", "G", "A", "point")}
        noise = {name: torch.randn(part.shape, generator=random, dtype=part.dtype) for name, part in parts.items()}
        return replace(self, **{name: part + amount * noise[name] for name, part in parts.items()})


def programs(batch: int, n: int, m: int, p: int, seed: int = 0) -> Programs:
    """Strictly convex programs that have a solution; about a third of the inequalities are met with equality."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    root, q, G, point = normal(batch, n, n), normal(batch, n), normal(batch, m, n), normal(batch, n)
    slack = torch.rand(batch, m, generator=random, dtype=torch.float64)
    return Programs(root, q, G, slack, normal(batch, p, n), point, normal(batch, n))


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Sample by sample."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Exact:
    """Solutions to rounding.

    Attributes:
        z: `(B, n)`.
        y: multipliers of the inequalities, `(B, m)`.
        nu: multipliers of the equations, `(B, p)`.
        gradients: of the sum of `w'z` by `Q, q, G, h, A, b`; that by `Q` is the symmetric one.
    """

    z: Tensor
    y: Tensor
    nu: Tensor
    gradients: tuple[Tensor, ...]


def exact(tensors: Sequence[Tensor], weight: Tensor) -> Exact:
    """The active rows by a dual method, then one linear solve for the solution and one for the gradients.

    Args:
        tensors: `Q, q, G, h, A, b`.
        weight: `w`, `(B, n)`.
    """
    solved = [_one(*sample) for sample in zip(*tensors, weight, strict=True)]
    parts = [torch.stack(part) for part in zip(*solved, strict=True)]
    return Exact(parts[0], parts[1], parts[2], tuple(parts[3:]))


def _one(Q: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    active = _active(Q, q, G, h, A, b)
    rows, right = torch.cat((A, G[active])), torch.cat((b, h[active]))
    z, multipliers = _saddle(Q, rows, -q, right)
    v, moved = _saddle(Q, rows, w, torch.zeros_like(right))
    p = len(b)
    y, dual = torch.zeros_like(h), torch.zeros_like(h)
    y[active], dual[active] = multipliers[p:], moved[p:]
    nu, shift = multipliers[:p], moved[:p]
    symmetric = -(torch.outer(v, z) + torch.outer(z, v)) / 2
    return (
        z,
        y,
        nu,
        symmetric,
        -v,
        -torch.outer(y, v) - torch.outer(dual, z),
        dual,
        -torch.outer(nu, v) - torch.outer(shift, z),
        shift,
    )


def _active(Q: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> list[int]:
    """The inequalities that hold the solution.

    The dual method of D. Goldfarb and A. Idnani (Mathematical Programming 27, 1983): from the minimum without
    inequalities, each violated one is pushed in until it is met, and rows whose multiplier vanishes on the way leave.
    """
    active: list[int] = []
    z, multipliers = _saddle(Q, A, -q, b)
    p = len(b)
    while True:
        violation = G @ z - h
        violation[active] = 0
        new = int(violation.argmax())
        if violation[new] <= 1e-10:
            return active
        pushed = 0.0
        while True:
            rows = torch.cat((A, G[active]))
            dz, turn = _saddle(Q, rows, -G[new], torch.zeros_like(multipliers))
            gain = -float(G[new] @ dz)
            whole = float(G[new] @ z - h[new]) / gain if gain > 1e-12 else torch.inf
            limits = torch.where(turn[p:] < 0, -multipliers[p:] / turn[p:], torch.inf)
            partial = float(limits.min()) if active else torch.inf
            step = min(whole, partial)
            if step == torch.inf:
                raise ValueError("got a program without a point that meets its constraints, expected one")
            z, multipliers, pushed = z + step * dz, multipliers + step * turn, pushed + step
            if whole <= partial:
                active.append(new)
                multipliers = torch.cat((multipliers, multipliers.new_tensor([pushed])))
                break
            leaves = int(limits.argmin())
            del active[leaves]
            multipliers = torch.cat((multipliers[: p + leaves], multipliers[p + leaves + 1 :]))


def _saddle(Q: Tensor, rows: Tensor, right: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`Qx + R'y = right`, `Rx = target`, with one step of refinement."""
    n, r = len(Q), len(rows)
    system = torch.cat((torch.cat((Q, rows.T), 1), torch.cat((rows, Q.new_zeros(r, r)), 1)))
    wanted = torch.cat((right, target))
    factor, pivots = torch.linalg.lu_factor(system)
    found = torch.linalg.lu_solve(factor, pivots, wanted.unsqueeze(1))
    found = found + torch.linalg.lu_solve(factor, pivots, wanted.unsqueeze(1) - system @ found)
    return found[:n, 0], found[n:, 0]


def kkt_residual(tensors: tuple[Tensor, ...], z: Tensor, y: Tensor, nu: Tensor) -> float:
    """The largest violation of a condition of Karush, Kuhn and Tucker in the batch; no library's own account."""
    Q, q, G, h, A, b = tensors
    slack = h - times(G, z)
    return max(
        float(part.abs().max())
        for part in (
            times(Q, z) + q + times(G.mT, y) + times(A.mT, nu), times(A, z) - b, slack.clamp_max(0), y.clamp_max(0),
            slack * y,
        )
    )  # fmt: skip


def relative(found: Tensor, truth: Tensor) -> Tensor:
    """Distance over size, sample by sample, `(B,)`; the distance itself where the truth is zero."""
    size = truth.flatten(1).norm(dim=1)
    return (found - truth).flatten(1).norm(dim=1) / torch.where(size > 0, size, 1.0)
