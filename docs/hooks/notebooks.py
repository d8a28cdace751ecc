"""Examples as notebooks to download: scripts in the percent format, one cell from one `# %%` to the next.

The docstring at the top becomes text. A page says `<!-- examples -->` where their table shall be.
"""

import ast
import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples"
ARGUMENTS = (
    "import sys\n\nsys.argv[1:] = []  # a notebook's own, and none of the script's\n"
)


def on_files(files, config):
    """Called by mkdocs with all that the site will have: adds scripts and notebooks."""
    from mkdocs.structure.files import File

    for script in sorted(FOLDER.glob("*.py")):
        text = script.read_text()
        written = {script.name: text, f"{script.stem}.ipynb": notebook(text)}
        for name, content in written.items():
            files.append(File.generated(config, f"examples/{name}", content=content))
    return files


def on_page_markdown(markdown, **_):
    """Called by mkdocs for every page."""
    return markdown.replace("<!-- examples -->", table())


def table():
    """What every example shows, and where to get it."""
    rows = ["| example | what it shows | |", "| --- | --- | --- |"]
    for script in sorted(FOLDER.glob("*.py")):
        says = ast.get_docstring(ast.parse(script.read_text())).split("\n\n")[0]
        to = f"[notebook](examples/{script.stem}.ipynb), [script](examples/{script.name})"
        rows.append(f"| `{script.stem}` | {says} | {to} |")
    return "\n".join(rows)


def cells(text):
    """A script's cells: `("markdown" | "code", text)`."""
    head, *rest = re.split(r"^# %%.*\n", text, flags=re.MULTILINE)
    found = [("markdown", ast.get_docstring(ast.parse(head)))]
    return found + [("code", each.strip("\n")) for each in rest]


def notebook(text):
    """A script as a notebook, format 4.5."""
    each = cells(text)
    each.insert(-1, ("code", ARGUMENTS.strip("\n")))  # the last cell is what runs
    return json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {
                "kernelspec": {
                    "name": "python3",
                    "display_name": "Python 3",
                    "language": "python",
                }
            },
            "cells": [_cell(number, *one) for number, one in enumerate(each)],
        },
        indent=1,
    )


def _cell(number, kind, text):
    cell = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}}
    cell["source"] = text.splitlines(keepends=True)
    return cell | (
        {"execution_count": None, "outputs": []} if kind == "code" else {}
    )
