"""Healthy samples in the place of others: which, and in which tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.core.independence import jolted, noise


def stand_ins(nonfinite: Tensor) -> Tensor:
    """Which sample stands at each place, `(B,)`: a healthy one, the same one for all, for those that are not."""
    return torch.where(
        nonfinite, int(torch.nonzero(~nonfinite)[0]), torch.arange(len(nonfinite), device=nonfinite.device)
    )


def replaced(
    evaluate: Callable[[list[Tensor]], Tensor], tensors: list[Tensor], shared: int, rows: Tensor, nonfinite: Tensor
) -> list[Tensor]:
    """The tensors with the non-finite samples' rows replaced, wherever no healthy sample depends on these rows.

    Args:
        evaluate: the function's values, samples in dimension 0, from the tensors.
        tensors: the explicit tensors.
        shared: how many of them, the first ones, belong to no sample.
        rows: which sample shall stand at each place, `(B,)`.
        nonfinite: which samples are not finite, `(B,)` bool.
    """
    new, chosen = list(tensors), []
    with torch.no_grad():
        before = evaluate(tensors)[~nonfinite]
        for i in range(shared, len(tensors)):
            if tensors[i].dim() and len(tensors[i]) == len(rows):
                # Not by equal rows, which change nothing whomever they belong to.
                perturbed = [*tensors[:i], _perturbed(tensors[i].detach()[rows], nonfinite), *tensors[i + 1 :]]
                if torch.equal(evaluate(perturbed)[~nonfinite], before):
                    chosen.append(i)
    for i in chosen:
        new[i] = tensors[i][rows]
    for i in chosen:
        if _has_gradient(new[i]) and _depends(evaluate, new, i, nonfinite):
            new[i] = tensors[i]
    return new


def _perturbed(tensor: Tensor, nonfinite: Tensor) -> Tensor:
    return torch.where(column(nonfinite, tensor), jolted(tensor), tensor) if _has_gradient(tensor) else tensor


def _has_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _depends(evaluate: Callable[[list[Tensor]], Tensor], tensors: list[Tensor], i: int, nonfinite: Tensor) -> bool:
    """Whether some healthy sample's values have a derivative by the non-finite samples' rows of tensor `i`."""
    leaf = tensors[i].detach().requires_grad_()
    with torch.enable_grad():
        values = evaluate([*(tensor.detach() for tensor in tensors[:i]), leaf, *(t.detach() for t in tensors[i + 1 :])])
    if not values.requires_grad:
        return False
    cotangent = torch.where(column(nonfinite, values), 0, noise(values))
    (found,) = torch.autograd.grad(values, leaf, cotangent, allow_unused=True)
    return found is not None and not bool((found[nonfinite] == 0).all())


def column(which: Tensor, like: Tensor) -> Tensor:
    """Samples `(B,)` such that they broadcast against a tensor of theirs."""
    return which.view(-1, *(1,) * (like.dim() - 1))
