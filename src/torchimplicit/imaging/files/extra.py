"""The packages that files need, imported when a file is read."""

from importlib import import_module
from typing import Any


def needed(name: str, what: str) -> Any:
    """A package by its name.

    Args:
        name: of the package.
        what: needs it, for the error.

    Raises:
        ImportError: it is not installed; names the extra that brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{what} need {name.partition('.')[0]}, which is not installed; try: pip install 'torchimplicit[imaging]'"
        ) from error
