"""Functions of a few steps compiled by torch, and whose they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch

BACKEND = "inductor"


class CompileError(RuntimeError):
    """What the user gave cannot be compiled."""


def compiled(function: Any, name: str) -> Callable:
    """Compiles a closure over a `plan` under a code object of its own.

    Dynamo keeps what it compiled by code object and checks before every call that all it was compiled for still holds.
    With a code object for each kernel it need not check the plan, which never changes: hundreds of numbers.

    Args:
        function: the closure; all that it takes for granted is its free variable `plan`.
        name: of the user's functions, for the message.

    Returns:
        The function; it raises `CompileError` where it cannot be compiled.
    """
    code: CodeType = function.__code__.replace(co_name=f"{function.__name__}_of_plan")
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    fused = torch.compile(own, fullgraph=True, backend=BACKEND, options={"guard_filter_fn": _keep_guards})

    def call(*inputs: Any) -> Any:
        try:
            return fused(*inputs)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise CompileError(
                    f"{name} cannot be compiled: {str(error).strip().splitlines()[0]}. Try compile=False, or see "
                    f"torch.compile({name}, fullgraph=True) for what it makes of {name} alone"
                ) from error
            raise

    return call


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
