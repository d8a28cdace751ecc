r"""Operator splitting for monotone maps: from one fixed point to another that contracts by construction.

A map $f(z) = \mathrm{prox}(W z + U x + b)$ has exactly one fixed point where $A = I - W$ is strongly monotone,
$v^\top A v \ge m |v|^2$ with $m > 0$: the zero of $A z - U x - b + \partial\varphi(z)$, where the activation is the
proximal operator of a convex $\varphi$. Iterating $f$ itself may diverge all the same. A splitting is another map with
the same fixed point, made of steps in $A$ and in $\varphi$ apart, that contracts whatever the size of $W$. It is a map
like any other: `Picard` on it is the classical method, `Anderson` accelerates it, every adjoint differentiates it. The
backward solve then is the splitting's own, transposed: it contracts by the same factor, so that `Neumann` and `Phantom`
have the bound they need.

How well is known from $m$ and a length $\ell$ with $|A v|^2 \le \ell^2$ wherever $v^\top A v = m$, $|v| = 1$. The norm
$L$ of $A$ is one. Another follows from the norms $s$ and $k$ of the symmetric and the skew part of $A$: the symmetric
one, $S$, is positive and at most $s$, so that $|S v|^2 \le s\,v^\top S v$ and, with $q = v^\top A v = v^\top S v$,

$$ |A v| \le \sqrt{s q} + k, \qquad \ell = \min(L, \sqrt{m s} + k) . $$

A larger $q$ only makes both splittings contract better: in $|v - \alpha A v|^2 / |v + \alpha A v|^2 = 1 - 4 \alpha /
(1 / q + 2 \alpha + \alpha^2 (\sqrt s + k / \sqrt q)^2)$ at once, and in $|v - \alpha A v|^2 \le 1 - 2 \alpha q +
\alpha^2 (\sqrt{s q} + k)^2$, which is concave in $q$, because it falls at $q = m$ for every $\alpha < 2 m / \ell^2$.
So $q = m$ is the worst, and all bounds below hold with $\ell$.

Sources: E. Winston and J. Z. Kolter, Monotone operator equilibrium networks (2020, arXiv 2006.08591), sections 3 and 4;
the factors from E. Ryu and S. Boyd, Appl. Comput. Math. 15 (2016) 3.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.outcome import Status
from torchimplicit.solve.loop import Result, Solver
from torchimplicit.solve.monotone import bounds, check_cell


class PreparedMap(nn.Module):
    """A map that `fixed_point` prepares for every solve, and asks how its own solves went, and for advice."""

    def begin(self, z0: Any, args: tuple, batch_dims: int) -> PreparedMap:
        """The map to solve from this start with these arguments: itself, or a copy with what it chose for the solve."""
        return self

    def tolerances(self, solver: Solver) -> Solver:
        """The solver to take in place of the user's."""
        return solver

    def inner(self, z: Any, args: tuple, batch_dims: int) -> Tensor | None:
        """How solves of the map's own ended at `z`, `Status` values `(B,)`; None where there are none, or none failed.

        A sample of which one failed has not converged, wherever the loop has ended.
        """
        return None

    def advice(self, z: Any, args: tuple, batch_dims: int) -> str:
        """What to say of a solve that failed at `z`, beyond the usual; empty for nothing."""
        return ""

    def review(self, z: Any, args: tuple, batch_dims: int, result: Result) -> None:
        """Takes what failed within, and the advice on what failed, into the report of a solve that ended at `z`."""
        report, inner = result.report, self.inner(z, args, batch_dims)
        if inner is not None:
            report.status = torch.where(report.status == Status.CONVERGED, inner, report.status)
        if not report.converged:
            report.advice = self.advice(z, args, batch_dims)


def refuse_mapped(owner: Any, tree: Any) -> None:
    """Refuses what `torch.vmap` maps, for maps whose own solves nobody could look at there.

    Raises:
        NotImplementedError: some tensor, or one of a module, stands for a batch that is hidden.
    """
    leaves = pytree.tree_leaves(tree)
    held = [part for leaf in leaves if isinstance(leaf, nn.Module) for part in (*leaf.parameters(), *leaf.buffers())]
    if any(isinstance(leaf, Tensor) and transforms.hides_batch(leaf) for leaf in (*leaves, *held)):
        raise NotImplementedError(
            f"{type(owner).__name__} solves within, which torch.vmap hides; try one batch, in dimension 0"
        )


