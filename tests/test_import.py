"""What `import torchimplicit` costs and says, each in a process of its own, where nothing is imported yet."""

import importlib.metadata
import re
import subprocess
import sys

import torchimplicit
from torchimplicit.train.cli import main


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_loads_itself_and_torch_alone():
    """Counted in modules, which no busy machine changes: the compiler took 1,400 of them, and two seconds."""
    run(
        "import sys, torch; there = {*sys.modules}; import torchimplicit; added = {*sys.modules} - there; "
        "others = {name for name in added if not name.startswith('torchimplicit')}; assert len(others) < 20, others; "
        "assert not {'torch._inductor', 'torch._dynamo'} & {*sys.modules}"
    )


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
