"""The package is written in small pieces."""

import ast
from pathlib import Path

import torchimplicit


def body(function):
    """How many lines a function's body has, without its docstring."""
    first, *rest = function.body
    documented = rest and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.end_lineno - (first.end_lineno if documented else first.lineno - 1)


def test_no_file_is_over_300_lines_and_no_body_of_a_function_is_of_40():
    large = []
    for path in sorted(Path(torchimplicit.__file__).parent.rglob("*.py")):
        text = path.read_text()
        large += [path.name] if text.count("\n") > 300 else []
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        large += [f"{path.name}, {each.name}" for each in functions if body(each) >= 40]
    assert not large
