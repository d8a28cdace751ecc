"""What a score model cannot be made of."""

from __future__ import annotations

import math
import warnings
from typing import Any, get_args

from torch import nn

from torchimplicit.core.options import check_on_failure, is_number, require_count, require_instance
from torchimplicit.nn.parts.coupling import couples, warn_of_batch_norm
from torchimplicit.nn.paths.layer import check_field
from torchimplicit.nn.score.prediction import Prediction
from torchimplicit.nn.score.schedule import Schedule


def check_model(
    network: Any,
    schedule: Any,
    prediction: Any,
    std: Any,
    classes: Any,
    label_dropout: Any,
    interval: Any,
    on_failure: Any,
) -> None:
    """Refuses impossible options of a `Denoiser`.

    Raises:
        TypeError: the network cannot be called, or the schedule is none.
        ValueError: a number or a word that cannot be.
    """
    check_on_failure(on_failure)
    check_field("Denoiser", network, False, "network")
    warn_of_batch_norm("Denoiser", "network", network, "samples")
    require_instance("schedule", schedule, Schedule, "ti.nn.EDM()")
    if prediction not in get_args(Prediction):
        expected = ", ".join(map(repr, get_args(Prediction)))
        raise ValueError(f"Denoiser(prediction={prediction!r}): expected one of {expected}")
    if not (is_number(std) and 0 < std < math.inf):
        raise ValueError(f"Denoiser(std={std!r}): expected the data's standard deviation, above 0")
    if not (is_number(label_dropout) and 0 <= label_dropout <= 1):
        raise ValueError(f"Denoiser(label_dropout={label_dropout!r}): expected a share from 0 to 1")
    if classes is not None:
        require_count("Denoiser", classes=classes)
    if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
        raise ValueError(f"Denoiser(interval={interval!r}): expected (least, largest) of the data, or None")


def warn_of_training(owner: str, network: Any) -> None:
    """Warns of what draws, or couples samples, as long as a network is in training; called by who draws samples."""
    for name, module in network.named_modules() if isinstance(network, nn.Module) else ():
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
        if drops or (module.training and couples(module)):
            which = f"network's '{name}'" if name else "network"
            warnings.warn(
                f"{owner}: the {which} is a {type(module).__name__} in training, so that a sample is not a function of "
                "its seed alone. Try model.eval().",
                stacklevel=3,
            )
