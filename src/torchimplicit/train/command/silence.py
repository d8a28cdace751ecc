"""What others say about machines and products while this command works, and nobody needs to read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchimplicit.core.status import ConvergenceWarning

CHATTER = (
    "GPU available",
    "TPU available",
    "\N{ELECTRIC LIGHT BULB} Tip",
    "Loading `train_dataloader` to estimate",
    "was raised with message",  # and a checkpoint saved: the command says it in words of its own
)
NOISE = (
    "does not have many workers",
    "available but not used",
    "isinstance.treespec, LeafSpec",
    "LightningCLI's args",
    "Be aware that when using `ckpt_path`",
    "Checkpoint directory .* exists",
    "Experiment logs directory",  # of a resumed run: its log has been put aside
    "is smaller than the logging interval",
    "The .grad attribute of a Tensor that is not a leaf",  # torch, while it compiles a cell
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Lightning says about machines and products, and shortens warnings that are about the model."""
    import lightning.pytorch  # it sets its own format of warnings

    usual = warnings.formatwarning

    def short(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        return f"warning: {message}\n" if category is ConvergenceWarning else usual(message, category, *place, **line)

    def matters(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in CHATTER)

    loggers = [
        logging.getLogger(name) for name in (lightning.pytorch.__name__, "lightning.pytorch.utilities.rank_zero")
    ]
    for logger in loggers:
        logger.addFilter(matters)
    try:
        with warnings.catch_warnings():
            warnings.formatwarning = short
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            for message in NOISE:
                warnings.filterwarnings("ignore", f".*{message}.*")
            yield
    finally:
        warnings.formatwarning = usual
        for logger in loggers:
            logger.removeFilter(matters)
