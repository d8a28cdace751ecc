"""A loss on the way to the fixed point, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def fixed_point_correction(
    loss: Callable[[Any], Tensor], value: Any, trajectory: Sequence[Any], gamma: float | Sequence[float] = 0.8
) -> Tensor:
    r"""The loss at the fixed point and, with falling weights, at some of the iterates before it.

    With iterates $z_1, \dots, z_m$ in the order of their steps it is
    $\ell(z^*) + \sum_i \gamma^{m + 1 - i}\, \ell(z_i)$: the last of them weighs $\gamma$, the one before $\gamma^2$.
    Iterates saved with `save_steps` carry the gradient of one step from each, so one evaluation each is the price. It
    makes the path to the solution short and its direction right, for a layer that is used with few steps. Not where the
    loss means nothing before the end, nor as a cure for a solve that does not converge: more steps are.

    Source: S. Bai, Z. Geng, Y. Savani, J. Z. Kolter, CVPR 2022, arXiv 2204.08442 (sparse fixed-point correction).

    Args:
        loss: of one iterate, like `value`: a number, or one per sample, `(B,)` or any other shape, whose mean counts.
        value: the fixed point.
        trajectory: the iterates before it, earliest first, each like `value`.
        gamma: how the weight falls with each iterate further from the end, in (0, 1]; or the iterates' own weights, one
            each, numbers >= 0.

    Returns:
        The weighted sum, a scalar of the losses' dtype and device.

    Raises:
        ValueError: there are no iterates, or `gamma` is out of range or of another length than `trajectory`.
        TypeError: the loss is not a tensor.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(16, 16)
        ...
        ...     def forward(self, z, x):
        ...         return torch.tanh(self.linear(z) + x)
        >>> layer, head = ti.nn.DEQ(Cell()), torch.nn.Linear(16, 3)
        >>> optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.1)
        >>> x, y = torch.randn(8, 16), torch.randint(3, (8,))
        >>> z, along = layer(x, save_steps=[1, 3])
        >>> total = ti.nn.fixed_point_correction(
        ...     lambda z: torch.nn.functional.cross_entropy(head(z), y), z, along
        ... )
        >>> total.backward()
        >>> optimizer.step()
    """
    weights = _weights(gamma, len(trajectory))
    total = _mean(loss(value))
    for weight, iterate in zip(weights, trajectory, strict=True):
        if weight:
            total = total + weight * _mean(loss(iterate))
    return total


def _weights(gamma: float | Sequence[float], count: int) -> list[float]:
    if count == 0:
        raise ValueError("fixed_point_correction: got an empty trajectory, expected iterates; try save_steps=[1, 3]")
    if isinstance(gamma, float | int):
        if not 0 < gamma <= 1:
            raise ValueError(f"fixed_point_correction: got gamma={gamma!r}, expected a number in (0, 1]")
        return [float(gamma) ** (count - place) for place in range(count)]
    weights = [float(weight) for weight in gamma]
    if len(weights) != count or not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(
            f"fixed_point_correction: got gamma={weights}, expected a number >= 0 for each of the {count} iterates"
        )
    return weights


def _mean(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"fixed_point_correction: the loss is a {type(loss).__name__}, expected a tensor")
    return loss.mean() if loss.dim() else loss
