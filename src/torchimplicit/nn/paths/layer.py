"""What layers that integrate a field have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.explicit import is_module_class, words_of
from torchimplicit.core.options import is_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.ode import PathAdjoint, PathReport, PathSolver, odeint
from torchimplicit.path.options import Stepping


class PathLayer(ImplicitLayer):
    """Base of the layers that integrate: a subclass sets the adjoint and `on_failure`, and calls `integrate`.

    Attributes:
        report: how the last path was integrated; None before the first.
        penalties: the integrals of the last path, `(B,)` each, with their graphs.
    """

    adjoint: PathAdjoint
    on_failure: OnFailure
    report: PathReport | None
    penalties: tuple[Tensor, ...]

    def __init__(self):
        """Has integrated nothing yet."""
        super().__init__()
        self.penalties = ()

    def integrate(
        self,
        field: Callable,
        state: Any,
        ts: Tensor,
        args: tuple,
        solver: PathSolver,
        batched_args: Sequence[int] | None,
        stepping: Stepping = "per-sample",
        compile: Compile = False,
        jumps: Tensor | None = None,
    ) -> Any:
        """The states at all times, `(T, B, ...)`; keeps the report, of a solve that failed, too. See `odeint`."""
        options: dict[str, Any] = {
            "solver": solver,
            "adjoint": self.adjoint,
            "stepping": stepping,
            "batched_args": batched_args,
            "compile": compile,
            "jumps": jumps,
        }
        return self.solve(odeint, field, state, ts, *args, **options).value

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the graphs of the last integrals, which can be neither."""
        return {**self.__dict__, "penalties": tuple(integral.detach() for integral in self.penalties)}


def without_time(field: Callable, t: Tensor, y: Any, *args: Any) -> Any:
    """A field that does without the time, as one that is given it."""
    return field(y, *args)


def given(field: Callable, autonomous: bool, args: tuple) -> Callable[[Tensor, Any], Any]:
    """A field as a function of time and state alone."""
    return lambda t, y: field(y, *args) if autonomous else field(t, y, *args)


def only_tensor(y: Any) -> Tensor:
    """The state, where it must be one tensor.

    Raises:
        TypeError: it is a nest.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"the state is a {type(y).__name__}, expected one tensor here; try torch.cat of its parts")
    return y


def check_field(owner: str, field: Any, autonomous: bool, name: str = "field") -> None:
    """Refuses what cannot be called as a field.

    Raises:
        TypeError: not callable, or not with the time and the state, or with the state alone.
    """
    form = f"{name}(y, ...)" if autonomous else f"{name}(t, y, ...)"
    if not callable(field) or is_module_class(field):
        raise TypeError(f"{owner}({name}=...): got {words_of(field)}, expected a module or function {form}")
    try:
        signature = inspect.signature(field.forward if isinstance(field, nn.Module) else field)
    except (TypeError, ValueError):  # a builtin that does not say
        return
    try:
        signature.bind_partial(*(None,) * (1 if autonomous else 2))
    except TypeError:
        got = type(field).__name__ if isinstance(field, nn.Module) else getattr(field, "__name__", repr(field))
        hint = "" if autonomous else f"; try autonomous=True for a {name} of the state alone"
        raise TypeError(f"{owner}({name}={got}): takes {signature}, expected {form}{hint}") from None


def shape_of(owner: str, shape: Any) -> torch.Size:
    """The shape of one sample, from a width or a sequence of sizes.

    Raises:
        ValueError: sizes that are no integers above zero, or none.
    """
    sizes: Any = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes or not all(is_count(size) for size in sizes):
        raise ValueError(f"{owner}(shape={shape!r}): expected the shape of one sample, such as 2 or (1, 28, 28)")
    return torch.Size(sizes)


def keep_times(module: nn.Module, ts: Any) -> None:
    """Keeps times as a buffer of a module, or as its parameter.

    Raises:
        ValueError: they are no times.
    """
    times = ts if isinstance(ts, Tensor) else torch.as_tensor(ts, dtype=torch.get_default_dtype())
    gaps = times.detach().diff(dim=0)
    monotone = times.dim() == 1 and len(times) > 1 and bool((gaps > 0).all() or (gaps < 0).all())
    if not (times.is_floating_point() and monotone and bool(times.detach().isfinite().all())):
        raise ValueError(
            f"{type(module).__name__}(ts={ts}): expected at least two finite times, shaped (T,), strictly increasing "
            "or strictly decreasing; try (0.0, 1.0)"
        )
    if isinstance(times, nn.Parameter):
        module.ts = times
    else:
        module.register_buffer("ts", times, persistent=False)
