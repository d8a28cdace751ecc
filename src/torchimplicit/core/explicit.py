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
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.references import exchanged
from torchimplicit.core.stand_in import Family, is_stand_in
from torchimplicit.core.status import CaptureError


class _Thread(threading.local):
    """What is going on in a thread."""

    evaluating = False
    audited: Sequence[Tensor] | None = None


_thread = _Thread()


@dataclass(frozen=True)
class Bound:
    """A function of the state alone, its other arguments given.

    Attributes:
        f: the function, of stand-ins for its modules.
        args: its further arguments.
        audited: the explicit tensors, beside which captured ones are looked for; None does not look.
    """

    f: Callable
    args: tuple
    audited: Sequence[Tensor] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """`f(z, *args)`; or of more than the state, `f(t, y, *args)`."""
        outer = _thread.evaluating, _thread.audited
        try:
            _thread.evaluating, _thread.audited = True, self.audited
            if self.audited is None:
                return self.f(*inputs, *self.args)
            value = transforms.recording(self.f, *inputs, *self.args)
        finally:
            _thread.evaluating, _thread.audited = outer
        if transforms.active() or _has_graph(value):
            check_captures(self.f, value, [*_tensors_in(inputs), *self.audited])
        return value

    def take(self, rows: Tensor, batched: Sequence[int]) -> Bound:
        """The function of some samples' states: of the arguments at these positions, the samples' rows.

        Modules with a method `take(rows)`, the function among them, say themselves what they are for some samples.
        """
        args = list(self.args)
        for i in batched:
            args[i] = pytree.tree_map(partial(_taken, rows), args[i])
        return Bound(_taken(rows, self.f), tuple(args), self.audited)


def _taken(rows: Tensor, value: Any) -> Any:
    """What a value is for some of the samples."""
    if isinstance(value, Tensor):
        return value[rows]
    take: Any = getattr(type(value), "take", None) if isinstance(value, nn.Module) else None
    return value if take is None else take(value, rows)


def _tensors_in(value: Any) -> Sequence[Tensor]:
    """The tensors of a nested value; without a walk through the most frequent kinds."""
    if isinstance(value, Tensor):
        return (value,)
    if type(value) is tuple and all(isinstance(each, Tensor) for each in value):
        return value
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _has_graph(value: Any) -> bool:
    """Whether a graph leads to some tensor of a value."""
    if isinstance(value, Tensor):
        return value.requires_grad
    if type(value) is tuple:  # the most frequent kind
        return any(map(_has_graph, value))
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value))


def audited() -> Sequence[Tensor] | None:
    """The explicit tensors of an evaluation that shall show captured ones; None where this thread is within no such.

    A graph that such a function makes and uses up inside must be looked at there: `check_captures`.
    """
    return _thread.audited


def evaluating() -> bool:
    """Whether this thread is within the function of a solve."""
    return _thread.evaluating


def is_captured(module: nn.Module) -> bool:
    """Whether a solve that was not given this module is evaluating its function, which uses it."""
    return evaluating() and not is_stand_in(module)


