"""Refusing impossible options, in one form of words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def require(config: object, name: str, holds: bool, expected: str) -> None:
    """Refuses an impossible option.

    Raises:
        ValueError: says which option of which class got what, and what was expected.
    """
    if not holds:
        raise ValueError(f"{type(config).__name__}({name}={getattr(config, name)!r}): expected {expected}")


def require_count(owner: object, *names: str, least: int = 1, **given: Any) -> None:
    """Refuses what cannot be counted to: other things than integers, and smaller ones than `least`.

    Args:
        owner: an object with options; or the name of a function.
        *names: options of the object.
        least: the smallest that is possible.
        **given: arguments of the function, by name.

    Raises:
        ValueError: says which option of which class or function got what, and what was expected.
    """
    caller = owner if isinstance(owner, str) else type(owner).__name__
    for name, value in ({name: getattr(owner, name) for name in names} | given).items():
        if not is_count(value, least):
            raise ValueError(f"{caller}({name}={value!r}): expected an integer >= {least}")


def is_count(value: Any, least: int = 1) -> bool:
    """Whether something is an integer that is large enough. True counts nothing, though Python takes it for 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether something is a plain number, so that it can be compared. True is none, though Python takes it for 1."""
    return isinstance(value, float | int) and not isinstance(value, bool)


def require_dtype(name: str, value: Tensor, module: nn.Module) -> None:
    """Refuses numbers in another of the two precisions of whole models than a module's weights have.

    Half precision passes: casts to it are autocast's, or a module's own.

    Raises:
        TypeError: float64 for weights of float32, or the other way round.
    """
    weights = next((each.dtype for each in module.parameters() if each.is_floating_point()), value.dtype)
    whole = {torch.float32, torch.float64}
    if value.dtype != weights and {value.dtype, weights} <= whole and not torch.is_autocast_enabled(value.device.type):
        raise TypeError(
            f"{name}: got {value.dtype}, expected {weights}, as the weights of {type(module).__name__}; try "
            f".to({weights}) on what is given, or .to({value.dtype}) on the model"
        )


def require_instance(name: str, value: Any, expected: type, usual: str) -> None:
    """Refuses what is of another kind; a class in place of its instance gets its parentheses.

    Args:
        name: the argument.
        value: what it got.
        expected: the class of what it may be.
        usual: what to try, in code.

    Raises:
        TypeError: says which argument got what, what was expected and what to try.
    """
    if not isinstance(value, expected):
        hint = f"{value.__name__}()" if isinstance(value, type) else _of_that_name(value, expected) or usual
        raise TypeError(f"{name}: got {value!r}, expected an instance of {expected.__name__}; try {hint}")


def check_on_failure(on_failure: Any, *more: str) -> None:
    """Refuses any word but those of `on_failure`.

    Args:
        on_failure: what was given.
        *more: words beside the three that every function knows.

    Raises:
        ValueError: says what was got and what was expected.
    """
    words = ("raise", "warn", "ignore", *more)
    if on_failure not in words:
        *others, last = map(repr, words)
        raise ValueError(f"on_failure: got {on_failure!r}, expected {', '.join(others)} or {last}")


def _of_that_name(value: Any, expected: type) -> str | None:
    """The subclass that a word means, in code: `Dopri5()` for "dopri5"."""
    kinds = [expected]
    for kind in kinds:
        kinds += kind.__subclasses__()
    word = value.replace("_", "").lower() if isinstance(value, str) else None
    ours = (kind.__name__ for kind in kinds if kind.__module__.startswith("torchimplicit."))
    return next((f"{name}()" for name in ours if name.lower() == word), None)
