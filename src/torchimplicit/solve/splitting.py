r"""Operator splitting for monotone maps: from one fixed point to another that contracts by construction.

A map $f(z) = \mathrm{prox}(W z + U x + b)$ has exactly one fixed point where $A = I - W$ is strongly monotone,
$v^\top A v \ge m |v|^2$ with $m > 0$: the zero of $A z - U x - b + \partial\varphi(z)$, where the activation is the
proximal operator of a convex $\varphi$. Iterating $f$ itself may diverge all the same. A splitting is another map with
the same fixed point, made of steps in $A$ and in $\varphi$ apart, that contracts whatever the size of $W$. It is a map
like any other: `Picard` on it is the classical method, `Anderson` accelerates it, every adjoint differentiates it. The
backward solve then is the splitting's own, transposed: it contracts by the same factor, so that `Neumann` and `Phantom`
have the bound they need.

Sources: E. Winston and J. Z. Kolter, Monotone operator equilibrium networks (2020, arXiv 2006.08591), sections 3 and 4;
the factors from E. Ryu and S. Boyd, Appl. Comput. Math. 15 (2016) 3.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@runtime_checkable
class Monotone(Protocol):
    r"""What a module must offer to be split: the two halves of $f(z, x) = \mathrm{prox}(W z + U x + b)$.

    $I - W$ must be strongly monotone. Parametrise it: $W = (1 - m) I - A^\top A + B - B^\top$ makes it so for all $A$,
    $B$, and is general. `torchimplicit.testing.MonotoneCell` is an example in thirty lines.

    `PeacemanRachford` asks for one thing more: either `weight`, the matrix $W$ `(n, n)` with
    `affine(z) = z @ weight.T + ...` for states `(..., n)`; or a method `resolvent(v, step, *args)`, the $z$ with
    $v = z + \alpha\,(z - W z - U x - b)$, from the structure that the module knows (Fourier transforms, for circular
    convolutions).
    """

    def affine(self, z: Tensor, *args: Any) -> Tensor:
        """`W z + U x + b`, of the state's shape."""
        ...

    def prox(self, z: Tensor, step: float) -> Tensor:
        r"""The proximal operator of $\alpha\varphi$, with `step` $= \alpha$; at `step=1` the activation.

        ReLU, and other projections such as `clamp`, are the same at every step. A soft threshold grows with it:
        `softshrink(z, step * threshold)`. In general it solves $z = p + \alpha\,(\sigma^{-1}(p) - p)$ for $p$; for tanh
        that has no closed form but at `step=1`.
        """
        ...


class ForwardBackward(nn.Module):
    r"""Forward-backward splitting: $z \mapsto \mathrm{prox}_\alpha(z + \alpha\,(W z + U x + b - z))$.

    Its fixed point is the cell's. Contracts by $\sqrt{1 - 2 \alpha m + \alpha^2 L^2}$, where $I - W$ is strongly
    monotone by $m$ and has the norm $L$: for $\alpha < 2 m / L^2$, best at $m / L^2$. `monotonicity(weight)` gives
    both. At `step=1` it is the cell's own iteration. An evaluation costs one of the cell.

    Not for large $L / m$, where the steps are short and many: take `PeacemanRachford`. Not for a cell that is not
    monotone: that is not checked, and then nothing is promised.

    Args:
        cell: a module; see `Monotone`.
        step: $\alpha$, > 0.

    Raises:
        TypeError: the cell is no module, or lacks a method.
        ValueError: the step is not positive.

    Example:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.testing import MonotoneCell
        >>> cell, x = MonotoneCell(5, 8), torch.randn(3, 5)
        >>> split = ti.ForwardBackward(cell, step=0.2)
        >>> z = ti.fixed_point(split, torch.zeros(3, 8), x).value
        >>> torch.allclose(cell(z, x), z, atol=1e-2)
        True
    """

    def __init__(self, cell: nn.Module, step: float):
        super().__init__()
        _check(self, cell, step)
        self.cell, self.step = cell, step

    def forward(self, z: Tensor, *args: Any) -> Tensor:
        """The split map, at a state of the cell's."""
        cell: Any = self.cell
        return cell.prox(torch.lerp(z, cell.affine(z, *args), self.step), self.step)

    def extra_repr(self) -> str:
        """The step, for `print`."""
        return f"step={self.step}"