class Explicit:
    """A function `f(z, *args)` whose tensors can be taken out and put back.

    Holds no tensor of its own: `tensors` are handed to the caller once, and `bind` makes the function of them (or of
    others like them: detached, saved for backward, inside a `torch.func` transform), once a solve and not once a step.

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
        modules = [*modules_behind(f), *(leaf for leaf in leaves if isinstance(leaf, nn.Module))]
        self.family = Family(modules, begins and not evaluating())
        self.referring = [i for i, leaf in enumerate(self.leaves) if self.family.is_in(leaf)]
        self.shared = len(self.family.slots)  # the first tensors belong to modules: they carry no batch dimension
        self._found = self.family.take_tensors() + [leaves[i] for i in self.places]

    def take_tensors(self) -> list[Tensor]:
        """The explicit tensors, module tensors first; can be taken once, so that no graph is kept alive here."""
        found, self._found = self._found, []
        return found

    @contextmanager
    def bind(
        self,
        tensors: list[Tensor] | tuple[Tensor, ...],
        keep_buffers: bool = False,
        audit: bool = False,
    ) -> Iterator[Bound]:
        """The function of the state alone, `z -> f(z, *args)`, with `tensors` in the places of the explicit ones.

        Stand-ins take the places of its modules. What it writes to their attributes the modules have afterwards.

        Args:
            tensors: in the order of `take_tensors`.
            keep_buffers: also new tensors that the function puts into buffers, as a forward pass shall.
            audit: refuse captured tensors, see `check_captures`; the `tensors` are detached. Costs next to nothing:
                every evaluation runs with grad enabled, and records a graph only where a captured tensor is there.
        """
        cast = self.family.cast(tensors)
        leaves = list(self.leaves)
        for place in self.referring:
            leaves[place] = exchanged(leaves[place], cast.copies)
        for place, tensor in zip(self.places, tensors[self.shared :], strict=True):
            leaves[place] = tensor
        try:
            f = exchanged(self.f, cast.copies) if cast.copies else self.f
            yield Bound(f, pytree.tree_unflatten(leaves, self.spec), tensors if audit else None)
        except GeneratorExit:  # of an interrupted solve, which somebody forgets only now: the modules have moved on
            raise
        except BaseException:
            cast.hand_back(keep_buffers)
            raise
        cast.hand_back(keep_buffers)


def is_module_class(f: Any) -> bool:
    """Whether the class of a module stands where a module should: it can be called, too."""
    return isinstance(f, type) and issubclass(f, nn.Module)


def words_of(f: Any) -> str:
    """What something is that is no function, for messages."""
    return (
        f"the class {f.__name__}, whose instance {f.__name__}(...) is one"
        if is_module_class(f)
        else f"a {type(f).__name__}"
    )


def modules_behind(f: Any) -> list[nn.Module]:
    """The modules behind a function: itself, its method's owner; for a partial one also those of its arguments."""
    if isinstance(f, partial):
        return [module for part in (f.func, *f.args, *f.keywords.values()) for module in modules_behind(part)]
    owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    return [owner] if isinstance(owner, nn.Module) else []


def check_captures(f: Callable, value: Any, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
    """Refuses a value whose graph leads to a tensor that is not explicit.

    Args:
        f: the user's function, searched for the captured tensor's name.
        value: what it returned under `enable_grad`.
        tensors: stand-ins for the explicit tensors, and the state: leaves or detached, on purpose, or where the search
            ends.

    Raises:
        CaptureError: names the captured tensors' shapes, their names where found, and the fix.
    """
    leaves, transformed = _tensors_in(value), transforms.active()
    level = max(map(transforms.level, tensors), default=-1) if transformed else -1
    allowed, ends = {id(tensor) for tensor in tensors}, {tensor.grad_fn for tensor in tensors}
    captured = [tensor for leaf in leaves for tensor in _graph_leaves(leaf, ends) if id(tensor) not in allowed]
    if captured or (transformed and any(transforms.level(leaf) > level for leaf in leaves)):
        shapes = sorted({tuple(tensor.shape) for tensor in captured})
        several = "tensors of shapes" if len(shapes) > 1 else "a tensor of shape"
        what = f"{several} {', '.join(map(str, shapes))}" if shapes else "a tensor"
        raise CaptureError(
            f"the function depends on {what} requiring grad, neither an argument nor a parameter of the module"
            f"{_culprits(f)}. The gradient would be lost. Pass tensors as arguments, f(z, *args); pass a "
            "module itself (not a lambda around it), or hand the module over among the arguments and take it from "
            "there; use .detach() for what shall get no gradient."
        )


def _graph_leaves(value: Tensor, ends: set[Any]) -> list[Tensor]:
    """The leaf tensors of the graph behind a value, as far as some nodes of it."""
    found: list[Any] = [value] if value.is_leaf and value.requires_grad else []
    todo, seen = [value.grad_fn], {None, *ends}
    while todo:
        node: Any = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        todo.extend([other for other, _ in node.next_functions])
    return found


def _culprits(f: Callable) -> str:
    """Names of captured tensors and modules, as far as the function's closure and globals tell."""
    parts = [_captured(part) for part in ((f.func, *f.args) if isinstance(f, partial) else (f,))]
    names = [name for part in parts for name in part]
    return f" (it captures {', '.join(names)})" if names else ""


def _captured(f: Any) -> list[str]:
    function = inspect.unwrap(getattr(f, "__func__", f))
    if isinstance(function, nn.Module) or not inspect.isfunction(function):
        return []
    captured = inspect.getclosurevars(function)
    names = []
    for name, value in {**captured.globals, **captured.nonlocals}.items():
        if isinstance(value, Tensor) and value.requires_grad:
            names.append(f"tensor '{name}'")
        elif isinstance(value, nn.Module) or isinstance(getattr(value, "__self__", None), nn.Module):
            names.append(f"module '{name}'")
    return names
