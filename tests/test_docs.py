"""What the documentation shows runs, and prints what the documentation says it prints."""

import doctest
import importlib
import pkgutil
import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

import torchimplicit.testing

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)")


def blocks(page):
    """Language and text of every fenced block of a page, and the line that it starts at."""
    text = page.read_text()
    return [(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in BLOCK.finditer(text)]


def alike(printed, shown):
    """Whether two texts agree in words and, near enough for another processor, in whole numbers."""
    pairs = zip(NUMBER.split(" ".join(printed.split())), NUMBER.split(" ".join(shown.split())), strict=True)
    for got, expected in pairs:
        if expected.isdecimal() and got.isdecimal():
            if abs(int(got) - int(expected)) > max(2, 0.1 * int(expected)):
                return False
        elif not NUMBER.fullmatch(expected) and got != expected:
            return False
    return True


PAGES_WITH_CODE = [page for page in PAGES if any(language == "python" for language, *_ in blocks(page))]


@pytest.fixture(autouse=True)
def _quiet_place(tmp_path, monkeypatch):
    """A folder to write pictures to, and one thread."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def namespace(monkeypatch):
    """That of a module which can be found by its name, as dataclasses and pickles want it."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    return vars(module)


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page, namespace, capsys):
    """Python blocks run in turn in one namespace; a text block after one is what it prints."""
    printed = None
    for language, text, line in blocks(page):
        if language == "python":
            capsys.readouterr()
            exec(compile("\n" * line + text, str(page), "exec"), namespace)
            printed = capsys.readouterr().out
        elif language == "text" and printed is not None:
            assert alike(printed, text), f"{page.name}, line {line}: shown\n{text}\nprinted\n{printed}"


def test_the_solver_of_the_contribution_guide_keeps_the_contract(namespace):
    (source,) = [text for language, text, _ in blocks(ROOT / "CONTRIBUTING.md") if language == "python"]
    exec(source, namespace)
    torchimplicit.testing.check_solver(namespace["HeavyBall"]())


def modules():
    return [module.name for module in pkgutil.walk_packages(torchimplicit.__path__, "torchimplicit.")]


@pytest.mark.parametrize("name", modules())
def test_docstrings(name):
    if name.startswith("torchimplicit.train"):
        for extra in ("lightning", "jsonargparse", "torchmetrics", "matplotlib", "rich", "sklearn"):
            pytest.importorskip(extra)
    torch.manual_seed(0)
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