class PeacemanRachford(nn.Module):
    r"""Peaceman-Rachford splitting: $u \mapsto (2 R - I)(2\,\mathrm{prox}_\alpha - I)(u)$, $R$ a resolvent.

    Works on an auxiliary state $u$; the cell's fixed point is `output(u)` $= \mathrm{prox}_\alpha(u)$, through which
    gradients flow as through anything. $R$ solves the affine half: `resolvent` in `Monotone`. Contracts for every
    `step` > 0, by $\sqrt{1 - 4 \alpha m / (1 + \alpha L)^2}$, best at $1 / L$, where $I - W$ is strongly monotone by
    $m$ and has the norm $L$: many fewer steps than `ForwardBackward` where $L / m$ is large.

    A cell with a `weight` `(n, n)` has $I + \alpha (I - W)$ inverted once a solve, as a parametrised weight (so this
    module cannot be pickled; its `state_dict` can). That is well conditioned, but costs $n^3$ operations: not for large
    states without structure; a cell with structure brings its own `resolvent`. Not for small $L / m$: `ForwardBackward`
    is simpler.

    Args:
        cell: a module; see `Monotone`.
        step: $\alpha$, > 0.

    Raises:
        TypeError: the cell is no module, or lacks a method.
        ValueError: the step is not positive.

    Example:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.testing import MonotoneCell
        >>> cell, x = MonotoneCell(5, 8), torch.randn(3, 5)
        >>> split = ti.PeacemanRachford(cell, step=0.5)
        >>> z = split.output(ti.fixed_point(split, torch.zeros(3, 8), x).value)
        >>> torch.allclose(cell(z, x), z, atol=1e-2)
        True
    """

    def __init__(self, cell: nn.Module, step: float = 1.0):
        super().__init__()
        _check(self, cell, step)
        if not (hasattr(cell, "resolvent") or isinstance(getattr(cell, "weight", None), Tensor)):
            raise TypeError(
                f"PeacemanRachford(cell=...): got a {type(cell).__name__} with neither `weight` nor `resolvent`, "
                "expected the matrix W or a method resolvent(v, step, *args); try ForwardBackward, which needs none"
            )
        self.cell, self.step = cell, step
        self.dense = None if hasattr(cell, "resolvent") else _DenseResolvent(cell, step)

    def forward(self, u: Tensor, *args: Any) -> Tensor:
        """The split map, at an auxiliary state of the cell's shape."""
        cell: Any = self.cell
        v = 2 * cell.prox(u, self.step) - u
        if self.dense is None:
            return 2 * cell.resolvent(v, self.step, *args) - v
        return 2 * self.dense(v, cell.affine(v, *args)) - v

    def output(self, u: Tensor) -> Tensor:
        """The cell's fixed point, from that of the split map."""
        cell: Any = self.cell
        return cell.prox(u, self.step)

    def extra_repr(self) -> str:
        """The step, for `print`."""
        return f"step={self.step}"


class _DenseResolvent(nn.Module):
    """The resolvent by an inverse that is computed once a solve, because it is a parametrised weight."""

    inverse: Tensor

    def __init__(self, cell: nn.Module, step: float):
        super().__init__()
        self.step = step
        self.register_buffer("inverse", torch.empty(0))
        parametrize.register_parametrization(self, "inverse", _Inverse(cell, step), unsafe=True)

    def forward(self, v: Tensor, affine: Tensor) -> Tensor:
        """From `v` and the cell's affine map there: `v` put right by the solution of a linear equation."""
        return v + self.step * (affine - v) @ self.inverse.mT


class _Inverse(nn.Module):
    """The parametrisation of the inverse by the cell's weight; of the cell it registers nothing a second time."""

    def __init__(self, cell: nn.Module, step: float):
        super().__init__()
        self.cell, self.step = (cell,), step

    def forward(self, _: Tensor) -> Tensor:
        """The inverse of `I + step (I - W)`."""
        weight: Any = self.cell[0].weight
        eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return torch.linalg.inv((1 + self.step) * eye - self.step * weight)


def monotonicity(weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""How monotone $I - W$ is, for choosing a splitting's step; costs an eigenvalue problem.

    Args:
        weight: $W$, `(n, n)`.

    Returns:
        $m$, the smallest eigenvalue of its symmetric part, positive where it is strongly monotone; and its norm $L$.
    """
    with torch.no_grad():
        operator = torch.eye(len(weight), dtype=weight.dtype, device=weight.device) - weight
        return torch.linalg.eigvalsh((operator + operator.mT) / 2)[0], torch.linalg.matrix_norm(operator, 2)


def _check(split: nn.Module, cell: nn.Module, step: float) -> None:
    if not (isinstance(cell, nn.Module) and isinstance(cell, Monotone)):
        raise TypeError(
            f"{type(split).__name__}(cell=...): got a {type(cell).__name__}, expected a module with the methods "
            "affine(z, *args) and prox(z, step); see Monotone"
        )
    if not (isinstance(step, float | int) and 0 < step < math.inf):
        raise ValueError(f"{type(split).__name__}(step={step!r}): expected a finite number > 0")
