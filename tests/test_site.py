"""The site: what is public has a place in the reference, and what the hooks write is what the library says."""

import importlib
import importlib.util
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.test_remedies import FAMILIES
from torchimplicit.train.command.catalogue import shipped

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TABLES = runpy.run_path(str(DOCS / "hooks" / "tables.py"))
PUBLIC = "nn solve adjoint linear ode sde core diagnose testing optim optim.projection imaging imaging.register train"
BLOCK = re.compile(r"^::: ([\w.]+)\n((?: {4}.*\n|\n(?= {4}))*)", re.MULTILINE)


def documented():
    """Module and name of all that the reference shows, as its pages ask for it."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for name, options in BLOCK.findall(page.read_text() + "\n"):
            members = ((yaml.safe_load(options) or {}).get("options") or {}).get("members")
            pairs = [(name, each) for each in members or []] or [tuple(name.rsplit(".", 1))]
            yield from ((page.name, module, each) for module, each in pairs)


SHOWN = list(documented())


def test_the_reference_asks_for_what_is_there():
    """And not for a file that has the name of its function, which mkdocstrings would show in its place."""
    for page, module, name in SHOWN:
        package = importlib.import_module(module)
        assert not isinstance(getattr(package, name), ModuleType)
        file = hasattr(package, "__path__") and importlib.util.find_spec(f"{module}.{name}")
        assert not file, f"{page}: ask for {module}.{name}.{name}, with show_root_heading"


@pytest.mark.parametrize("package", PUBLIC.split())
def test_what_is_public_is_in_the_reference(package):
    shown = [getattr(importlib.import_module(module), name) for _, module, name in SHOWN]
    module = importlib.import_module(f"torchimplicit.{package}")
    things = {name: getattr(module, name) for name in module.__all__}
    lost = [
        name
        for name, thing in things.items()
        if not isinstance(thing, ModuleType) and not any(thing is each for each in shown)
    ]
    assert lost == []


def test_troubleshooting_has_every_remedy():
    written = TABLES["on_page_markdown"]((DOCS / "troubleshooting.md").read_text())
    assert "<!-- remedies" not in written
    missing = [
        (family, status.name, remedy)
        for family, table in FAMILIES.items()
        for status, each in table.items()
        for remedy in each.tries
        if remedy not in written
    ]
    assert missing == []


def test_the_list_of_recipes_has_each_once():
    written = TABLES["on_page_markdown"]((DOCS / "recipes" / "index.md").read_text())
    names = re.findall(r"^\| (?:\[([\w-]+)\]\(\1\.md\)|`([\w-]+)`) \| \S", written, re.MULTILINE)
    assert sorted(map("".join, names)) == sorted(shipped())


def test_every_page_is_in_the_menu_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    assert sorted(pages(nav)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
