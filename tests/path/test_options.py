"""Options of a path, and the function whose they are."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.tree import Layout
from torchimplicit.path.engine import Engine
from torchimplicit.path.options import Options
from torchimplicit.path.solve import solve


def integrate(y0=torch.ones(1, 2), **options):
    ts = torch.tensor([0.0, 1.0])
    options = Options(name="integrate", **{"solver": ti.Tsit5(), "adjoint": ti.Checkpointed()} | options)
    return solve(lambda t, y: -y, y0, ts, (), Layout(y0, options.batch_dims), options, Engine())


def test_reports_and_messages_name_the_function_that_was_called():
    assert str(integrate().report).startswith("integrate: 1/1 arrived")
    with pytest.raises(ti.ConvergenceError, match=r"^integrate: 1 of 1 samples"):
        integrate(solver=ti.Tsit5(max_steps=1))
    with pytest.raises(ValueError, match=r"^integrate\(adjoint=Reversible"):
        integrate(adjoint=ti.Reversible(), dense=True)
    with pytest.raises(RuntimeError, match=r"^integrate\(event=\.\.\., dense=\.\.\.\): got torch.vmap"):
        torch.vmap(lambda y0: integrate(y0, dense=True).value)(torch.ones(2, 1, 2))
