"""When compiling is worth its while: what `compile="auto"` goes by."""

from __future__ import annotations

import math
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torchimplicit.core.compiled.kernel import identity

Compile = bool | Literal["auto"]

WORTH = 20.0  # seconds spent without kernels, about what compiling takes: so it never doubles the time
SMALL = 2**13  # numbers in a state up to which "auto" compiles; larger ones are not limited by the host

_seconds: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # spent on solves without a kernel; infinite: never again


def check_word(compile: Any) -> None:
    """Refuses another word.

    Raises:
        ValueError: neither a bool nor "auto".
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile: got {compile!r}, expected False, True or 'auto'")


def pays(f: Any) -> bool:
    """Whether so much time was spent on solves of a function without kernels that compiling it pays."""
    return WORTH <= _seconds.get(identity(f), 0.0) < math.inf


def spend(f: Any, seconds: float) -> None:
    """Notes time that was spent on a function without kernels; an infinite one, that it cannot be compiled."""
    _seconds[identity(f)] = _seconds.get(identity(f), 0.0) + seconds
