"""What a monotone map must offer to be split, and how monotone it is."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchimplicit.core.options import is_number


@runtime_checkable
class Monotone(Protocol):
    r"""What a module must offer to be split: the two halves of $f(z, x) = \mathrm{prox}(W z + U x + b)$.

    $I - W$ must be strongly monotone. Parametrise it: $W = (1 - m) I - A^\top A + B - B^\top$ makes it so for all $A$,
    $B$, and is general. `torchimplicit.testing.MonotoneCell` is an example in thirty lines.

    `PeacemanRachford` asks for one thing more: either `weight`, the matrix $W$ `(n, n)` with
    `affine(z) = z @ weight.T + ...` for states `(..., n)`; or a method `resolvent(v, step, *args)`, the $z$ with
    $v = z + \alpha\,(z - W z - U x - b)$, from the structure that the module knows. Where it also has `inverse(step)`,
    that tensor is computed once a solve and handed on: `resolvent(v, step, *args, inverse=...)`. See
    `torchimplicit.nn.MonotoneConv`.

    With `step=None` a splitting chooses its step at the beginning of every solve, from `weight` or from a method
    `bounds()`, which returns $m$ and an upper bound of the norm $L$ of $I - W$. A method `parts()` beside it may return
    upper bounds of the norms of its symmetric and its skew part, for a better step.
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


@torch.no_grad()
def bounds(cell: Any) -> tuple[float, float]:
    r"""A cell's $m$ and $\ell$, see `splitting`, with its weights as they are.

    Raises:
        ValueError: it is not strongly monotone.
    """
    m, size = (float(bound) for bound in (cell.bounds() if hasattr(cell, "bounds") else monotonicity(cell.weight)))
    if m <= 0:
        raise ValueError(
            f"the cell, a {type(cell).__name__}, is not strongly monotone: I - W is so by m={m:.3g}, expected m > 0. "
            "Parametrise its weight; see torchimplicit.nn.MonotoneLinear"
        )
    if hasattr(cell, "parts"):
        symmetric, skew = (float(bound) for bound in cell.parts())
        size = min(size, math.sqrt(m * symmetric) + skew)
    return m, size


def check_cell(split: nn.Module, cell: nn.Module, step: float | None) -> None:
    """Refuses what a splitting cannot split, and steps that are none.

    Raises:
        TypeError: the cell is no module, or lacks a method.
        ValueError: the step is not positive.
    """
    if not (isinstance(cell, nn.Module) and isinstance(cell, Monotone)):
        raise TypeError(
            f"{type(split).__name__}(cell=...): got a {type(cell).__name__}, expected a module with the methods "
            "affine(z, *args) and prox(z, step); see Monotone"
        )
    if step is None:
        if not (hasattr(cell, "bounds") or isinstance(getattr(cell, "weight", None), Tensor)):
            raise TypeError(
                f"{type(split).__name__}(step=None): the cell, a {type(cell).__name__}, has neither `bounds` nor "
                "`weight` to choose a step from; try a number"
            )
    elif not (is_number(step) and 0 < step < math.inf):
        raise ValueError(f"{type(split).__name__}(step={step!r}): expected a finite number > 0, or None to choose one")
