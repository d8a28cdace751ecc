"""Looking at a layer without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchimplicit.core.problem import FixedPoint
from torchimplicit.linear import Jacobian
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
    if any(isinstance(leaf, Tensor) and leaf.dim() and not len(leaf) for leaf in pytree.tree_leaves(args[:1])):
        raise ValueError("x: got an empty batch, expected at least one sample to look at")
    buffers: dict[int, tuple[Tensor, int, Tensor]] = {}
    homes: list[tuple[dict, dict]] = []  # for those that are replaced rather than written to
    for module in modules_of(layer, args).values():
        buffers.update((id(b), (b, b._version, b.detach().clone())) for b in module.buffers())
        homes += [(part._buffers, dict(part._buffers)) for part in module.modules()]
    tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            for home, held in homes:
                home.update(held)
            with torch.no_grad():
                for buffer, version, value in buffers.values():
                    if buffer._version != version:
                        buffer.copy_(value)


@contextmanager
def linearised(layer: DEQ, value: Any, x: Any, args: tuple) -> Iterator[tuple[Jacobian, Tensor]]:
    """The Jacobian of the residual `z - cell(z, x)` at a state, and that state as a matrix `(B, n)`."""
    problem = FixedPoint(layer.cell, value, (x, *args), begins=False)
    z = problem.layout.flatten(value)
    # Copies: what the cell writes to its buffers must not reach the graph that the products are taken from.
    tensors = [tensor.detach().clone() for tensor in problem.explicit.take_tensors()]
    with torch.no_grad(), problem.bind(tensors) as residual:
        yield Jacobian(residual, z, differences=True), z


def requiring_grad(leaf: Any) -> Any:
    """A floating or complex tensor as a leaf that requires grad; another cut from its graph; anything else as it is."""
    leaf = leaf.detach() if isinstance(leaf, Tensor) else leaf
    if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return leaf.requires_grad_()
    return leaf


def differentiated(layer: DEQ, x: Any, args: tuple) -> dict[str, Tensor]:
    """What a layer is differentiated by: parameters and inputs that require grad, by name, each once."""
    named: list[tuple[str, Any]] = []
    for prefix, module in modules_of(layer, (x, *args)).items():
        named += module.named_parameters(prefix)
    for name, value in [("x", x), *((f"args[{i}]", arg) for i, arg in enumerate(args))]:
        paths = pytree.tree_flatten_with_path(value)[0]
        named += [(name + pytree.keystr(path), leaf) for path, leaf in paths]
    found: dict[int, tuple[str, Tensor]] = {}
    for name, leaf in named:
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            found.setdefault(id(leaf), (name, leaf))
    return dict(found.values())


def relative_error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Euclidean norm of the difference over that of what is expected; zero when both are zero."""
    gap = sum(float((a - b).abs().square().sum()) for a, b in zip(got, expected, strict=True)) ** 0.5
    size = sum(float(b.abs().square().sum()) for b in expected) ** 0.5
    return gap / size if size > 0 else (0.0 if gap == 0 else torch.inf)
