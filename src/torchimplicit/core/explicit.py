"""Modules and closures made explicit: every tensor that a function depends on becomes an argument.

Implicit differentiation needs to know what the solution depends on. Arguments and the parameters and buffers of a
module are found here; a captured tensor that requires grad cannot be found and is refused (`check_captures`), for its
gradient would be missing or, at second order, silently wrong.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.status import CaptureError


@dataclass(frozen=True)
class Bound:
    """A function of the state alone, its other arguments given."""

    f: Callable
    args: tuple

    def __call__(self, z: Any) -> Any:
        """`f(z, *args)`."""
        return self.f(z, *self.args)

    def take(self, rows: Tensor, batched: Sequence[int]) -> Bound:
        """The function of some samples' states: of the arguments at these positions, the samples' rows."""
        args = list(self.args)
        for i in batched:
            args[i] = pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, args[i])
        return Bound(self.f, tuple(args))


_thread = threading.local()  # `_thread.bound`: see `_bound_now`

Slot = tuple[Any, Any]  # (container, key): a place that a tensor can be swapped into


class Explicit:
    """A function `f(z, *args)` whose tensors can be taken out and put back.

    Holds no tensor of its own: `tensors` are handed to the caller once, and `bind` takes them (or stand-ins of them:
    detached, saved for backward, inside a `torch.func` transform) and puts them back in for as long as the context
    lasts, so that a solve swaps once and not once a step.

    Args:
        f: a callable; when it is an `nn.Module`, or a bound method or a partial of one, the module's parameters and
            buffers are explicit.
        args: further arguments, nested; tensors among them, and the parameters of modules among them, are explicit.
        begins: whether this is a new solve: modules with a method `begin_solve` are told. Not within another solve,
            whose function would be another one at every evaluation.
    """

    def __init__(self, f: Callable, args: tuple, begins: bool = True):
        """Finds the modules and the places of their tensors."""
        self.f = f
        leaves, self.spec = pytree.tree_flatten(args)
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        modules = [*_modules_behind(f), *(leaf for leaf in leaves if isinstance(leaf, nn.Module))]
        self.slots, self.cached, weights = _module_tensors(modules, begins and _bound_now() is None)
        self.containers = frozenset(id(container) for places in self.slots for container, _ in places)
        self.shared = len(weights)  # the first tensors belong to modules: they carry no batch dimension
        self._found = weights + [leaves[i] for i in self.places]

    def take_tensors(self) -> list[Tensor]:
        """The explicit tensors, module tensors first; can be taken once, so that no graph is kept alive here."""
        found, self._found = self._found, []
        return found

    @contextmanager
    def bind(self, tensors: list[Tensor] | tuple[Tensor, ...], keep_buffers: bool = False) -> Iterator[Bound]:
        """The function of the state alone, `z -> f(z, *args)`, with `tensors` in the places of the explicit ones.

        Args:
            tensors: in the order of `take_tensors`.
            keep_buffers: leave new tensors that the function puts into buffers there, as a forward pass shall.
        """
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors[self.shared :], strict=True):
            leaves[place] = tensor
        args = pytree.tree_unflatten(leaves, self.spec)
        with (
            _swapped(self.slots, tensors, keep_buffers),
            _parametrized(self.cached, tensors[len(self.slots) : self.shared]),
            _under_way(self.containers),
        ):
            yield Bound(self.f, args)


def _modules_behind(f: Any) -> list[nn.Module]:
    """The modules that a function is, or is a method of; of a partial one also those behind what it is given."""
    if isinstance(f, partial):
        return [module for part in (f.func, *f.args, *f.keywords.values()) for module in _modules_behind(part)]
    owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    return [owner] if isinstance(owner, nn.Module) else []


@contextmanager
def _under_way(containers: frozenset[int]) -> Iterator[None]:
    held = _bound_now()
    _thread.bound = containers | (held or frozenset())
    try:
        yield
    finally:
        _thread.bound = held


def _bound_now() -> frozenset[int] | None:
    """The containers that the solves under way have put tensors into; None outside of any solve."""
    return getattr(_thread, "bound", None)


def is_captured(module: nn.Module) -> bool:
    """Whether a solve is under way that was not given this module, which has a buffer, but uses it."""
    bound = _bound_now()
    return bound is not None and id(module._buffers) not in bound


def _module_tensors(
    modules: list[nn.Module], begins: bool
) -> tuple[list[list[Slot]], list[tuple[nn.Module, str]], list[Tensor]]:
    """Places of parameters and buffers, the parametrised weights, and the tensors of both in that order."""
    places: dict[int, list[Slot]] = {}
    tensors: dict[int, Tensor] = {}
    cached: list[tuple[nn.Module, str]] = []
    todo, seen = list(reversed(modules)), set()
    while todo:
        module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        begin = getattr(module, "begin_solve", None)
        if begins and callable(begin):  # what is random within a solve is drawn now, once
            begin()
        for home, key, tensor in _own_tensors(module):
            places.setdefault(id(tensor), []).append((home, key))
            tensors[id(tensor)] = tensor
        parametrized = parametrize.is_parametrized(module)
        if parametrized:
            cached.extend((module, name) for name in module.parametrizations)  # type: ignore[union-attr]
        children = [child for name, child in module.named_children() if not parametrized or name != "parametrizations"]
        todo.extend(reversed(children))
    # A parametrised weight is computed here, once a solve, outside of the solve: its graph leads to the originals, and
    # forward and backward use the very same weight (the power iteration of a spectral norm advances once).
    weights = [getattr(module, name) for module, name in cached]
    return list(places.values()), cached, [*tensors.values(), *weights]


def _own_tensors(module: nn.Module) -> Iterator[tuple[Any, Any, Tensor]]:
    """Container, key and tensor of every parameter and buffer of a module itself."""
    for container in (module._parameters, module._buffers):
        for name, tensor in container.items():
            if tensor is not None and is_lazy(tensor):
                raise ValueError(
                    f"{type(module).__name__}.{name} is not initialised yet; try calling the module once, as cell(z, x)"
                )
            if isinstance(tensor, Tensor):
                yield container, name, tensor
    flat_weights = getattr(module, "_flat_weights", None) or ()  # recurrent layers keep a second list of their weights
    for index, tensor in enumerate(flat_weights):
        if isinstance(tensor, Tensor):
            yield flat_weights, index, tensor


@contextmanager
def _swapped(slots: list[list[Slot]], tensors: list[Tensor] | tuple[Tensor, ...], keep_buffers: bool) -> Iterator[None]:
    held = [places[0][0][places[0][1]] for places in slots]
    try:
        for places, tensor in zip(slots, tensors, strict=False):
            for container, key in places:
                container[key] = tensor
        yield
    finally:
        for places, tensor, own in zip(slots, tensors, held, strict=False):
            for container, key in places:
                replaced = container[key] is not tensor and not own.requires_grad
                if not (replaced and keep_buffers):
                    container[key] = own


@contextmanager
def _parametrized(cached: list[tuple[nn.Module, str]], weights: list[Tensor] | tuple[Tensor, ...]) -> Iterator[None]:
    """Lets parametrised modules read these weights instead of computing their own.

    Done on each module's own list of parametrisations: torch's cache goes by the module that was parametrised first, so
    that a deep copy would read its original's weight. It is off meanwhile, for a surrounding `cached()` of the user.
    """
    if not cached:
        yield
        return
    lists: list[dict[str, Any]] = [module.parametrizations[name].__dict__ for module, name in cached]  # type: ignore[index,union-attr]
    held = [attributes.get("forward") for attributes in lists]
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        for attributes, weight in zip(lists, weights, strict=True):
            attributes["forward"] = partial(_itself, weight)
        yield
    finally:
        parametrize._cache_enabled = enabled
        for attributes, forward in zip(lists, held, strict=True):
            if forward is None:
                del attributes["forward"]
            else:
                attributes["forward"] = forward


def _itself(weight: Tensor) -> Tensor:
    return weight


def check_captures(f: Callable, value: Any, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
    """Refuses a value whose graph leads to a tensor that is not explicit.

    Args:
        f: the user's function, searched for the captured tensor's name.
        value: what it returned under `enable_grad`.
        tensors: stand-ins for the explicit tensors, and the state: leaves or detached, on purpose.

    Raises:
        CaptureError: names the captured tensors' shapes, their names where found, and the fix.
    """
    leaves = pytree.tree_leaves(value)
    level = max((transforms.level(tensor) for tensor in tensors), default=-1)
    allowed = {id(tensor) for tensor in tensors}
    captured = [tensor for leaf in leaves for tensor in _graph_leaves(leaf) if id(tensor) not in allowed]
    if captured or any(transforms.level(leaf) > level for leaf in leaves):
        shapes = sorted({tuple(tensor.shape) for tensor in captured})
        several = "tensors of shapes" if len(shapes) > 1 else "a tensor of shape"
        what = f"{several} {', '.join(map(str, shapes))}" if shapes else "a tensor"
        raise CaptureError(
            f"the function depends on {what} requiring grad, neither an argument nor a parameter of the module"
            f"{_culprits(f)}. The gradient would be lost. Pass tensors as arguments, f(z, *args); pass a "
            "module itself (not a lambda around it), or hand the module over among the arguments; use .detach() for "
            "what shall get no gradient."
        )


def _graph_leaves(value: Tensor) -> list[Tensor]:
    """The leaf tensors of the graph behind a value."""
    found, todo, seen = [], [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.append(variable)
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found


def _culprits(f: Callable) -> str:
    """Names of captured tensors and modules, as far as the function's closure and globals tell."""
    function = inspect.unwrap(getattr(f, "__func__", f))
    if isinstance(function, nn.Module) or not inspect.isfunction(function):
        return ""
    captured = inspect.getclosurevars(function)
    names = []
    for name, value in {**captured.globals, **captured.nonlocals}.items():
        if isinstance(value, Tensor) and value.requires_grad:
            names.append(f"tensor '{name}'")
        elif isinstance(value, nn.Module) or isinstance(getattr(value, "__self__", None), nn.Module):
            names.append(f"module '{name}'")
    return f" (it captures {', '.join(names)})" if names else ""
