"""Failures that are warned of without a flood: the first, the tenth, the hundredth, each with what became of the rest.

Python's own filter, once for a place, cannot do it: every message has other numbers. So whoever solves again and again
counts, a layer for itself and a function for each line that calls it. The first failure forward and the first backward
are told in any case.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

RECENT = 50  # solves whose share of failures is told
_OURS = tuple(f"{Path(module.__file__).parent}/" for module in (torch, sys.modules[__package__.partition(".")[0]]))  # type: ignore[arg-type]
_lock = threading.Lock()


class Count:
    """Solves of one kind, and which of them failed."""

    def __init__(self):
        """None so far."""
        self.solves, self.failures = 0, 0
        self.recent: deque[bool] = deque(maxlen=RECENT)

    def add(self, failed: bool) -> None:
        """Counts a solve."""
        self.solves += 1
        self.failures += failed
        self.recent.append(failed)

    def tell(self, kind: str) -> str:
        """How often it has failed, in a sentence."""
        last = len(self.recent)
        return (
            f"Failure {self.failures} of {self.solves} {kind} solves; {100 * sum(self.recent) / last:.0f} % of the "
            f"last {last} failed."
        )


class Failures:
    """The failures of one layer, or of one line of the user's.

    Args:
        owner: whose they are, in words; "" for a line.
        advice: what to do about them, beyond the remedies of each status.
    """

    def __init__(self, owner: str = "", advice: str = ""):
        """Has seen no solve."""
        self.owner, self.advice = owner, advice
        self.counts = {"forward": Count(), "backward": Count()}

    @property
    def total(self) -> int:
        """Failures of either kind."""
        return sum(count.failures for count in self.counts.values())

    def add(self, kind: str, failed: bool) -> str:
        """Counts a solve; what to say of its failure, if it is one to speak of, in a line.

        That is the first of its kind, and the tenth, the hundredth, ... of both kinds together: what fails forward
        mostly fails backward as well, and would be told twice.
        """
        with _lock:  # one for all, so that what is counted can be copied and pickled
            count = self.counts[kind]
            count.add(failed)
            total = str(self.total)
            if not failed or not (count.failures == 1 or total.strip("0") == "1"):
                return ""
            return f"{count.tell(kind)} The next warning comes by failure {10 ** len(total)}, forward and backward."

    def backward_only(self) -> Failures:
        """Counts backward solves along with these and no forward one, which somebody else will count."""
        part = Failures(self.owner, self.advice)
        part.counts["backward"] = self.counts["backward"]
        return part

    def under(self, on_failure: Any) -> Any:
        """The same `on_failure`, which knows whose solves it is about."""
        return Counted(on_failure, self)


class Counted(str):
    """An `on_failure` that knows whose failures it is about. It goes wherever the word goes, into backward passes."""

    failures: Failures

    def __new__(cls, word: str, failures: Failures):
        """The word, and who counts."""
        self = super().__new__(cls, word)
        self.failures = failures
        return self

    def __reduce__(self) -> tuple:
        """Copied and pickled with who counts."""
        return type(self), (str(self), self.failures)


_of_lines: dict[tuple[str, int], Failures] = {}


def failures_under(on_failure: str) -> Failures:
    """The failures of the layer that gave the word, else of the user's line that is calling."""
    if isinstance(on_failure, Counted):
        return on_failure.failures
    frame, _ = users_frame()
    place = ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    return _of_lines.setdefault(place, Failures())


def forget_lines() -> None:
    """Begins to count anew for every line; a layer counts for itself."""
    _of_lines.clear()


def users_frame() -> tuple[FrameType | None, int]:
    """The innermost frame that is neither torch's nor this package's, and its `stacklevel` for a caller that warns.

    None and 1 where there is none, in a thread of the autograd engine for one.
    """
    frame, level = sys._getframe(1), 1
    while frame is not None and frame.f_code.co_filename.startswith((*_OURS, "<frozen")):
        frame, level = frame.f_back, level + 1
    return (None, 1) if frame is None else (frame, level)


def warn(warning: Warning) -> None:
    """Warns in the name of the user's line."""
    warnings.warn(warning, stacklevel=users_frame()[1])


def name_of(layer: nn.Module, cell: Any = None) -> str:
    """A layer in words: its path in the outermost module that is calling it, its class, and that of its cell."""
    kind = type(layer).__name__ if cell is None else f"{type(layer).__name__} of {_named(cell)}"
    path, frame = "", sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module is not layer:
            path = next((name for name, part in module.named_modules() if part is layer), path)
        frame = frame.f_back
    return f"'{path}' ({kind})" if path else kind


def _named(cell: Any) -> str:
    return type(cell).__name__ if isinstance(cell, nn.Module) else getattr(cell, "__name__", type(cell).__name__)
