"""Jacobian regularisation: keep a layer's cell a contraction around its fixed points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.front_door import front_door
from torchimplicit.nn.deq import DEQ


@front_door
def jacobian_penalty(layer: Callable, z: Any, x: Any, *args: Any, probes: int = 1) -> Tensor:
    r"""Estimates $\|J\|_F^2 / n$, $J = \partial\,\mathrm{cell} / \partial z$ at `z`, averaged over the batch.

    Hutchinson's estimator: $\|J\|_F^2 = E\,|J^\top v|^2$ for standard normal $v$. It is unbiased, and one probe a step
    is enough for training: noise averages out. Add a small multiple of it to the loss, at every step or at some. Its
    gradient is by the cell's parameters and the arguments; where `z` is the layer's own output, it goes through the
    fixed point, too, and is the exact one of the penalty. Pass `z.detach()` to leave that path out, as the paper does:
    it saves a backward solve. Costs an evaluation and `probes` vector-Jacobian products, differentiated again.

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
    if not isinstance(probes, int) or probes < 1:
        raise ValueError(f"jacobian_penalty(probes={probes!r}): expected an integer >= 1")
    cell = layer.cell if isinstance(layer, DEQ) else layer
    leaves, spec = pytree.tree_flatten(z)

    def evaluate(*leaves: Tensor) -> list[Tensor]:
        return pytree.tree_leaves(cell(pytree.tree_unflatten(list(leaves), spec), x, *args))

    with torch.enable_grad():
        value, pull = _linearised(evaluate, leaves)
        total = torch.stack([_squared_product(value, pull) for _ in range(probes)]).sum()
    return total / (probes * max(1, sum(leaf.numel() for leaf in leaves)))


def _linearised(evaluate: Callable, z: list[Tensor]) -> tuple[list[Tensor], Callable]:
    """The cell's value, and its vector-Jacobian product by the state: differentiable, and by this argument alone."""
    if transforms.active():
        value, pull, *_ = torch.func.vjp(evaluate, *z)
        return value, pull
    # Views: where an argument depends on the state, or is the state, the derivative by it is not meant.
    z = [leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in z]
    value = evaluate(*z)
    if not any(leaf.requires_grad for leaf in value):
        raise ValueError(
            "jacobian_penalty: the cell's value does not depend on its state, nor on anything that has a gradient"
        )
    return value, lambda probe: torch.autograd.grad(value, z, probe, create_graph=True, materialize_grads=True)


def _squared_product(value: list[Tensor], pull: Callable) -> Tensor:
    """`|J^T v|^2` of the whole batch, for a random `v`."""
    products = pull([torch.randn_like(leaf) for leaf in value])
    return torch.stack([product.abs().square().sum() for product in products]).sum()
