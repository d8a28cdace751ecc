"""What stands around a solve: compilers and exporters of whole models, to which it is one call and no graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch

from torchimplicit.core.migration import explain

# What torch.compiler.disable does, which would import the compiler: more than a second at every start.
_compiler: Any = torch._C._dynamo.eval_frame  # pyright: ignore[reportAttributeAccessIssue]
_SKIP = _compiler._FrameAction.SKIP  # a call's own frame, and those of all that it calls

P = ParamSpec("P")
R = TypeVar("R")
REASON = (
    "torchimplicit looks at the values after every step, which is no graph of known operations. Try torch.compile "
    "without fullgraph=True: it compiles what is around and calls this as it is. torch.compile(cell) compiles what is "
    "inside. torch.export can take the parts before and after"
)


def public(function: Callable[P, R]) -> Callable[P, R]:
    """A function that solves, as a call that `torch.compile` leaves out of its graphs, and that exporters refuse.

    Raises:
        NotImplementedError: in `torch.export`, `torch.jit.trace` and `torch.jit.script`, which would keep the steps of
            one example. (`torch.compile(fullgraph=True)` raises its own error, with `REASON` in it.)
    """
    name = function.__qualname__

    @wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> R:
        tracing = torch._C._is_tracing()
        if tracing or torch.compiler.is_exporting():
            who = type(args[0]).__name__ if "." in name else name  # of a method, the layer
            _refuse(who, "torch.jit.trace" if tracing else "torch.export")
        try:
            return function(*args, **kwargs)
        except TypeError:
            explain(name.rpartition(".")[2], function, args, kwargs)
            raise

    marks: Any = enter
    marks._torchdynamo_disable, marks._torchdynamo_disable_msg = True, REASON
    _compiler.set_code_exec_strategy(marks.__code__, _compiler._FrameExecStrategy(_SKIP, _SKIP))
    marks.__prepare_scriptable__ = partial(_refuse, name, "torch.jit.script")
    return enter


def refuse_scripting(module: Any) -> NoReturn:
    """The `__prepare_scriptable__` of a layer that solves, which `torch.jit.script` asks for.

    Raises:
        NotImplementedError: always.
    """
    _refuse(type(module).__name__, "torch.jit.script")


def _refuse(name: str, exporter: str) -> NoReturn:
    raise NotImplementedError(
        f"{name} cannot be part of what {exporter} records: how many steps it takes depends on the values. Try to "
        f"give {exporter} the parts before and after it, or to deploy the model as its code and its state_dict"
    )
