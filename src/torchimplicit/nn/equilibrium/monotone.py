r"""Monotone equilibrium networks: one equilibrium for every weight, and solvers that are bound to find it.

With $W = (1 - m) I - A^\top A + B - B^\top$ the operator $I - W$ is strongly monotone by $m$ for all $A$ and $B$, since
the skew part adds nothing to $v^\top (I - W) v = m |v|^2 + |A v|^2$. Then $z = \mathrm{relu}(W z + x)$ has exactly one
solution for every $x$; and every strongly monotone $I - W$ is of this form.

Source: E. Winston and J. Z. Kolter, Monotone operator equilibrium networks (2020, arXiv 2006.08591), sections 3 and 4.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.core.tree import own
from torchimplicit.nn.equilibrium.deq import DEQ
from torchimplicit.nn.parts.contractive import norm_bound
from torchimplicit.solve import Anderson, ForwardBackward, PeacemanRachford, Solver

Splitting = Literal["peaceman-rachford", "forward-backward"]

SPLITTINGS = {"peaceman-rachford": PeacemanRachford, "forward-backward": ForwardBackward}


class StronglyMonotone(nn.Module):
    r"""Parametrises $W = (1 - m) I - A^\top A + B - B^\top$ by one matrix: $A$ its upper, $B$ its lower triangle.

    $B$ is strictly lower. General: every positive semidefinite matrix is an $A^\top A$ with triangular $A$.

    Args:
        strength: $m$.
    """

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength
        require_strength(self)

    def forward(self, matrix: Tensor) -> Tensor:
        """The weight, `(n, n)`."""
        upper, lower = matrix.triu(), matrix.tril(-1)
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return (1 - self.strength) * eye - upper.mT @ upper + lower - lower.mT


class MonotoneLinear(nn.Module):
    r"""The cell $\mathrm{relu}(W z + x)$ with $I - W$ strongly monotone, for `MonotoneDEQ`.

    What injects the input, $U x + b$, stands outside, a `torch.nn.Linear` say: it is computed once and not once a step.
    Not for images, where `MonotoneConv` needs far fewer weights and no `width`-cubed inverse.

    Args:
        width: of the state.
        strength: $m$, > 0. Larger ones solve in fewer steps and leave the weights less freedom.
        scale: size of the weights to start with, > 0.

    Raises:
        ValueError: an option is impossible.
    """

    weight: Tensor

    def __init__(self, width: int, strength: float = 0.5, scale: float = 0.5):
        """Draws the weights."""
        super().__init__()
        self.width, self.strength, self.scale = width, strength, scale
        require_count(self, "width")
        require_strength(self)
        require(self, "scale", is_number(scale) and 0 < scale < math.inf, "a finite number > 0")
        self.weight = nn.Parameter(scale * torch.randn(width, width) / width**0.5)
        register_parametrization(self, "weight", StronglyMonotone(strength))

    def affine(self, z: Tensor, x: Tensor) -> Tensor:
        """`W z + x`, of states and inputs `(B, width)`."""
        return nn.functional.linear(z, self.weight) + x

    def prox(self, z: Tensor, step: float) -> Tensor:
        """ReLU, a projection: the same at every step."""
        return z.relu()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map itself, `(B, width)`."""
        return self.prox(self.affine(z, x), 1.0)

    @torch.no_grad()
    def bounds(self) -> tuple[float, Tensor]:
        """$m$, and an upper bound of the norm of $I - W$."""
        return self.strength, norm_bound(self._operator())

    @torch.no_grad()
    def parts(self) -> tuple[Tensor, Tensor]:
        """Upper bounds of the norms of the symmetric and the skew part of $I - W$."""
        return part_bounds(self._operator())

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"width={self.width}, strength={self.strength}"

    def _operator(self) -> Tensor:
        return torch.eye(self.width, dtype=self.weight.dtype, device=self.weight.device) - self.weight


