"""Looking at a layer without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchimplicit.nn import DEQ


def require_layer(layer: Any, caller: str) -> DEQ:
    """The layer, if it is one.

    Raises:
        TypeError: it is no `DEQ`; names the equilibrium layers inside, if any.
    """
    if isinstance(layer, DEQ):
        return layer
    hint = "wrap the cell, torchimplicit.nn.DEQ(cell)"
    if isinstance(layer, nn.Module):
        inside = [name for name, module in layer.named_modules() if isinstance(module, DEQ)]
        if inside:
            hint = f"pass the layer inside with the input that it gets: model.{inside[0]}"
    raise TypeError(f"{caller}(layer, x): got a {type(layer).__name__}, expected a torchimplicit.nn.DEQ; try: {hint}")


def modules_of(layer: DEQ, args: tuple) -> dict[str, nn.Module]:
    """The modules whose tensors a solve depends on, by name: the layer, a bound method's owner, modules in `args`."""
    found: dict[str, nn.Module] = {"": layer}
    owner = getattr(layer.cell, "__self__", None)
    if isinstance(owner, nn.Module):
        found["cell"] = owner
    for i, leaf in enumerate(pytree.tree_leaves(args)):
        if isinstance(leaf, nn.Module):
            found[f"args[{i}]"] = leaf
    return found


@contextmanager
def untouched(layer: DEQ, args: tuple, seed: int | None = None) -> Iterator[None]:
    """Puts buffers (running statistics, power iterations) and the random state back afterwards.

    Args:
        layer: the layer.
        args: its inputs; modules among them keep their buffers, too.
        seed: for the random numbers inside, None goes on from the current state.
    """
    buffers: dict[int, tuple[Tensor, int, Tensor]] = {}
    for module in modules_of(layer, args).values():
        buffers.update((id(b), (b, b._version, b.detach().clone())) for b in module.buffers())
    tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers.values():
                    if buffer._version != version:
                        buffer.copy_(value)
