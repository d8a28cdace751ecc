"""A drift and a diffusion as one function, whose tensors are found in both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torchimplicit.core.explicit import is_module_class, words_of


def equation(drift: Callable, diffusion: Callable, prior: Callable | None = None) -> partial:
    """A stochastic differential equation as a function of time, state and further arguments; `partial.args`: its parts.

    Args:
        drift: `drift(t, y, *args)`.
        diffusion: `diffusion(t, y, *args)`.
        prior: `prior(t, y, *args)`, the drift of another process with this diffusion; None for none.

    Raises:
        TypeError: one of them cannot be called.
    """
    parts = {"drift": drift, "diffusion": diffusion} | ({} if prior is None else {"prior": prior})
    for name, part in parts.items():
        if not callable(part) or is_module_class(part):
            alone = "; try its drift alone, the diffusion being the same" if name == "prior" else ""
            raise TypeError(f"{name}: got {words_of(part)}, expected a callable {name}(t, y, *args){alone}")
    return partial(_both if prior is None else _all, *parts.values())


def _both(drift: Callable, diffusion: Callable, t: Any, y: Any, *args: Any) -> tuple[Any, Any]:
    return drift(t, y, *args), diffusion(t, y, *args)


def _all(drift: Callable, diffusion: Callable, prior: Callable, t: Any, y: Any, *args: Any) -> tuple[Any, Any, Any]:
    return drift(t, y, *args), diffusion(t, y, *args), prior(t, y, *args)
