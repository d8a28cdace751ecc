"""What a language model says of texts: how likely they are, and what comes next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.status import ImplicitError
from torchimplicit.files import read_bytes, reading
from torchimplicit.train.command.predicting.answers import Answer, Verdict, unreadable, verdicts, worst

HINT = "Expected text in UTF-8."


def read(module: Any, data: Any, paths: Sequence[Path], count: int, temperature: float, seed: int) -> list[Answer]:
    """Perplexity and bits per character of every text, and so many tokens that come next."""
    if data.symbols is None:
        data.look()  # pairs of bytes are learned from the training text
    symbols: Any = data.symbols
    answers = []
    for path in paths:
        place = {"file": str(path)}
        try:
            with reading("predict", path, HINT):
                text = read_bytes(path).decode("utf-8")
                tokens = symbols.encode(text)
                if len(tokens) < 2:
                    raise ValueError(f"{len(tokens)} tokens, expected two at least")
        except ImplicitError as error:
            named = str(error) if str(path) in str(error) else f"predict: {path}: {error}"
            answers.append(unreadable(place, ValueError(named)))
            continue
        loss, verdict = _scored(module, tokens, data.length)
        said, after = _continued(module, tokens, count, temperature, seed)
        nats = loss / (len(tokens) - 1)
        bits = loss / math.log(2) / len(text)
        values = {
            "characters": str(len(text)),
            "perplexity": f"{math.exp(nats):.4g}",
            "bits_per_character": f"{bits:.4g}",
            "next": symbols.decode(said.tolist()),
        }
        answers.append(Answer(place, values, worst([verdict, *after])))
    return answers


def _scored(module: Any, tokens: Tensor, length: int) -> tuple[float, Verdict]:
    """The negative log-likelihood of all tokens but the first, in nats; segment after segment, with the memory."""
    loss, memory, found = 0.0, None, []
    for start in range(0, len(tokens) - 1, length):
        seen = tokens[start : min(start + length, len(tokens) - 1)]
        features, memory = module.network(seen[None], memory if module.remember else None)
        said = tokens[start + 1 : start + 1 + len(seen)]
        loss += float(module.network.losses(features, said[None]).double().sum())
        found += verdicts(module, 1)
    return loss, worst(found)


def _continued(module: Any, tokens: Tensor, count: int, temperature: float, seed: int) -> tuple[Tensor, list[Verdict]]:
    """Tokens that come next, and how their solves went."""
    torch.manual_seed(seed)
    found = []
    start = len(tokens)
    for _ in range(count):
        tokens = module.say(tokens, 1, temperature)
        found += verdicts(module, 1)
    return tokens[start:], found
