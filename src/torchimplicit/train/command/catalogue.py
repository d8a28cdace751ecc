"""Which recipes ship with the package. Needs no Lightning, so that the command answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from torchimplicit.train.errors import UsageError

FOLDER = Path(__file__).parent.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Names and files of the recipes."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def resolve(name: str) -> str:
    """The file of a shipped recipe by its bare name; a path as it is.

    Raises:
        UsageError: there is neither such a recipe nor such a file.
    """
    recipes = shipped()
    if name in recipes:
        return str(recipes[name])
    if Path(name).is_file():
        return name
    close = get_close_matches(name, recipes, 1)
    meant = f"Did you mean {close[0]}? " if close else ""
    raise UsageError(
        f"--config {name}: neither a recipe nor a file. {meant}Expected one of {', '.join(recipes)}, or the path of a "
        "YAML file. Try torchimplicit recipes."
    )


def named(words: Sequence[str]) -> str | None:
    """The recipe that the words name."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            return value if equals else after or None
    return None


def describe(path: Path) -> tuple[str, str]:
    """What a recipe does and which data it needs: the two comments at the top of its file."""
    lines = path.read_text().splitlines()
    return lines[0].removeprefix("# "), lines[1].removeprefix("# data: ")


def show() -> None:
    """Prints the table of recipes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains, on which data")
    for name, path in shipped().items():
        what, needs = describe(path)
        table.add_row(name, Text(what) + Text(f"\ndata: {needs}", style="dim"))
    console = Console()
    console.print(table)
    console.print(
        "\nTrain one: torchimplicit fit --config NAME; its options: fit --config NAME --help",
        highlight=False,
        markup=False,
    )
