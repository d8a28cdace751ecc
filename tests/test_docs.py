"""What the documentation shows runs, and prints what the documentation says it prints."""

import ast
import doctest
import importlib
import json
import pkgutil
import re
import runpy
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

import torchimplicit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)")


def blocks(page):
    """Language and text of every fenced block of a page, and the line that it starts at."""
    text = page.read_text()
    return [(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in BLOCK.finditer(text)]


def alike(printed, shown):
    """Whether two texts agree in words and, near enough for another processor, in numbers.

    Counts may be off by two or a tenth; what a solve leaves (`1.23e-05`) by a factor of ten, for it is an accident of
    rounding; any other decimal by one in its last digit, or a hundredth.
    """
    pairs = zip(NUMBER.split(" ".join(printed.split())), NUMBER.split(" ".join(shown.split())), strict=True)
    return all(_near(got, expected) if NUMBER.fullmatch(expected) else got == expected for got, expected in pairs)


def _near(got, expected):
    """Whether a printed number is the one that is shown."""
    if expected.isdecimal() and got.isdecimal():
        return abs(int(got) - int(expected)) <= max(2, 0.1 * int(expected))
    if "e-" in expected:
        return float(got) <= 10 * float(expected) and float(expected) <= 10 * max(float(got), 1e-15)
    digits = len(expected.partition("e")[0].partition(".")[2])
    return abs(float(got) - float(expected)) <= max(1.01 * 10.0**-digits, 0.01 * abs(float(expected)))


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("97.2 %, 12 steps", "97.4 %, 11 steps", True),
        ("97.2 %", "90.0 %", False),
        ("[0.6, 0.8]", "[0.6, 0.9]", True),
        ("[0.61, 0.8]", "[0.67, 0.8]", False),
        ("residual 1.3e-05", "residual 9.9e-06", True),
        ("residual 1.3e-03", "residual 9.9e-06", False),
        ("-0.005", "-0.007", False),
        ("40 evaluations", "50 evaluations", False),
        ("converged", "diverged", False),
    ],
)
def test_stale_numbers_are_found(printed, shown, same):
    assert alike(printed, shown) == same


PAGES_WITH_CODE = [page for page in PAGES if any(language == "python" for language, *_ in blocks(page))]


@pytest.fixture(autouse=True)
def _quiet_place(tmp_path, monkeypatch):
    """A folder to write pictures to, and one thread; a page may choose its precision."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


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


PAGES_ON_THE_INSIDE = [page for page in PAGES if page.stem in ("architecture", "extending")]
PAGES_ON_THE_INSIDE += sorted((ROOT / "docs" / "architecture").glob("*.md"))


@pytest.mark.parametrize("page", PAGES_ON_THE_INSIDE, ids=lambda page: page.stem)
def test_files_and_classes_that_are_named_are_there(page):
    """In backticks: a folder or a file by the end of its path, a class by its name."""
    tree = [path for folder in ("src/torchimplicit", "tests", "docs") for path in (ROOT / folder).rglob("*")]
    ends = [f"/{path.relative_to(ROOT).with_suffix('')}" for path in tree]
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in tree if path.suffix == ".py")))
    named = re.findall(r"`([^`\s]+)`", BLOCK.sub("", page.read_text()))
    files = {f"/{name.strip('/').removesuffix('.py')}" for name in named if "/" in name or name.endswith(".py")}
    classes = {match[1] for name in named if (match := re.match(r"([A-Z]\w*[a-z]\w*)(\(.*\))?$", name))}
    lost = {name for name in files if not any(end.endswith(name) for end in ends)}
    assert lost | (classes - words) == set()


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


NOTEBOOKS = runpy.run_path(str(ROOT / "docs" / "hooks" / "notebooks.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(path, monkeypatch):
    """Cell by cell, as the notebook that is made of a script, in which arguments are the notebook's."""
    notebook = json.loads(NOTEBOOKS["notebook"](path.read_text()))
    module = types.ModuleType("__main__", doc="A notebook has another one.")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), vars(module))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_a_notebook_has_all_of_its_script(path):
    text = path.read_text()
    notebook = json.loads(NOTEBOOKS["notebook"](text))
    title, *code = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert len(code) >= 4
    assert code.pop(-2).endswith("none of the script's")
    assert title == ast.get_docstring(ast.parse(text))
    tree = ast.parse(text)
    assert ast.dump(ast.parse("\n".join(code))) == ast.dump(ast.Module(tree.body[1:], []))
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown"] + ["code"] * (len(code) + 1)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_the_generator_of_heart_rates_on_stays_that_are_made_up(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    folder = tmp_path / "physionet2012"
    folder.mkdir()
    with zipfile.ZipFile(folder / "set-a.zip", "w") as archive:
        for stay in range(30):
            rates = (80 + torch.randn(48).cumsum(0)).tolist()
            lines = [f"{hour:02}:07,HR,{rate:.0f}" for hour, rate in enumerate(rates) if stay or hour != 20]
            archive.writestr(f"set-a/{stay}.txt", "\n".join(["Time,Parameter,Value", "00:00,Age,54", *lines]))
    example = runpy.run_path(str(ROOT / "examples" / "heart_rates.py"))
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(tmp_path / "nowhere"))
    assert example["main"]() == {}
    assert "set TORCHIMPLICIT_DATA to a folder that holds physionet2012/set-a.zip" in capsys.readouterr().out
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(tmp_path))
    table = example["main"](steps=2, batch=8, file="rates.png")
    assert "20 stays seen, 9 held out" in capsys.readouterr().out  # one has an hour without a rate
    assert all(len(row) == 4 for row in table.values())
    assert Path("rates.png").stat().st_size > 10_000


def test_signatures_are_iterated_integrals():
    signature = runpy.run_path(str(ROOT / "examples" / "heart_rates.py"))["signature"]
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    found = signature(torch.stack((t, t**2), 1)[None], 2)[0]  # of (t, t^2): int t d(t^2) = 2/3, int t^2 dt = 1/3
    expected = torch.tensor([1, 1, 1 / 2, 2 / 3, 1 / 3, 1 / 2], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-6)


def test_fitted_equations_are_those_of_maximum_likelihood():
    example = runpy.run_path(str(ROOT / "examples" / "fit_sde.py"))
    found = example["main"](count=8, length=50, draws=16)
    for truth, likely, fitted, bars, _ in found.values():
        assert ((fitted - likely).abs() < 2 * bars / 16**0.5).all()
        assert ((fitted - truth).abs() < 3 * bars).all()
    _, likely, _, bars, rough = found["Ornstein and Uhlenbeck"]
    biased = (1 - torch.exp(-0.1 * likely[0])) / 0.1  # by one step of Euler's and Maruyama's a gap
    assert abs(rough[0] - biased) < bars[0] / 16**0.5 < abs(rough[0] - likely[0])
