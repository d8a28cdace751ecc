"""Jacobian regularisation: keep a layer's cell a contraction around its fixed points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.options import require_count
from torchimplicit.core.public import public
from torchimplicit.linear.operator import nodes_behind
from torchimplicit.nn.equilibrium.deq import DEQ

# What stands in a graph where something is not to be differentiated again: of functions that are marked so, of fused
# kernels, and of compiled cells.
ONCE = ("torch::autograd::Error", "torch::autograd::NotImplemented", "CompiledFunctionBackwardBackward")


@public
def jacobian_penalty(layer: Callable, z: Any, x: Any, *args: Any, probes: int = 1) -> Tensor:
    r"""Estimates $\|J\|_F^2 / n$, $J = \partial\,\mathrm{cell} / \partial z$ at `z`, averaged over the batch.

    Hutchinson's estimator: $\|J\|_F^2 = E\,|J^\top v|^2$ for standard normal $v$. It is unbiased, and one probe a step
    is enough for training: noise averages out. Add a small multiple of it to the loss, at every step or at some. Its
    gradient is by the cell's parameters and the arguments; where `z` is the layer's own output, it goes through the
    fixed point, too, and is the exact one of the penalty. Pass `z.detach()` to leave that path out, as the paper does:
    it saves a backward solve. Costs an evaluation and `probes` vector-Jacobian products, differentiated again. Where a
    cell can be differentiated once only (fused attention, a compiled cell), the gradient is that of a central
    difference: two more evaluations a probe, right to about the two-thirds power of rounding.

    The Frobenius norm bounds the spectral radius, loosely for large states: it need not come below one. To bound the
    norm instead, take `ContractiveLinear` or a spectral norm.

    Source: S. Bai, V. Koltun, J. Z. Kolter, ICML 2021, arXiv 2106.14342, eq. 4.

    Args:
        layer: a `DEQ`, or a cell `cell(z, x, ...)`.
        z: where: the layer's output, `(B, ...)`, or a nest of such.
        x: input.
        *args: further arguments of the cell.
        probes: vectors to average over, >= 1.

    Returns:
        The penalty, a scalar.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> linear = torch.nn.Linear(8, 8)
        >>> layer = ti.nn.DEQ(lambda z, x, linear: torch.tanh(linear(z) + x))
        >>> x = torch.randn(4, 8)
        >>> z = layer(x, linear)
        >>> loss = z.square().mean() + 0.1 * ti.nn.jacobian_penalty(layer, z, x, linear)
        >>> loss.backward()
    """
    require_count("jacobian_penalty", probes=probes)
    cell = layer.cell if isinstance(layer, DEQ) else layer
    leaves, spec = pytree.tree_flatten(z)

    def evaluate(*leaves: Tensor) -> list[Tensor]:
        return pytree.tree_leaves(cell(pytree.tree_unflatten(list(leaves), spec), x, *args))

    with torch.enable_grad():
        product = Products(evaluate, leaves)
        total = torch.stack([product.square() for _ in range(probes)]).sum()
    return total / (probes * max(1, sum(leaf.numel() for leaf in leaves)))


class Products:
    """Products of random vectors with the transposed Jacobian of a cell by its state, and by this argument alone.

    Args:
        evaluate: the cell, of the leaves of its state; gives leaves.
        z: where, `(B, ...)` each.
    """

    def __init__(self, evaluate: Callable[..., list[Tensor]], z: list[Tensor]):
        """Evaluates the cell once."""
        self.evaluate, self.watches = evaluate, False
        if transforms.active():
            self.value, self._vjp, *_ = torch.func.vjp(evaluate, *z)
            return
        # Views: where an argument depends on the state, or is the state, the derivative by it is not meant.
        self.z = [leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in z]
        self.value = evaluate(*self.z)
        if not any(leaf.requires_grad for leaf in self.value):
            raise ValueError(
                "jacobian_penalty: the cell's value does not depend on its state, nor on anything that has a gradient"
            )
        # One that is marked `once_differentiable` shows it only where the vector itself wants a gradient.
        self.watches = any(isinstance(node, BackwardCFunction) for node in nodes_behind(self.value))

    def _vjp(self, probe: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.value, self.z, probe, create_graph=True, materialize_grads=True)

    def square(self) -> Tensor:
        """`|J^T v|^2` of the whole batch, for a random `v`."""
        probe = [torch.randn_like(leaf) for leaf in self.value]
        probe = [leaf.requires_grad_() for leaf in probe] if self.watches else probe
        products = self._vjp(probe)
        square = torch.stack([product.abs().square().sum() for product in products]).sum()
        if not transforms.active() and any(node.name() in ONCE for node in nodes_behind(products)):
            change = self._change(probe, products)
            return square.detach() + (change - change.detach())
        return square

    def _change(self, probe: list[Tensor], products: Sequence[Tensor]) -> Tensor:
        r"""Changes as `|w|^2`, $w = J^\top v$, where `w` itself has no derivative.

        That changes by $2\,w^\top (dJ)^\top v = 2\,v^\top d(J w)$ with $w$ held, and $J w$ is a central difference.
        """
        held = [product.detach() for product in products]
        size, length = (_norms(leaves) for leaves in (self.z, held))
        step = torch.finfo(size.dtype).eps ** (1 / 3) * size.clamp_min(1.0) / torch.where(length > 0, length, 1.0)
        steps = [step.view(-1, *(1,) * (leaf.dim() - 1)) for leaf in held]
        ahead, behind = (
            self.evaluate(*(leaf + sign * h * w for leaf, h, w in zip(self.z, steps, held, strict=True)))
            for sign in (1, -1)
        )
        moved = [(one - other) * v.detach().conj() for one, other, v in zip(ahead, behind, probe, strict=True)]
        return torch.stack([(each.real.flatten(1).sum(1) / step).sum() for each in moved]).sum()


def _norms(leaves: Sequence[Tensor]) -> Tensor:
    """The norm of every sample, `(B,)`."""
    squares = [leaf.detach().abs().square().flatten(1).sum(1) for leaf in leaves]
    return torch.stack(squares).sum(0).sqrt()