class _Splitting(PreparedMap):
    """What both have: a cell, and a step that is given or follows the cell's weights."""

    step: float

    def __init__(self, cell: nn.Module, step: float | None):
        super().__init__()
        check_cell(self, cell, step)
        self.cell, self.automatic = cell, step is None
        self.step = self._best(*bounds(cell)) if step is None else step

    def begin_solve(self) -> None:
        """Chooses the step anew, where that is left to the splitting: the weights may have changed."""
        if self.automatic:
            self.step = self._best(*bounds(self.cell))

    def contraction(self) -> float:
        """A bound of the map's Lipschitz constant: two states come closer by it at least. Costs what `bounds` does.

        Only for `ForwardBackward` with a long step it may be one or more, and then bounds nothing.
        """
        m, length = bounds(self.cell)
        return self._factor(self._best(m, length) if self.automatic else self.step, m, length)

    def extra_repr(self) -> str:
        """The step, for `print`."""
        return f"step={self.step:.4g}, chosen every solve" if self.automatic else f"step={self.step}"

    @staticmethod
    def _best(m: float, length: float) -> float:
        raise NotImplementedError

    @staticmethod
    def _factor(step: float, m: float, length: float) -> float:
        raise NotImplementedError


class ForwardBackward(_Splitting):
    r"""Forward-backward splitting: $z \mapsto \mathrm{prox}_\alpha(z + \alpha\,(W z + U x + b - z))$.

    Its fixed point is the cell's. Contracts by $\sqrt{1 - 2 \alpha m + \alpha^2 \ell^2}$, where $I - W$ is strongly
    monotone by $m$, and $\ell$ is its norm $L$ or less (see the head of this file): for $\alpha < 2 m / \ell^2$, best
    at $m / \ell^2$. `monotonicity(weight)` gives $m$ and $L$. At `step=1` it is the cell's own iteration. An evaluation
    costs one of the cell.

    Its residual is only $\alpha$ times the cell's or more, for $\alpha < 1$. So `fixed_point` asks for a residual below
    $\alpha$ times the solver's tolerance: see `tolerances`. Where that is below rounding, the report says stagnated.
    Not for large $\ell / m$, where the steps are short and many: take `PeacemanRachford`. Not for a cell that is not
    monotone: that is not checked, and then nothing is promised.

    Args:
        cell: a module; see `Monotone`.
        step: $\alpha$, > 0; None takes $m / \ell^2$, of the weights that a solve begins with.

    Raises:
        TypeError: the cell is no module, or lacks a method.
        ValueError: the step is not positive.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.testing import MonotoneCell
        >>> cell, x = MonotoneCell(5, 8), torch.randn(3, 5)
        >>> split = ti.ForwardBackward(cell, step=0.2)
        >>> z = ti.fixed_point(split, torch.zeros(3, 8), x).value
        >>> torch.allclose(cell(z, x), z, atol=1e-2)
        True
    """

    def __init__(self, cell: nn.Module, step: float | None):
        super().__init__(cell, step)

    def forward(self, z: Tensor, *args: Any) -> Tensor:
        """The split map, at a state of the cell's."""
        cell: Any = self.cell
        return cell.prox(torch.lerp(z, cell.affine(z, *args), self.step), self.step)

    def output(self, z: Tensor) -> Tensor:
        """The cell's fixed point, from that of the split map: the same."""
        return z

    def tolerances(self, solver: Solver) -> Solver:
        r"""The solver by which the cell's residual meets the tolerances that this one has; `fixed_point` asks for it.

        As $|z - \mathrm{prox}_\alpha(z - \alpha g)|$ does not fall with $\alpha$, and does not grow when divided by
        $\alpha$, the cell's residual, that at $\alpha = 1$, is at most the map's divided by $\min(\alpha, 1)$.
        """
        part = min(self.step, 1.0)
        atol = None if solver.atol is None else part * solver.atol
        return replace(solver, rtol=part * solver.rtol, atol=atol)

    @staticmethod
    def _best(m: float, length: float) -> float:
        return m / length**2

    @staticmethod
    def _factor(step: float, m: float, length: float) -> float:
        return math.sqrt(max(1 - 2 * step * m + (step * length) ** 2, 0.0))


