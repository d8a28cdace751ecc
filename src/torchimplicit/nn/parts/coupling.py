"""Normalisation over the batch, inside what must treat samples independently."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn


def couples(module: nn.Module) -> bool:
    """Whether a module normalises over the batch; one that uses its running statistics is an affine map."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats)


def warn_of_batch_norm(owner: str, part: str, function: Any, found: str) -> None:
    """Warns where a module couples the samples of a batch; called by the constructor of the layer that owns it.

    Args:
        owner: the layer, in words.
        part: what the module is to it, "cell" for one.
        function: the module, or a function, of which nothing is known.
        found: what is solved for, in the plural.
    """
    for name, module in function.named_modules() if isinstance(function, nn.Module) else ():
        if couples(module):
            which = f"{part}'s '{name}'" if name else part
            warnings.warn(
                f"{owner}: the {which} is a {type(module).__name__}, which couples the samples of a batch: "
                f"their {found} then depend on each other. Try GroupNorm or LayerNorm.",
                stacklevel=3,
            )
