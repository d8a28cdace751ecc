"""From text to whole numbers and back: characters, or byte pairs learned from the training text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from torchimplicit.core.status import ImplicitError


class UnknownCharacterError(ImplicitError, ValueError):
    """A text has a character that the vocabulary lacks."""


class Vocabulary(Protocol):
    """What a text's tokens are.

    Attributes:
        tokens: the texts of the tokens, in the order of their numbers.
    """

    tokens: list[str]

    def encode(self, text: str) -> Tensor:
        """The numbers of a text, `(N,)`."""
        ...

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers."""
        ...


class Characters:
    """Every character is a token.

    Args:
        text: whose characters they are; or the characters themselves.
    """

    def __init__(self, text: Iterable[str]):
        """Sorts the characters."""
        self.tokens = sorted(set(text))
        self._numbers = {character: number for number, character in enumerate(self.tokens)}

    def encode(self, text: str) -> Tensor:
        """The numbers of a text, `(N,)`.

        Raises:
            UnknownCharacterError: it has a character that is not in the vocabulary.
        """
        unknown = sorted(set(text) - self._numbers.keys())
        if unknown:
            raise UnknownCharacterError(
                f"Characters: got {unknown[:5]}, expected the {len(self.tokens)} characters of the data. Try "
                "another text."
            )
        return torch.tensor([self._numbers[character] for character in text], dtype=torch.long)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers."""
        return "".join(self.tokens[int(number)] for number in numbers)


class Bytes:
    """Every byte of the text in UTF-8 is a token: 256 of them, and every text can be written."""

    tokens = [chr(number) for number in range(256)]  # noqa: RUF012 - as the other vocabularies have it

    def encode(self, text: str) -> Tensor:
        """The numbers of a text, `(N,)`."""
        return torch.tensor(list(text.encode()), dtype=torch.long)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers; what is no UTF-8 becomes a question mark in a box."""
        return bytes(int(number) for number in numbers).decode(errors="replace")


class BytePairs:
    """Tokens of several bytes, merged from the pairs that are most frequent in a text; every text can be written.

    Source: R. Sennrich, B. Haddow, A. Birch, ACL 2016, arXiv 1508.07909, on bytes; by the package `tokenizers`.

    Args:
        text: to learn from.
        size: how many tokens, the 256 bytes included.
    """

    def __init__(self, text: str, size: int):
        """Learns the pairs; the same text gives the same ones."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        self._tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        self._tokenizer.train_from_iterator([text], trainer)
        numbers = self._tokenizer.get_vocab()
        self.tokens = sorted(numbers, key=numbers.__getitem__)

    def encode(self, text: str) -> Tensor:
        """The numbers of a text, `(N,)`."""
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.long)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers."""
        return self._tokenizer.decode([int(number) for number in numbers])
