"""Functions of a few steps compiled by torch, and whose they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.compiled.functions import decompositions

BACKEND = "inductor"


class CompileError(RuntimeError):
    """What the user gave cannot be compiled."""


class Traced(NamedTuple):
    """One call of what a function was compiled to.

    Attributes:
        graph: it, a function of tensors alone, those that the function reads from elsewhere among them.
        inputs: what it was given.
        outputs: what it gave.
    """

    graph: Callable[..., Sequence[Any]]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


class Fused:
    """A closure over a `plan`, compiled under a code object of its own.

    Dynamo keeps what it compiled by code object and checks before every call that all it was compiled for still holds.
    With a code object for each kernel it need not check the plan, which never changes: hundreds of numbers.

    Args:
        function: the closure; all that it takes for granted is its free variable `plan`.
        name: of the user's functions, for the message.
        differentiates: whether it asks for gradients itself, by `torch.autograd.grad`.
    """

    def __init__(self, function: Any, name: str, differentiates: bool = False):
        code: CodeType = function.__code__.replace(co_name=f"{function.__name__}_of_plan")
        own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
        self._fused = torch.compile(
            own, fullgraph=True, backend=self._compile, options={"guard_filter_fn": _keep_guards}
        )
        self._name, self._differentiates, self._last = name, differentiates, threading.local()

    def __call__(self, *inputs: Any) -> Any:
        """Calls it.

        Raises:
            CompileError: it cannot be compiled.
        """
        try:
            if not self._differentiates:
                return self._fused(*inputs)
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                return self._fused(*inputs)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise CompileError(
                    f"{self._name} cannot be compiled: {str(error).strip().splitlines()[0]}. Try compile=False, or see "
                    f"torch.compile({self._name}, fullgraph=True) for what it makes of {self._name} alone"
                ) from error
            raise

    def begin(self, inputs: Callable[..., tuple], *first: Tensor) -> tuple[tuple, Callable[..., tuple]]:
        """Calls it for the first time of many in a row, and gives what makes the others: straight, with no check.

        What was so before the first call is not looked at again before the others: that takes longer than small steps.

        Args:
            inputs: makes the inputs of tensors that differ from call to call, in shape, dtype and device alike.
            *first: these tensors.

        Returns:
            What it gives, a tuple of tensors and plain values, and a function of other such tensors that gives another.
        """
        self._last.traced = None
        try:
            found, traced = self(*inputs(*first)), self._last.traced
        finally:
            del self._last.traced  # which keeps tensors alive
        assert traced is not None
        which = {id(tensor): number for number, tensor in enumerate(first)}
        made = {id(each): number for number, each in enumerate(traced.outputs)}
        swaps = [(place, which[id(each)]) for place, each in enumerate(traced.inputs) if id(each) in which]
        places = [made.get(id(each)) for each in found]
        if any(place is None and isinstance(each, Tensor) for each, place in zip(found, places, strict=True)):
            return found, lambda *others: self(*inputs(*others))  # one of its inputs is given back

        def again(*others: Tensor) -> tuple:
            given = list(traced.inputs)
            for place, number in swaps:
                given[place] = others[number]
            outputs = traced.graph(*given)
            return tuple(each if k is None else outputs[k] for each, k in zip(found, places, strict=True))

        return found, again

    def _compile(self, module: Any, examples: list[Any]) -> Callable[..., Sequence[Any]]:
        """What dynamo calls for a graph that it has traced."""
        more = {"decompositions": decompositions()} if BACKEND == "inductor" else {}
        with graphs_that_stay():
            graph = torch._dynamo.lookup_backend(BACKEND)(module, examples, **more)

        def call(*inputs: Any) -> Sequence[Any]:
            outputs = graph(*inputs)
            if hasattr(self._last, "traced"):
                self._last.traced = Traced(graph, inputs, outputs)
            return outputs

        return call


def graphs_that_stay() -> AbstractContextManager[None]:
    """Kernels that are compiled, and graphs of them that are gone through, may be gone through again."""
    from torch._functorch import config  # not before something is compiled

    return config.patch(donated_buffer=False)


def _keep_guards(entries: Any) -> list[bool]:
    """All but those on the plan."""
    return [not entry.name.startswith("plan") for entry in entries]


def identity(function: Any) -> Any:
    """What stays the same between solves: the module, or a function's code, which a new closure shares.

    Of a partial function that is what it was made of: a layer makes one anew at every call.
    """
    if isinstance(function, partial):
        modules = [value for value in function.args if isinstance(value, torch.nn.Module)]
        return modules[0] if modules else identity(function.func)
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(function, torch.nn.Module):
        return owner
    return getattr(function, "__code__", function)
