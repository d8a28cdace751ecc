"""The alternating direction method of multipliers, as a map with a fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import is_count, is_number
from torchimplicit.solve import PreparedMap


class ADMM(PreparedMap):
    r"""ADMM for $\min_x f(x) + g(A x)$, as a map of one auxiliary state $v$.

    With $z = \mathrm{prox}_{\alpha g}(v)$ and $x = \arg\min_x f(x) + |A x - (2 z - v)|^2 / (2 \alpha)$ the map is
    $v \mapsto v + A x - z$: an iteration of ADMM with the penalty $\rho = 1 / \alpha$, written in $v = z + u$ with the
    scaled multipliers $u$; for $A = I$ it is Douglas-Rachford splitting, half a step of `PeacemanRachford`. A solve's
    residual is the distance $|A x - z|$ between the two copies. `Picard` on the map is the classical method; `Anderson`
    takes fewer steps. It converges for every step > 0 where $f$ and $g$ are convex and a solution exists; how fast
    depends much on the step.

    Use it where both halves are simple alone (a linear solve, a threshold) and `ProximalGradient` is not: $g$ of $A z$,
    or an $f$ without a bounded gradient. The solution's two copies are `output(v, *args)`. Not for problems that `qp`
    takes, nor where either half needs a solve of its own.

    Source: S. Boyd and others, Foundations and Trends in Machine Learning 3 (2011) 1, section 3.1; as a fixed point of
    Douglas-Rachford splitting, D. Gabay (1983).

    Args:
        f: `f(v, step, *args)`, the $x$ that minimises $f(x) + |A x - v|^2 / (2 \alpha)$, `(B, ...)`; for $A = I$ a
            proximal map, such as those of `torchimplicit.optim.prox`; `quadratic` for a quadratic $f$.
        g: $\mathrm{prox}_{\alpha g}$, `g(v, step)`.
        step: $\alpha$, > 0.
        linear: $A$, `linear(x, *args) -> (B, ...)`, with the arguments of `f`; None is the identity.
        g_args: positions of those arguments that go to `g`, after the step, and not to `f` and `linear`.

    Raises:
        TypeError: `f`, `g` or `linear` is not callable.
        ValueError: the step is not a number > 0, or `g_args` no positions.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.optim import ADMM, prox, quadratic
        >>> split = ADMM(quadratic, lambda v, step: prox.l1(v, 0.5 * step))
        >>> P, q = torch.tensor([[[2.0, 0.5], [0.5, 1.0]]]), torch.tensor([[-3.0, 0.2]])
        >>> v = ti.fixed_point(split, torch.zeros(1, 2), P, q).value
        >>> x, z = split.output(v, P, q)
        >>> [round(entry, 3) for entry in z[0].tolist()]
        [1.343, -0.371]
    """

    def __init__(
        self,
        f: Callable,
        g: Callable,
        step: float = 1.0,
        *,
        linear: Callable | None = None,
        g_args: Sequence[int] = (),
    ):
        super().__init__()
        for name, got in (("f", f), ("g", g), ("linear", linear)):
            if not callable(got) and not (name == "linear" and got is None):
                raise TypeError(f"ADMM({name}=...): got a {type(got).__name__}, expected a callable")
        if not (is_number(step) and 0 < step < math.inf):
            raise ValueError(f"ADMM(step={step!r}): expected a finite number > 0")
        if not (isinstance(g_args, list | tuple) and all(is_count(i, 0) for i in g_args)):
            raise ValueError(f"ADMM(g_args={g_args!r}): expected positions of arguments, such as (1,)")
        self.f, self.g, self.step, self.linear, self.g_args = f, g, step, linear, tuple(g_args)

    def forward(self, v: Tensor, *args: Any) -> Tensor:
        """The map, at an auxiliary state of the shape of `A x`."""
        x, z = self.output(v, *args)
        image = x if self.linear is None else self.linear(x, *self._of_f(args))
        if image.shape != v.shape:
            raise ValueError(
                f"ADMM: got {'x' if self.linear is None else 'A x'} of shape {tuple(image.shape)}, expected that of "
                f"the state, {tuple(v.shape)}"
            )
        return v + image - z

    def output(self, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """The minimiser `x`, and `z`, which is `A x` at the fixed point and has the structure that `g` gives."""
        missing = [i for i in self.g_args if i >= len(args)]
        if missing:
            raise ValueError(
                f"ADMM(g_args={self.g_args}): got {len(args)} arguments beside the state, expected one at position "
                f"{missing[0]}"
            )
        z = self.g(v, self.step, *(args[i] for i in self.g_args))
        return self.f(2 * z - v, self.step, *self._of_f(args)), z

    def _of_f(self, args: tuple) -> tuple:
        return tuple(arg for i, arg in enumerate(args) if i not in self.g_args)

    def extra_repr(self) -> str:
        """The step, for `print`."""
        return f"step={self.step}"


def quadratic(v: Tensor, step: float | Tensor, P: Tensor, q: Tensor, A: Tensor | None = None) -> Tensor:
    r"""The `x` that minimises $\frac12 x^\top P x + q^\top x + |A x - v|^2 / (2 \alpha)$: a proximal map for $A = I$.

    Solves $(\alpha P + A^\top A)\, x = A^\top v - \alpha q$ with a dense factorisation at every call, $n^3$ operations:
    for up to a few hundred unknowns.

    Args:
        v: the point, `(B, m)`.
        step: $\alpha$, > 0; a number, or one per sample, `(B,)`.
        P: positive semidefinite, `(n, n)` or `(B, n, n)`.
        q: `(n,)` or `(B, n)`.
        A: `(m, n)` or `(B, m, n)`; None is the identity, with m = n.

    Returns:
        `(B, n)`.

    Raises:
        ValueError: shapes do not fit.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import quadratic
        >>> quadratic(torch.tensor([[3.0]]), 1.0, torch.tensor([[2.0]]), torch.tensor([0.0]))
        tensor([[1.]])
    """
    n = q.shape[-1]
    if (
        P.shape[-2:] != (n, n)
        or v.shape[-1] != (n if A is None else A.shape[-2])
        or (A is not None and A.shape[-1] != n)
    ):
        shapes = [tuple(tensor.shape) for tensor in (v, P, q, *(() if A is None else (A,)))]
        raise ValueError(
            f"quadratic: got v, P, q, A of {shapes}, expected (B, m), (n, n), (n,), (m, n), batched or not"
        )
    step = (
        step.unsqueeze(-1)
        if isinstance(step, Tensor) and step.dim()
        else torch.as_tensor(step, dtype=v.dtype, device=v.device)
    )
    if A is None:
        system, right = torch.eye(n, dtype=v.dtype, device=v.device), v
    else:
        system, right = A.mT @ A, (v.unsqueeze(-2) @ A).squeeze(-2)
    matrix = system + (step.unsqueeze(-1) if step.dim() else step) * P
    right = right - step * q
    return torch.linalg.solve(matrix.expand(*right.shape[:-1], n, n), right.unsqueeze(-1)).squeeze(-1)
