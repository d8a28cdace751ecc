"""A table that prints itself row by row and turns into Markdown; the page of results."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = ("torchimplicit", "torchdeq", "jaxopt", "jax", "xitorch")


class Table:
    """A titled table.

    Args:
        title: heading.
        note: a paragraph on what is measured and how.
        header: names of the columns.
    """

    def __init__(self, title: str, note: str, header: Sequence[str]):
        self.title, self.note, self.header = title, note, list(header)
        self.rows: list[list[str]] = []
        print(f"\n{title}\n{note}\n{self._line(self.header)}", flush=True)

    def add(self, *cells: str) -> None:
        """Adds a row and prints it."""
        if len(cells) != len(self.header):
            raise ValueError(f"got {len(cells)} cells, expected {len(self.header)}: {cells}")
        self.rows.append(list(cells))
        print(self._line(cells), flush=True)

    def _line(self, cells: Sequence[str]) -> str:
        widths = [max(len(name), 10) for name in self.header]
        widths[0] = max(widths[0], 24)
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    def markdown(self) -> str:
        """Heading, note and table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"## {self.title}", "", self.note, "", *("| " + " | ".join(line) + " |" for line in lines)])


def at_least(ratio: float, bar: float) -> tuple[str, str]:
    """The bar of a ratio that shall be large, and the verdict."""
    return f"{bar:g}x", "met" if ratio >= bar else f"{100 * (1 - ratio / bar):.0f} % short"


def at_most(ratio: float, bar: float) -> tuple[str, str]:
    """The bar of a ratio that shall be small, and the verdict."""
    return f"<= {bar:g}", "met" if ratio <= bar else f"{100 * (ratio / bar - 1):.0f} % over"


def write_page(
    path: Path, tables: Sequence[Table], threads: int, how: str, libraries: Sequence[str] = LIBRARIES
) -> None:
    """Rewrites a page of results.

    Args:
        path: the file.
        tables: in this order.
        threads: torch threads of the run.
        how: a sentence on what wrote it and how it measured.
        libraries: whose versions to name, where they are installed.
    """
    intro = (
        f"{how} A bar is what this library has set itself.\n\n"
        f"Machine: {processor()}, {os.cpu_count()} cores, {threads} torch threads unless said otherwise. "
        f"{', '.join(versions(libraries))}, "
        f"Python {platform.python_version()}. {datetime.date.today()}."
    )
    path.write_text("\n\n".join([intro, *(table.markdown() for table in tables)]) + "\n")


def versions(libraries: Sequence[str]) -> list[str]:
    """Of the libraries that were measured."""
    found = [f"torch {torch.__version__}"]
    for name in libraries:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def processor() -> str:
    """The model of the processor, or of the accelerator that is the default device, as far as the system tells."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
