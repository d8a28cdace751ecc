"""Text as streams of tokens: every row of a batch goes on where it was in the batch before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from torchimplicit.core.options import require, require_count
from torchimplicit.files import read_bytes, reading
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, FittingData, Splits, require_parts
from torchimplicit.train.data.batches import Batches, Order
from torchimplicit.train.data.vocabulary import BytePairs, Bytes, Characters, Vocabulary

SHAKESPEARE = "tinyshakespeare.txt"
SETS = ("shakespeare", "wikitext-2")
WIKITEXT = {"train": "train.txt", "val": "valid.txt", "test": "test.txt"}
HUB = {"train": "train", "val": "validation", "test": "test"}


class Texts(NamedTuple):
    """The three parts of a text."""

    train: str
    val: str
    test: str


class Text(FittingData):
    """Language data: a text of your own, tiny Shakespeare or WikiText-2, by characters, bytes or byte pairs.

    A split is cut into as many streams of equal length as there are rows in a batch, over all processes, and batch
    after batch takes the next `length` tokens of each: a memory of the last segment is one of the text before. Nothing
    is shuffled. Training drops what does not fill the last segments, validation and test keep shorter ones; both lose
    fewer tokens than there are streams to the equal lengths.

    Sources: A. Karpathy, char-rnn, 2015 (tiny Shakespeare); S. Merity et al., ICLR 2017, arXiv 1609.07843 (WikiText-2).

    Args:
        source: the path of a text file in UTF-8, or of a folder with `train.txt`, `valid.txt` and `test.txt`, which are
            taken as they are; or "shakespeare", 1.1 million characters, or "wikitext-2", which are found in `data_dir`.
        tokens: "characters"; "bytes", which can write every text; or "pairs" of bytes learned from the training split,
            which needs the package `tokenizers`.
        pairs: how many of the latter there are.
        length: tokens of a segment.
        data_dir: folder with `tinyshakespeare.txt` or with `wikitext-2/train.txt`, `valid.txt` and `test.txt`, or with
            a folder `text` that has them. None looks at the environment variable `TORCHIMPLICIT_DATA`, and where that
            is unset downloads `karpathy/tiny_shakespeare` or `Salesforce/wikitext`. Not looked at for a path.
        validation: part of one file, before its test, that validates.
        test: part of one file, at its end, that is the test split.
        batch_size: streams of a process.
        seed: of nothing here, as no part of this is random.

    Attributes:
        vocabulary: number of tokens; None before `setup`.
        symbols: texts of the tokens and back; None before `setup`.
        characters_per_token: by the name of the split.
    """

    sized: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __init__(
        self,
        source: str = "shakespeare",
        tokens: Literal["characters", "bytes", "pairs"] = "characters",
        pairs: int = 1024,
        length: int = 128,
        data_dir: str | None = None,
        validation: float = 0.05,
        test: float = 0.05,
        batch_size: int = 16,
        seed: int = 0,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.source, self.tokens, self.pairs, self.length, self.data_dir = source, tokens, pairs, length, data_dir
        self.part, self.tested = validation, test
        require(self, "tokens", tokens in ("characters", "bytes", "pairs"), "'characters', 'bytes' or 'pairs'")
        require_parts(self, validation, test)
        require_count(self, "length", "batch_size")
        require_count(self, "pairs", least=256)
        self.symbols: Vocabulary | None = None
        self._texts: Texts | None = None
        self.characters_per_token: dict[str, float] = {}
        self.save_hyperparameters(ignore="data_dir")

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens."""
        return len(self.symbols.tokens) if self.symbols else None

    def prepare_data(self) -> None:
        """Downloads, in one process of the machine, where there is no folder to read."""
        if self.source in SETS and self.folder() is None:
            _from_hub(self.source)

    def look(self) -> None:
        """Reads the texts and settles the tokens.

        Raises:
            DataError: the files are absent or broken, or the hub is out of reach.
        """
        if self._texts is not None:
            return
        folder = self.folder()
        if self.source not in SETS:
            self._texts = self._from_path(Path(self.source))
        else:
            self._texts = _from_hub(self.source) if folder is None else self._from_folder(folder)
        if self.symbols is not None:  # a checkpoint's
            return
        if self.tokens == "bytes":
            self.symbols = Bytes()
        elif self.tokens == "pairs":
            self.symbols = BytePairs(self._texts.train, self.pairs)
        else:
            self.symbols = Characters("".join(self._texts))

    def sizes(self) -> dict[str, int]:
        """The number of tokens."""
        return {"vocabulary": self.vocabulary or 0}

    def describe(self) -> str:
        """Characters and tokens."""
        counts = " + ".join(str(len(text)) for text in self._texts or ())
        return f"{counts} characters (train + val + test), {self.vocabulary} different tokens"

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the tokens of a checkpoint; pairs are learned from the data again."""
        texts = checkpoint.get("vocabulary")
        if self.tokens == "bytes":
            self.symbols = Bytes()
        elif self.tokens == "characters" and texts:
            self.symbols = Characters(texts)

    def load(self) -> Splits:
        """The splits, each as streams of one row a sample of the batch.

        Raises:
            DataError: the files are absent or broken, the hub is out of reach, or a split is too short.
        """
        self.look()
        symbols, texts = self.symbols, self._texts
        assert symbols is not None
        assert texts is not None
        rows = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        numbers = [symbols.encode(text) for text in texts]
        for name, text, tokens in zip(Splits._fields, texts, numbers, strict=True):
            least = rows * (self.length if name == "train" else 1) + 1
            if len(tokens) < least:
                raise DataError(
                    f"Text(batch_size={self.batch_size}, length={self.length}): {name} has {len(tokens)} tokens, "
                    f"expected at least {least}, for {rows} streams. Try a smaller batch_size or length."
                )
            self.characters_per_token[name] = len(text) / len(tokens)
        return Splits(*(Streams(tokens, rows, self.length, whole=i == 0) for i, tokens in enumerate(numbers)))

    def _from_path(self, place: Path) -> Texts:
        """The text of a file, or the three of a folder."""
        if place.is_dir():
            return _set_of(place)
        if not place.is_file():
            raise DataError(
                f"Text: --data.source {place}: neither a file nor a folder. Expected the path of a text file, or one "
                f"of {', '.join(SETS)}."
            )
        return self._cut(_read(place))

    def _from_folder(self, folder: Path) -> Texts:
        """The texts of a known set in a folder, or in its folder `text`."""
        inside = Path("wikitext-2") if self.source == "wikitext-2" else Path(SHAKESPEARE)
        for place in (folder / inside, folder / "text" / inside):
            if self.source == "shakespeare" and place.is_file():
                return self._cut(_read(place))
            if self.source == "wikitext-2" and place.is_dir():
                return _set_of(place)
        missing = f"found no {inside}" if folder.is_dir() else "no such folder"
        raise DataError(
            f"Text(source={self.source!r}): looked in {folder} and {folder / 'text'}: {missing}. Try --data-dir (or "
            f"the variable {DATA_VARIABLE}) with a folder that holds it, or neither, to download it."
        )

    def _cut(self, text: str) -> Texts:
        train, val = (round((1 - share) * len(text)) for share in (self.part + self.tested, self.tested))
        return Texts(text[:train], text[train:val], text[val:])

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader:
        """Batches in the order of the text, whether they are for training or not."""
        self.setup()
        dataset = getattr(self.splits, split)
        count, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if not shuffle:
            return DataLoader(
                dataset, sampler=DistributedSampler(dataset, count, rank, shuffle=False), **self._fetching()
            )
        order = Order(dataset, count, rank, self.seed, self.batch_size, self._done)
        order.shuffle = False
        return Batches(dataset, sampler=order, **self._fetching())


class Streams(Dataset):
    """Segments of a text that was cut into rows: sample `i` is segment `i // rows` of row `i % rows`.

    So the samples of a batch, in order, are a segment of every row, and processes that deal out the samples in turns
    have rows of their own.

    Args:
        tokens: `(N,)`.
        rows: how many.
        length: of a segment; the last one of a row may be shorter.
        whole: drops that one where it is.
    """

    def __init__(self, tokens: Tensor, rows: int, length: int, whole: bool):
        """Cuts."""
        size = (len(tokens) - 1) // rows  # a row's last target is the first token of the next row
        self.seen = tokens[: rows * size].view(rows, size)
        self.said = tokens[1 : rows * size + 1].view(rows, size)
        self.length = length
        self.segments = size // length if whole else -(-size // length)

    def __len__(self) -> int:
        return self.segments * len(self.seen)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        seen, said = self.__getitems__([index])
        return seen[0], said[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: tokens and what comes after each, both `(B, T)`."""
        segment = indices[0] // len(self.seen)
        rows = torch.tensor(indices) % len(self.seen)
        span = slice(segment * self.length, (segment + 1) * self.length)
        return self.seen[rows, span], self.said[rows, span]


