"""Tables that the library writes: statuses with what helps, recipes with what they train.

A page says `<!-- remedies: MODULE.TABLE -->` or `<!-- recipes: NAME NAME ... -->`. So the pages say what the
messages and the command say, and tests/test_remedies.py follows every remedy.
"""

import re
from importlib import import_module
from pathlib import Path

PLACE = re.compile(r"^<!-- (remedies|recipes): ([^\n]+) -->$", re.MULTILINE)


def on_page_markdown(markdown, **_):
    """Called by mkdocs for every page."""
    write = {"remedies": remedies, "recipes": recipes}
    return PLACE.sub(lambda match: write[match[1]](match[2]), markdown)


def remedies(name):
    """What a report looks its statuses up in: a dictionary of a module of the package."""
    module, _, attribute = name.rpartition(".")
    family = getattr(import_module(f"torchimplicit.{module}"), attribute)
    rows = [
        (f"`{status.name}`", each.cause, "<br>".join(each.tries))
        for status, each in family.items()
    ]
    return _table(["status", "what happened", "what helps, each by itself"], rows)


def recipes(names):
    """What recipes do and which data they need."""
    from torchimplicit.train.command.catalogue import describe, shipped

    pages = {
        page.stem for page in (Path(__file__).parents[1] / "recipes").glob("*.md")
    }
    rows = [
        (
            f"[{name}]({name}.md)" if name in pages else f"`{name}`",
            *describe(shipped()[name]),
        )
        for name in names.split()
    ]
    return _table(["recipe", "what it trains", "data"], rows)


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
