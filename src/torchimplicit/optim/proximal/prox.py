r"""Proximal maps, $\mathrm{prox}_{\alpha f}(x) = \arg\min_y f(y) + |y - x|^2 / (2 \alpha)$, exact and batched.

All have the form `prox(x, step)` with `step` $= \alpha \ge 0$, a number or one per sample, which is what a cell of
`ForwardBackward` calls; `l1` and `squared_l2`, whose functions are sums over entries, take one per entry, too. A weight
$\lambda$ of $f$ goes into the step, `prox(x, step * weight)`. Points are vectors in the last dimension (`nuclear`:
matrices, `total_variation_2d`: images), all dimensions before are the batch.
All are differentiable in the point and in the step, to every order; at kinks as said with the projections, to which
most are related by Moreau's identity: $x = \mathrm{prox}_f(x) + \mathrm{prox}_{f^*}(x)$, and where $f$ is a norm,
$\mathrm{prox}_{\alpha f^*}$ is the projection onto the dual norm's ball of radius $\alpha$. What is said of
`on_failure` there holds here; no entry of `-inf` has an answer.

Source: N. Parikh, S. Boyd, Proximal Algorithms, Foundations and Trends in Optimization 1 (2014) 127, chapters 2 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.balls import onto_ball, onto_box
from torchimplicit.optim.projection.batch import Batch, Scalar
from torchimplicit.optim.projection.cones import onto_semidefinite_cone
from torchimplicit.optim.projection.simplex import onto_l1_ball
from torchimplicit.optim.proximal.total_variation_1d import total_variation
from torchimplicit.optim.proximal.total_variation_2d import total_variation_2d

__all__ = [
    "Prox",
    "conjugate",
    "group",
    "indicator",
    "l1",
    "l2",
    "linf",
    "nuclear",
    "squared_l2",
    "total_variation",
    "total_variation_2d",
]

_FAULT = "a step or weight is impossible"


class Prox(Protocol):
    """A proximal map: of `step` times a function, at points."""

    def __call__(self, x: Tensor, step: Scalar = 1.0, /) -> Tensor:
        """The nearby point, as `x`."""
        ...


def l1(x: Tensor, step: Scalar = 1.0, weights: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""Of $\sum_i w_i |x_i|$: the soft threshold, every entry nearer to zero by $\alpha w_i$.

    Args:
        x: points `(..., n)`.
        step: $\alpha \ge 0$, a number, one per sample, `(...)`, or one per entry, of as many dimensions as `x`.
        weights: $w \ge 0$, a number or a tensor that broadcasts to `x`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The proximal points, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a step or weight is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import prox
        >>> prox.l1(torch.tensor([[3.0, -0.2, -2.0]]), 0.5)
        tensor([[ 2.5000,  0.0000, -1.5000]])
    """
    batch = Batch("l1", x, fault=_FAULT, on_failure=on_failure)
    threshold = _weighed(batch, step, weights)
    return batch.finish(batch.x - onto_box(batch.x, -threshold, threshold))