def _set_of(place: Path) -> Texts:
    """The three files in a folder."""
    missing = [name for name in WIKITEXT.values() if not (place / name).is_file()]
    if missing:
        raise DataError(
            f"Text: {place} has no {' and no '.join(missing)}, expected {', '.join(WIKITEXT.values())}. Try to add "
            "what is missing, or the path of one file."
        )
    return Texts(*(_read(place / name) for name in WIKITEXT.values()))


def _read(path: Path) -> str:
    with reading("Text", path, "Expected text in UTF-8; try to fetch it again."):
        text = read_bytes(path).decode("utf-8")
        if not text:
            raise ValueError("an empty file")
        return text


def _from_hub(source: str) -> Texts:
    """The splits from the Hugging Face hub, or from its cache on this disk."""
    from datasets import load_dataset

    # tiny_shakespeare was published as a script, which `datasets` no longer runs; the hub keeps its tables beside it
    where: dict = (
        {"path": "karpathy/tiny_shakespeare", "revision": "refs/convert/parquet"}
        if source == "shakespeare"
        else {"path": "Salesforce/wikitext", "name": "wikitext-2-v1"}
    )
    try:
        return Texts(*("".join(load_dataset(**where, split=HUB[split])["text"]) for split in Texts._fields))
    except Exception as error:  # the client raises errors of many packages: all mean that there is no data
        raise DataError(
            f"Text: could not get {where['path']} from the Hugging Face hub ({type(error).__name__}: {error}). Try "
            f"--data-dir (or the variable {DATA_VARIABLE}) with a folder that holds its files, or look at the "
            "connection."
        ) from error
