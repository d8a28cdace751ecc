"""References to modules, in what Python code keeps them in: containers, methods, partial functions, closures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

LONGEST = 100  # longer containers hold data: they are not searched for modules
DEEPEST = 4  # containers within containers, likewise

_SEQUENCES = frozenset({list, tuple})
_MAPPINGS = frozenset({dict, OrderedDict})
SEARCHED = _SEQUENCES | _MAPPINGS | {FunctionType, MethodType, partial}  # kinds of values that may hold modules


def exchanged(value: Any, table: Mapping[int, Any], depth: int = DEEPEST) -> Any:
    """A value with other modules in the places of those that it refers to; the value itself where there are none.

    Args:
        value: anything. Lists, tuples, dictionaries, methods, partial functions and what functions capture are
            searched; other objects are not.
        table: what is put in the place of a module, by its `id`.
        depth: how many containers within each other are searched.
    """
    if isinstance(value, nn.Module):
        return table.get(id(value), value)
    kind = type(value)
    if depth == 0 or kind not in SEARCHED:
        return value
    if kind in _SEQUENCES:
        return kind(new) if (new := _each(value, table, depth)) is not None else value
    if kind in _MAPPINGS:
        return kind(zip(value, new, strict=True)) if (new := _each(value.values(), table, depth)) is not None else value
    if kind is MethodType:
        owner = exchanged(value.__self__, table, depth - 1)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if kind is partial:
        parts = (value.func, value.args, value.keywords)
        f, args, keywords = (exchanged(part, table, depth - 1) for part in parts)
        return value if f is parts[0] and args is parts[1] and keywords is parts[2] else partial(f, *args, **keywords)
    return _exchanged_function(value, table, depth)


def _each(values: Any, table: Mapping[int, Any], depth: int) -> list[Any] | None:
    """The values with other modules; None where there are none in them."""
    if len(values) > LONGEST:
        return None
    old = list(values)
    new = [exchanged(value, table, depth - 1) for value in old]
    return None if all(a is b for a, b in zip(old, new, strict=True)) else new


def _exchanged_function(function: FunctionType, table: Mapping[int, Any], depth: int) -> FunctionType:
    """A function that captures other modules; it shares all other captured variables with the first."""
    cells = function.__closure__ or ()
    new = [_exchanged_cell(cell, table, depth) for cell in cells]
    if all(a is b for a, b in zip(cells, new, strict=True)):
        return function
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(new))
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _exchanged_cell(cell: CellType, table: Mapping[int, Any], depth: int) -> CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # not bound yet
        return cell
    new = exchanged(value, table, depth - 1)
    return cell if new is value else CellType(new)
