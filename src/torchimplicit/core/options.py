"""Refusing impossible options, in one form of words."""

from __future__ import annotations


def require(config: object, name: str, holds: bool, expected: str) -> None:
    """Refuses an impossible option.

    Raises:
        ValueError: says which option of which class got what, and what was expected.
    """
    if not holds:
        raise ValueError(f"{type(config).__name__}({name}={getattr(config, name)!r}): expected {expected}")
