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
    with pytest.raises(ValueError, match=r"^integrate\(solver=Kvaerno3\(\.\.\.\), adjoint=Reversible\(\)\): expected"):
        integrate(torch.ones(1, 2, requires_grad=True), solver=ti.Kvaerno3(), adjoint=ti.Reversible())
    with pytest.raises(ValueError, match=r"^integrate\(solver=Leapfrog\(\.\.\.\), adjoint=Backsolve\(\.\.\.\)\): got"):
        integrate(solver=ti.Leapfrog(dt=0.1), adjoint=ti.Backsolve())
    with pytest.raises(RuntimeError, match=r"^integrate\(event=\.\.\., dense=\.\.\.\): got torch.vmap"):
        torch.vmap(lambda y0: integrate(y0, dense=True).value)(torch.ones(2, 1, 2))


def test_a_layer_names_itself_when_it_refuses_options():
    options = {"solver": ti.Leapfrog(dt=0.1), "adjoint": ti.Backsolve()}
    with pytest.raises(ValueError, match=r"^NeuralODE\(solver=Leapfrog"):
        ti.nn.NeuralODE(torch.nn.Linear(2, 2), autonomous=True, **options)
    with pytest.raises(ValueError, match=r"^CNF\(solver=Leapfrog"):
        ti.nn.CNF(torch.nn.Linear(2, 2), 2, autonomous=True, **options)