class PeacemanRachford(_Splitting):
    r"""Peaceman-Rachford splitting: $u \mapsto (2 R - I)(2\,\mathrm{prox}_\alpha - I)(u)$, $R$ a resolvent.

    Works on an auxiliary state $u$; the cell's fixed point is `output(u)` $= \mathrm{prox}_\alpha(u)$, through which
    gradients flow as through anything. $R$ solves the affine half: `resolvent` in `Monotone`. Contracts for every
    `step` > 0, by $\sqrt{1 - 4 \alpha m / (1 + 2 \alpha m + \alpha^2 \ell^2)}$, best at $1 / \ell$, where $I - W$ is
    strongly monotone by $m$, and $\ell$ is its norm $L$ or less (see the head of this file): many fewer steps than
    `ForwardBackward` where $\ell / m$ is large.

    A cell with a `weight` `(n, n)` has $I + \alpha (I - W)$ inverted once a solve, as a parametrised weight (so this
    module cannot be pickled; its `state_dict` can). That is well conditioned, but costs $n^3$ operations: not for large
    states without structure; a cell with structure brings its own `resolvent`. Not for small $L / m$: `ForwardBackward`
    is simpler.

    Args:
        cell: a module; see `Monotone`.
        step: $\alpha$, > 0; None takes $1 / \ell$, of the weights that a solve begins with.

    Raises:
        TypeError: the cell is no module, or lacks a method.
        ValueError: the step is not positive.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.testing import MonotoneCell
        >>> cell, x = MonotoneCell(5, 8), torch.randn(3, 5)
        >>> split = ti.PeacemanRachford(cell, step=0.5)
        >>> z = split.output(ti.fixed_point(split, torch.zeros(3, 8), x).value)
        >>> torch.allclose(cell(z, x), z, atol=1e-2)
        True
    """

    def __init__(self, cell: nn.Module, step: float | None = 1.0):
        super().__init__(cell, step)
        self.own = hasattr(cell, "resolvent")
        if not (self.own or isinstance(getattr(cell, "weight", None), Tensor)):
            raise TypeError(
                f"PeacemanRachford(cell=...): got a {type(cell).__name__} with neither `weight` nor `resolvent`, "
                "expected the matrix W or a method resolvent(v, step, *args); try ForwardBackward, which needs none"
            )
        self.solved = None if self.own and not hasattr(cell, "inverse") else _Solved(self)

    def forward(self, u: Tensor, *args: Any) -> Tensor:
        """The split map, at an auxiliary state of the cell's shape."""
        cell: Any = self.cell
        v = 2 * cell.prox(u, self.step) - u
        return 2 * self._resolvent(v, *args) - v

    def output(self, u: Tensor) -> Tensor:
        """The cell's fixed point, from that of the split map."""
        cell: Any = self.cell
        return cell.prox(u, self.step)

    def _resolvent(self, v: Tensor, *args: Any) -> Tensor:
        cell: Any = self.cell
        if self.solved is None:
            return cell.resolvent(v, self.step, *args)
        if self.own:
            return cell.resolvent(v, self.step, *args, inverse=self.solved.inverse)
        return v + self.step * (cell.affine(v, *args) - v) @ self.solved.inverse.mT

    @staticmethod
    def _best(m: float, length: float) -> float:
        return 1 / length

    @staticmethod
    def _factor(step: float, m: float, length: float) -> float:
        return math.sqrt(max(1 - 4 * step * m / (1 + 2 * step * m + (step * length) ** 2), 0.0))


class _Solved(nn.Module):
    """Holds the inverse, which is computed once a solve because it is a parametrised weight."""

    inverse: Tensor

    def __init__(self, split: PeacemanRachford):
        super().__init__()
        self.register_buffer("inverse", torch.empty(0))
        parametrize.register_parametrization(self, "inverse", _Inverse(split), unsafe=True)


class _Inverse(nn.Module):
    """The parametrisation of the inverse by cell and step; of the splitting it registers nothing a second time."""

    def __init__(self, split: PeacemanRachford):
        super().__init__()
        self.split = (split,)

    def forward(self, _: Tensor) -> Tensor:
        """The cell's own inverse, or that of `I + step (I - W)`."""
        (split,) = self.split
        cell: Any = split.cell
        if split.own:
            return cell.inverse(split.step)
        eye = torch.eye(len(cell.weight), dtype=cell.weight.dtype, device=cell.weight.device)
        return torch.linalg.inv((1 + split.step) * eye - split.step * cell.weight)
