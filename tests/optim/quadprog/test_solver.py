"""Which method solves a program, and what is said of it."""

import sys

import pytest
import torch

import torchimplicit as ti
from tests.optim.quadprog.sparse.banded import banded, loss, sparse, t
from torchimplicit import Status, qp
from torchimplicit.optim import Clarabel, InteriorPoint

NAMES = ("Q", "q", "G", "h", "A", "b", "l", "u")
SOLVERS = (Clarabel(), InteriorPoint())


def test_from_some_hundred_unknowns_clarabel_is_asked_and_named():
    small, large = (sparse(banded(n), "coo") for n in (40, 240))
    assert "Clarabel" not in str(qp(**small).report)
    solution = qp(**large)
    assert "by Clarabel" in str(solution.report)
    assert solution.report.by_clarabel.tolist() == [True]
    dense = qp(**{name: x.detach().to_dense() for name, x in large.items()})
    assert dense.report.by_clarabel is None
    torch.testing.assert_close(solution.value, dense.value, rtol=1e-9, atol=1e-12)


def test_a_program_that_is_dense_can_be_given_to_clarabel():
    values = banded(n=12, batch=2)
    values["Q"] = values["Q"] + torch.stack((0 * values["Q"], torch.eye(12, dtype=torch.float64)))
    given, expected = sparse(values, "dense"), sparse(values, "dense")
    solutions = [qp(**given, solver=Clarabel()), qp(**expected, solver=InteriorPoint())]
    assert [x.report.by_clarabel is None for x in solutions] == [False, True]
    torch.testing.assert_close(solutions[0].value, solutions[1].value, rtol=1e-9, atol=1e-12)
    for solution in solutions:
        loss(solution).backward()
    for name in NAMES:
        torch.testing.assert_close(given[name].grad, expected[name].grad, rtol=1e-7, atol=1e-9)


def test_a_layer_passes_its_solver_on():
    layers = [ti.nn.QP(6, inequalities=3, solver=solver).double() for solver in SOLVERS]
    layers[1].load_state_dict(layers[0].state_dict())
    q = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)
    found = [layer(q) for layer in layers]
    assert ["Clarabel" in str(layer.report) for layer in layers] == [True, False]
    torch.testing.assert_close(*found)


def test_what_the_interior_point_leaves_falls_to_clarabel_and_is_said():
    eye = torch.eye(4, dtype=torch.float64)  # assignments: many bounds meet in every corner
    A, b = torch.cat((eye.repeat_interleave(4, 1), eye.repeat(1, 4))), torch.ones(8, dtype=torch.float64)
    costs = torch.stack([torch.rand(16, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)])
    given = {"Q": None, "q": costs.requires_grad_(), "A": A, "b": b, "l": t(*[0.0] * 16)}
    alone = qp(**given, solver=InteriorPoint(), max_steps=2, on_failure="ignore")
    assert alone.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]
    assert alone.report.by_clarabel is None
    solution, expected = qp(**given, max_steps=2), qp(**given)
    assert solution.report.by_clarabel.tolist() == [False, True]
    assert "(1 of them by Clarabel)" in str(solution.report)
    assert "Clarabel" not in str(expected.report)
    torch.testing.assert_close(solution.value, expected.value, rtol=1e-9, atol=1e-12)
    found, wanted = (torch.autograd.grad((x.value @ b[:1].expand(16)).sum(), costs) for x in (solution, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_what_is_no_solver_is_refused():
    with pytest.raises(TypeError, match=r"ti\.optim\.Clarabel\(\)"):
        qp(**banded(n=20), solver="clarabel")


@pytest.mark.parametrize("missing", ["clarabel", "scipy"])
def test_without_the_extra_it_is_named_and_small_programs_need_none(missing, monkeypatch):
    small, large = (sparse(banded(n), "coo") for n in (20, 220))
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, f"{missing}.sparse", None)
    for program, options in ((small, {"solver": Clarabel()}), (large, {})):
        with pytest.raises(
            ImportError, match=r"pip install torchimplicit\[optim\].*solver=ti\.optim\.InteriorPoint\(\)"
        ):
            qp(**program, **options)
    assert qp(**small).report.converged
    assert qp(**large, solver=InteriorPoint()).report.converged, "what is advised helps"
    hard = sparse(banded(n=20), "dense")
    assert "Clarabel" not in str(qp(**hard, max_steps=1, on_failure="ignore").report), "nor is it asked"


def test_infeasible_programs_are_not_left_to_clarabel():
    own = torch.ones(3, dtype=torch.float64)
    solution = qp(torch.eye(3).double(), own, l=own, A=own[None], b=t(1.0), on_failure="ignore")
    assert solution.status.tolist() == [Status.INFEASIBLE]
    assert solution.report.by_clarabel is None
