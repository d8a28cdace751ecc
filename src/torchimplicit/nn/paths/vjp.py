"""A function's value and its vector-Jacobian products, inside a vector field that is itself differentiated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.explicit import audited, check_captures

VJP = Callable[[Tensor], Tensor]


def linearise(function: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, VJP]:
    """The value at `y`, and a function from cotangents of the value to those of `y`; both differentiable to any order.

    Plain autograd where that does, which is leaner than `torch.func`; under transforms and compilers the latter. So,
    too, where gradients are recorded but not of `y`: the leaf that autograd would need looks like a captured tensor.
    """
    if torch.is_inference_mode_enabled():  # which records nothing, so that every product would be zero
        with torch.inference_mode(False), torch.no_grad():
            value, vjp = linearise(function, y.clone())
        return value, torch.inference_mode(False)(vjp)
    recording = torch.is_grad_enabled()
    if transforms.active() or torch.compiler.is_compiling():
        return _by_func(function, y)
    explicit = audited()
    if looked_at := recording and not y.requires_grad:
        if explicit is None:
            return _by_func(function, y)
        recording = False
    # A view is a node of its own: what else of the function was made from `y` stays out of its derivative.
    y = y.view_as(y) if recording else y.detach().requires_grad_()
    with torch.enable_grad():
        value = function(y)
    if looked_at and explicit is not None:
        check_captures(function, value, [y, *explicit])

    def back_by_autograd(cotangent: Tensor) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(y)
        (found,) = torch.autograd.grad(
            value, y, cotangent, retain_graph=True, create_graph=recording, allow_unused=True
        )
        return torch.zeros_like(y) if found is None else found

    return (value if recording else value.detach()), back_by_autograd


def _by_func(function: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, VJP]:
    value, back, *_ = torch.func.vjp(function, y)
    return value, lambda cotangent: back(cotangent)[0]


def gradient(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """The gradients of every sample's number, `(B,)` or `(B, 1)`, by its own row of `y`; samples are independent."""
    value, vjp = linearise(function, y)
    if value.numel() != len(y):
        raise ValueError(
            f"the energy returned shape {tuple(value.shape)}, expected ({len(y)},) or ({len(y)}, 1), one number per "
            "sample; try summing over every dimension but that of the batch"
        )
    return vjp(torch.ones_like(value))
