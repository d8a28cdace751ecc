"""A drift and a diffusion as one function, whose tensors are found in both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def equation(drift: Callable, diffusion: Callable) -> partial:
    """A stochastic differential equation as a function of time, state and further arguments: `partial.args` are both.

    Args:
        drift: `drift(t, y, *args)`.
        diffusion: `diffusion(t, y, *args)`.

    Raises:
        TypeError: one of them cannot be called.
    """
    for name, part in (("drift", drift), ("diffusion", diffusion)):
        if not callable(part):
            raise TypeError(f"{name}: got a {type(part).__name__}, expected a callable {name}(t, y, *args)")
    return partial(_both, drift, diffusion)


def _both(drift: Callable, diffusion: Callable, t: Any, y: Any, *args: Any) -> tuple[Any, Any]:
    return drift(t, y, *args), diffusion(t, y, *args)