class MonotoneDEQ(DEQ):
    r"""The one fixed point of a monotone cell, found by operator splitting whatever the weights.

    A `DEQ` whose map is a splitting of the cell, which contracts; see `PeacemanRachford` and `ForwardBackward`. What
    comes out is the cell's fixed point. Since the map's linearisation contracts as well, the backward solve converges
    too, for every adjoint. `contraction()` is the factor by which every plain step comes closer, from every start and
    for every input; `diagnose.certify` prints it as the proof of uniqueness that it is.

    `step=None` chooses what has the best bound, $1 / \ell$ for Peaceman-Rachford and $m / \ell^2$ for forward-backward,
    when a solve begins, with $\ell = \min(L, \sqrt{m s} + k)$ from the norms of $I - W$ ($L$), of its symmetric ($s$)
    and its skew part ($k$); `torchimplicit.solve.splitting` proves it. All three are bounded from above, by Gram
    iteration: where a power iteration, from below, could choose a step too large for forward-backward, this cannot. The
    fixed point does not depend on the step, so no gradient goes through it.

    The tolerances are on the splitting's residual. Forward-backward's is shorter than the cell's, by the step; the
    solver is told so, and goes on until the cell's is within them.

    Not for a cell that must not be monotone to fit, and not where the weights stay small: a contractive layer does
    without the inverse.

    Args:
        cell: `MonotoneLinear`, `MonotoneConv`, `MonotoneTiers` or another module as `Monotone` describes; its input is
            like its state.
        splitting: "peaceman-rachford" or "forward-backward".
        step: $\alpha$, > 0; None chooses.
        solver: `Picard()` is the method of the paper; `Anderson` needs fewer steps, and comes without the guarantee.
        adjoint: how to differentiate; its linear system is that of the splitting.
        warm_start: see `DEQ`.
        on_failure: see `DEQ`.

    Raises:
        ValueError: an option is impossible.
        TypeError: the cell is no monotone one.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> layer = ti.nn.MonotoneDEQ(
        ...     ti.nn.MonotoneLinear(16, scale=20.0), solver=ti.Picard(max_steps=2000)
        ... )
        >>> z = layer(torch.randn(4, 16))
        >>> z.shape, layer.report.converged, layer.contraction() < 1
        (torch.Size([4, 16]), True, True)
    """

    def __init__(
        self,
        cell: nn.Module,
        splitting: Splitting = "peaceman-rachford",
        step: float | None = None,
        solver: Solver = Anderson(),
        adjoint: Adjoint = Implicit(),
        warm_start: bool = False,
        on_failure: OnFailure = "warn",
    ):
        """Splits the cell; solves nothing."""
        if splitting not in SPLITTINGS:
            raise ValueError(f"MonotoneDEQ(splitting={splitting!r}): expected one of {', '.join(SPLITTINGS)}")
        split = SPLITTINGS[splitting](cell, step)
        super().__init__(split, solver, adjoint, warm_start=warm_start, on_failure=on_failure)

    def forward(self, x: Tensor, *args: Any, z0: Any = None, save_steps: Any = (), **keywords: Any) -> Any:
        """The cell's fixed point for an input like the state; see `DEQ.forward`. `z0` and the steps are the map's.

        Further arguments may be given by the names that they have in the cell's `affine`; both halves of a splitting
        take them by position.
        """
        split: Any = self.cell
        args = _by_position(split.cell.affine, (x, *args), keywords) if keywords else args
        found = super().forward(x, *args, z0=z0, save_steps=save_steps)
        value = own(split.output(found[0] if save_steps else found))
        return (value, found[1]) if save_steps else value

    def contraction(self, *_inputs: Any) -> float:
        """A bound, below one, of the splitting map's Lipschitz constant for all inputs, the weights as they are."""
        split: Any = self.cell
        return split.contraction()


def _by_position(affine: Callable, given: tuple, keywords: dict[str, Any]) -> tuple:
    """The arguments behind the input, those with a name at their places.

    Raises:
        TypeError: there is no such argument, or it has been given, or has no place.
    """
    try:
        bound = inspect.signature(affine).bind(None, *given, **keywords)
    except TypeError as error:
        raise TypeError(f"MonotoneDEQ: the cell takes affine{inspect.signature(affine)}: {error}") from None
    bound.apply_defaults()
    if bound.kwargs:
        raise TypeError(
            f"MonotoneDEQ: got {', '.join(bound.kwargs)} by name, expected arguments that the cell's affine"
            f"{inspect.signature(affine)} also takes by position, as its resolvent does; try it without the star"
        )
    return bound.args[2:]


def part_bounds(operators: Tensor, iterations: int = 6) -> tuple[Tensor, Tensor]:
    """Upper bounds of the norms of the symmetric (Hermitian) and the skew parts of matrices `(..., n, n)`."""
    symmetric, skew = (operators + operators.mH) / 2, (operators - operators.mH) / 2
    return norm_bound(symmetric, iterations), norm_bound(skew, iterations)


def require_strength(module: Any) -> None:
    """Refuses a strength that makes nothing monotone."""
    holds = is_number(module.strength) and 0 < module.strength < math.inf
    require(module, "strength", holds, "a finite number > 0")
