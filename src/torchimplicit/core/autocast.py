"""Lower precision where the user wants it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Autocast:
    """The autocast state of the forward pass: for the user's function, in both passes, and for nothing else.

    A solver's own sums and products keep the state's precision.
    """

    def __init__(self, device_type: str):
        """Records the state in force."""
        self.device_type = device_type
        self.enabled = torch.is_autocast_enabled(device_type)
        self.dtype = torch.get_autocast_dtype(device_type) if self.enabled else None
        self.eps = torch.finfo(self.dtype).eps if self.dtype else 0.0

    @contextmanager
    def off(self) -> Iterator[None]:
        """No autocast, whatever surrounds."""
        if torch.is_autocast_enabled(self.device_type):
            with torch.autocast(self.device_type, enabled=False):
                yield
        else:
            yield

    def around(self, function: Callable) -> Callable:
        """The function under the recorded state."""
        if not self.enabled:
            return function

        def under_autocast(*inputs: Any) -> Any:
            with torch.autocast(self.device_type, dtype=self.dtype):
                return function(*inputs)

        return under_autocast