def l2(x: Tensor, step: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""Of $|x|_2$: the block soft threshold $x \max(0, 1 - \alpha / |x|)$, also called shrinkage.

    Args:
        x: points `(..., n)`.
        step: $\alpha \ge 0$, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The proximal points, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a step is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("l2", x, fault=_FAULT, on_failure=on_failure)
    near, gap, play = onto_ball(batch.x, batch.scalar("step", step, at_least=0))
    return batch.finish(batch.x - near, gap, play)


def linf(x: Tensor, step: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""Of $\max_i |x_i|$: the largest entries come down to one level, by $\alpha$ in all. Costs $n \log n$.

    Args:
        x: points `(..., n)`.
        step: $\alpha \ge 0$, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The proximal points, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a step is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("linf", x, fault=_FAULT, on_failure=on_failure)
    near, *sure = onto_l1_ball(batch.x, batch.scalar("step", step, at_least=0))
    return batch.finish(batch.x - near, *sure)


def squared_l2(x: Tensor, step: Scalar = 1.0, weights: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""Of $\sum_i w_i x_i^2 / 2$: $x_i / (1 + \alpha w_i)$.

    Args:
        x: points `(..., n)`.
        step: $\alpha \ge 0$, a number, one per sample, `(...)`, or one per entry, of as many dimensions as `x`.
        weights: $w \ge 0$, a number or a tensor that broadcasts to `x`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite.

    Returns:
        The proximal points, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a step or weight is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import prox
        >>> prox.squared_l2(torch.tensor([[3.0, -3.0]]), 0.5, torch.tensor([1.0, 4.0]))
        tensor([[ 2., -1.]])
    """
    batch = Batch("squared_l2", x, fault=_FAULT, on_failure=on_failure)
    return batch.finish(batch.x / (1 + _weighed(batch, step, weights)))


def _weighed(batch: Batch, step: Scalar, weights: Scalar) -> Tensor:
    """The steps times the weights of the entries."""
    step = batch.step(step)
    if not isinstance(weights, Tensor):
        return step * batch.scalar("weights", weights, at_least=0)
    found = batch.vector("weights", weights)
    negative = found.detach() < 0
    batch.refuse(negative.any(-1) if negative.dim() else negative, "weights >= 0")
    return step * found


def group(x: Tensor, step: Scalar, groups: Tensor | Sequence[int], *, on_failure: OnFailure = "raise") -> Tensor:
    r"""Of $\sum_g |x_g|_2$ over groups of entries: `l2` on every group, which keeps or drops it as a whole.

    For groups that do not overlap. For weights by group scale the entries, or call `l2` on each.

    Args:
        x: points `(..., n)`.
        step: $\alpha \ge 0$, a number or one per sample, `(...)`.
        groups: the number of every entry's group, integers `(n,)` from 0.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The proximal points, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a step or a group is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor, or the groups are not integers.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import prox
        >>> prox.group(torch.tensor([[3.0, 4.0, 0.1]]), 1.0, [0, 0, 1])
        tensor([[2.4000, 3.2000, 0.0000]])
    """
    batch = Batch("group", x, fault=_FAULT, on_failure=on_failure)
    step = batch.scalar("step", step, at_least=0)
    labels = _labels(groups, batch.x)
    count, x = int(labels.max()) + 1, batch.x
    labels = labels.expand(x.shape)
    nothing = torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], count)
    # Squares of small and of large entries are not lost, not even beside another group's.
    scale = nothing.scatter_reduce(-1, labels, x.detach().abs(), "amax")
    scale = torch.where(scale > 0, scale, 1)
    squares = nothing.scatter_add(-1, labels, (x / scale.gather(-1, labels)).square())
    outside = (squares.detach().sqrt() * scale >= step.detach()) & (squares.detach() > 0)
    length = scale * torch.where(outside, squares, 1).sqrt()
    shrink = torch.where(outside, 1 - step / length, 0)
    return batch.finish(x * shrink.gather(-1, labels))


@public
def nuclear(X: Tensor, step: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""Of the sum of a matrix's singular values: every one is lowered by $\alpha$, down to zero.

    With $[\begin{smallmatrix} -\alpha I & X \\ X^\top & -\alpha I \end{smallmatrix}]$, whose eigenvalues are
    $\pm\sigma_i - \alpha$, it is twice the upper right block of the projection onto the semidefinite cone. So equal
    and vanishing singular values leave the derivatives right; at $\sigma_i = \alpha$, a kink, see `semidefinite_cone`.
    Costs an eigenvalue problem of size $m + n$.

    Args:
        X: matrices `(..., m, n)`.
        step: $\alpha \ge 0$, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The proximal points, as `X`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a step is negative, or shapes do not fit.
        TypeError: `X` is not a real floating tensor.
    """
    batch = Batch("nuclear", X, event=2, fault=_FAULT, on_failure=on_failure)
    step = batch.scalar("step", step, at_least=0)
    rows, columns = batch.x.shape[-2:]
    across = torch.nn.functional.pad(batch.x, (rows, 0, 0, columns))
    eye = torch.eye(rows + columns, dtype=across.dtype, device=across.device)
    near, *sure = onto_semidefinite_cone(across + across.mT - step * eye)
    return batch.finish(2 * near[..., :rows, rows:], *sure)


def indicator(project: Callable[..., Tensor], *parameters: Any) -> Prox:
    """Of a set's indicator function: the projection onto the set, whatever the step.

    Inside a solve, tensors that need a gradient must be the cell's own: call the projection there, in place of this.

    Args:
        project: a projection, called as `project(x, *parameters)`.
        *parameters: the set's.

    Returns:
        A proximal map.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection, prox
        >>> prox.indicator(projection.simplex, 2.0)(torch.zeros(1, 4), 0.1)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    return lambda x, step=1.0, /: project(x, *parameters)


def conjugate(prox: Prox, event: int = 1, *, on_failure: OnFailure = "raise") -> Prox:
    r"""Of the convex conjugate $f^*$, by Moreau: $x - \alpha\,\mathrm{prox}_{f / \alpha}(x / \alpha)$.

    Args:
        prox: the proximal map of $f$.
        event: dimensions of one point: 1 for vectors, 2 for matrices and images.
        on_failure: "raise", "warn" or "ignore" samples that are not finite.

    Returns:
        A proximal map; it takes steps $\alpha > 0$.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import prox
        >>> prox.conjugate(prox.l1)(torch.tensor([[3.0, -0.2, -2.0]]), 0.5)
        tensor([[ 1.0000, -0.2000, -1.0000]])
    """

    def of_conjugate(x: Tensor, step: Scalar = 1.0, /) -> Tensor:
        batch = Batch("conjugate", x, event, _FAULT, on_failure=on_failure)
        size = batch.scalar("step", step)
        batch.refuse((size.detach() <= 0)[(..., *[0] * event)], "step > 0")
        inverse = 1 / size
        return batch.finish(batch.x - size * prox(batch.x * inverse, inverse[(..., *[0] * event)]))

    return of_conjugate


def _labels(groups: Tensor | Sequence[int], x: Tensor) -> Tensor:
    labels = torch.as_tensor(groups, device=x.device)
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"group: got groups of dtype {labels.dtype}, expected integers")
    if labels.shape != x.shape[-1:] or int(labels.min()) < 0:
        raise ValueError(
            f"group: got groups {groups!r}, expected the number, from 0, of every entry's group: ({x.shape[-1]},)"
        )
    return labels.long()
