"""Conditions on a minimum: the gradient of an energy, or of a sum of squares, that vanishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.problem import Problem, Residual, Slope
from torchimplicit.core.tree import Layout


class Stationary(Problem):
    """`dE/dz = 0` for an energy `E(z)` of every sample; the residual is the gradient."""

    slopes = True

    def check(self, value: Any) -> None:
        """See `Problem.check`."""
        self.check_of(value, self.layout)

    def check_of(self, value: Any, layout: Layout) -> None:
        """One real number per sample, of those of a layout: at every evaluation, lest others broadcast in silence."""
        shape = (layout.batch,) if self.batch_dims else ()
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TypeError(f"the energy returned {got}, expected a real floating tensor of shape {shape}")
        if value.shape != shape:
            raise ValueError(
                f"the energy returned shape {tuple(value.shape)}, expected {shape}, one number per sample; try summing "
                "over every dimension but that of the batch, or batch_dims=0 for one coupled problem"
            )

    def energies(self, value: Any, layout: Layout) -> Tensor:
        """The energy of every sample, `(B,)`, from the function's value."""
        self.check_of(value, layout)
        return value.reshape(layout.batch)

    def _bound(
        self,
        function: Callable,
        layout: Layout,
        tensors: Sequence[Tensor] = (),
        narrow: Callable[[Tensor], Residual] | None = None,
    ) -> Slope:
        wanted = any(tensor.requires_grad for tensor in tensors)

        def total(z: Tensor) -> tuple[Tensor, Tensor]:
            energies = self.energies(function(layout.unflatten(z)), layout)
            if not energies.requires_grad:
                raise no_slope()
            return energies.sum(), energies  # samples are independent: the gradient of the sum is theirs

        def evaluate(z: Tensor, out: Tensor | None, value: Any = None) -> tuple[Tensor, Tensor]:
            gradient, energies = slope(total, z, wanted)
            return gradient if out is None else out.copy_(gradient), energies.to(z.dtype)

        return Slope(evaluate, self.eps, narrow)


class LeastSquares(Stationary):
    """`dE/dz = 0` for `E = |r(z)|^2 / 2`, the function giving the terms `r` of every sample."""

    squares = True

    def check_of(self, value: Any, layout: Layout) -> None:
        """Real numbers of every sample, nested; any number of them."""
        leaves = pytree.tree_leaves(value)
        if not leaves:
            raise ValueError("the function of least squares returned nothing, expected a tensor (B, m) of residuals")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                got = leaf.dtype if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                raise TypeError(
                    f"the residuals are {got}, expected real floating tensors; try torch.view_as_real on complex ones"
                )
            if leaf.numel() == 0 or (self.batch_dims and (leaf.dim() == 0 or len(leaf) != layout.batch)):
                raise ValueError(
                    f"the residuals have shape {tuple(leaf.shape)}, expected ({layout.batch}, ...), those of each "
                    "sample in dimension 0; not their sum of squares, and batch_dims=0 for one coupled problem"
                )

    def energies(self, value: Any, layout: Layout) -> Tensor:
        """Half the sum of squares."""
        return 0.5 * self._rows(value, layout).square().sum(1)

    def _bound(
        self,
        function: Callable,
        layout: Layout,
        tensors: Sequence[Tensor] = (),
        narrow: Callable[[Tensor], Residual] | None = None,
    ) -> Slope:
        slope = super()._bound(function, layout, tensors, narrow)
        slope.terms = lambda z: self._rows(function(layout.unflatten(z)), layout)
        return slope

    def _rows(self, value: Any, layout: Layout) -> Tensor:
        """Nested tensors of every sample as a matrix `(B, m)`, in the precision that the state is carried in."""
        self.check_of(value, layout)
        return torch.cat([leaf.to(layout.dtype).reshape(layout.batch, -1) for leaf in pytree.tree_leaves(value)], dim=1)


def slope(total: Callable[[Tensor], tuple[Tensor, Any]], z: Tensor, wanted: bool) -> tuple[Tensor, Any]:
    """The gradient `(B, n)` of a number by the state, itself differentiable where that is `wanted` or the state's.

    Not always while grad is enabled: a graph that leads to nothing but this state would outlive the solve.

    Args:
        total: the state's number, and whatever else to return.
        z: the state.
        wanted: whether the number depends on other tensors that require grad.
    """
    if transforms.active():
        return torch.func.grad(total, has_aux=True)(z)
    # Without torch.func where it can be: that takes longer on small states, and not inside Unrolled(checkpoint=True).
    differentiable = torch.is_grad_enabled() and (wanted or z.requires_grad)
    with torch.enable_grad():
        z = z if differentiable and z.requires_grad else z.detach().requires_grad_()
        number, rest = total(z)
        gradient = torch.autograd.grad(number, z, create_graph=differentiable, allow_unused=True)[0]
    if gradient is None:
        raise no_slope()
    return gradient, rest


def no_slope() -> ValueError:
    """The error about an energy that the state does not enter."""
    return ValueError(
        "the energy does not depend on the state differentiably: got no gradient by z, expected one; look for a "
        "state that is not used, .detach(), torch.no_grad() or integers inside the energy, and use torch.no_grad() in "
        "place of torch.inference_mode() around it"
    )
