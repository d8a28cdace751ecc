"""What `import torchimplicit` costs and says, each in a process of its own, where nothing is imported yet."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchimplicit
from torchimplicit.train.command.cli import main


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_loads_points_and_torch_alone():
    """Counted in modules, which no busy machine changes: the compiler took 1,400 of them, and two seconds.

    Paths, programs and modules cost more than twice what points do, and most scripts have no use for all of them.
    """
    run(
        "import sys, torch; there = {*sys.modules}; import torchimplicit; added = {*sys.modules} - there; "
        "floors = {name.split('.')[1] for name in added if name.startswith('torchimplicit.')}; "
        "assert floors == {'core', 'linear', 'solve', 'adjoint', 'point', 'equations'}, floors; "
        "import torchimplicit.nn; added = {*sys.modules} - there; "
        "others = {name for name in added if not name.startswith('torchimplicit')}; assert len(others) < 20, others; "
        "assert not {'torch._inductor', 'torch._dynamo'} & {*sys.modules}"
    )


def test_every_name_is_there_when_it_is_used():
    run(
        "import torchimplicit as ti; ti.ode.DensePath; from torchimplicit import Tsit5; assert ti.Tsit5 is Tsit5\n"
        "assert 'torchimplicit.optim' not in __import__('sys').modules and {*ti.__all__} < {*dir(ti)}\n"
        "from torchimplicit import *; assert all(globals()[name] is getattr(ti, name) for name in ti.__all__)"
    )
    with pytest.raises(AttributeError, match="module 'torchimplicit' has no attribute 'ode_int'"):
        _ = torchimplicit.ode_int


def test_type_checkers_are_told_of_the_same_names():
    """They read the imports that do not run."""
    tree = ast.parse(Path(torchimplicit.__file__).read_text())
    told = [
        (node.module, each.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    ]
    assert len(told) > 20
    for module, name in told:
        there = getattr(importlib.import_module(module), name)
        assert getattr(torchimplicit, name) is there
        assert name in torchimplicit.__all__


def test_compiled_secants_are_compiled_at_their_first_step_only():
    run(
        "import sys, torch, torchimplicit as ti; solver = ti.Broyden(compile=True); layer = ti.nn.DEQ(lambda z, x: x, "
        "solver); assert 'torch._inductor' not in sys.modules"
    )


def test_it_does_without_numpy_and_says_nothing_of_it():
    """`import torch` itself warns where numpy is missing; what comes after that is ours."""
    run(
        "import sys, warnings; sys.modules['numpy'] = None\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('ignore')\n"
        "    import torch\n"
        "warnings.simplefilter('error')\n"
        "import torchimplicit as ti\n"
        "layer = ti.nn.DEQ(ti.nn.ResidualCell(8, 8))\n"
        "layer(torch.randn(2, 8, 4, 4)).sum().backward()\n"
        "ti.odeint(lambda t, y: -y, torch.ones(2, 1), torch.tensor([0.0, 1.0]))\n"
        "ti.qp(torch.eye(2), torch.ones(2), A=torch.ones(1, 2), b=torch.ones(1))\n"
    )


def test_the_version_is_one_number(capsys):
    assert re.fullmatch(r"\d+\.\d+\.\d+", torchimplicit.__version__)
    assert importlib.metadata.version("torchimplicit") == torchimplicit.__version__
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"torchimplicit {torchimplicit.__version__}, torch 2.")
