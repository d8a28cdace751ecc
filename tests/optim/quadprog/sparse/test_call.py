"""Derivatives of sparse programs: those of dense ones, on the patterns that the matrices have."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.optim.quadprog.sparse.banded import MATRICES, banded, loss, sparse
from torchimplicit import qp
from torchimplicit.optim import Clarabel, InteriorPoint

NAMES = ("Q", "q", "G", "h", "A", "b", "l", "u")


@pytest.mark.parametrize("solver", [Clarabel(), InteriorPoint()], ids=str)
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_values_and_gradients_are_those_of_the_dense_program(layout, batch, solver):
    values = banded(batch=batch)
    dense, given = sparse(values, "dense"), sparse(values, layout)
    expected, found = qp(**dense), qp(**given, solver=solver)
    assert (expected.active.inequality != 0).any()
    assert (expected.active.bounds != 0).any()
    torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.duals, expected.duals, rtol=1e-9, atol=1e-10)
    for mine, its in zip(found.active, expected.active, strict=True):
        assert torch.equal(mine, its)
    for program, solution in ((dense, expected), (given, found)):
        loss(solution).backward()
        assert solution.backward.converged, program.keys()
    for name in NAMES:
        mine, its = given[name].grad, dense[name].grad
        if name in MATRICES:
            assert mine.layout == given[name].layout
            assert torch.equal(mine.to_dense() != 0, values[name] != 0), "an entry outside the pattern, or none"
            mine, its = mine.to_dense(), torch.where(values[name] != 0, its, 0.0)
        torch.testing.assert_close(mine, its, rtol=1e-7, atol=1e-9)


def test_derivatives_agree_with_finite_differences_twice():
    values = banded(n=6)
    where = {name: values[name].nonzero().T for name in ("Q", "G")}

    def solve(curvature, rows, *others):
        def matrix(name, entries):
            return torch.sparse_coo_tensor(where[name], entries, values[name].shape, check_invariants=True)

        Q = matrix("Q", curvature)
        Q = (Q + Q.mT) / 2
        solution = qp(Q, others[0], matrix("G", rows), *others[1:4], l=others[4], u=others[5], solver=Clarabel())
        return solution.value, solution.duals.inequality, solution.duals.equality

    entries = [values[name][tuple(where[name])] for name in ("Q", "G")]
    leaves = [*entries, *(values[name] for name in ("q", "h", "A", "b", "l", "u"))]
    leaves = [x.clone().requires_grad_() for x in leaves]
    assert gradcheck(solve, leaves)
    assert gradgradcheck(solve, leaves)


def test_derivatives_by_vectors_are_there_in_forward_mode_too():
    values = banded(n=8)
    Q, G, A = (values[name].to_sparse() for name in MATRICES)

    def solve(q, h, b, low, high):
        solution = qp(Q, q, G, h, A, b, l=low, u=high, solver=Clarabel())
        return solution.value, solution.duals.inequality, solution.duals.equality

    assert gradcheck(solve, [values[name].clone().requires_grad_() for name in "qhblu"], check_forward_ad=True)


def test_a_dense_matrix_beside_sparse_ones_has_the_gradient_of_its_zeros_too():
    values = banded(n=12)
    values["A"][0, 3] = 0.0
    values["b"] = values["b"] * 0
    dense, mixed = sparse(values, "dense"), sparse(values, "coo")
    mixed["A"] = values["A"].clone().requires_grad_()
    for program, solver in ((dense, "auto"), (mixed, Clarabel())):
        loss(qp(**program, solver=solver)).backward()
    assert mixed["A"].grad[0, 3] != 0
    torch.testing.assert_close(mixed["A"].grad, dense["A"].grad, rtol=1e-8, atol=1e-10)


def test_single_precision_goes_in_and_comes_out():
    values = {name: x.float() for name, x in banded(n=30).items()}
    given = sparse(values, "coo")
    solution = qp(**given, solver=Clarabel())
    assert solution.value.dtype == torch.float32
    solution.value.sum().backward()
    assert given["G"].grad.dtype == torch.float32
    expected = qp(**{name: x.double() for name, x in values.items()}).value
    torch.testing.assert_close(solution.value.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("by", ["q", "G"])
def test_a_gradient_on_a_pattern_has_derivatives_of_its_own(layout, by):
    values = banded(n=10)
    given, dense = sparse(values, layout), sparse(values, "dense")
    second = []
    for program, options in ((given, {"solver": Clarabel()}), (dense, {})):
        value = qp(**program, **options).value
        (first,) = torch.autograd.grad((value**3).sum(), program["G"], create_graph=True)
        first = torch.where(values["G"] != 0, first.to_dense(), 0.0)
        (found,) = torch.autograd.grad((first**2).sum(), program[by])
        second.append(torch.where(values[by] != 0, found.to_dense(), 0.0))
    assert second[1].abs().max() > 1e-3
    torch.testing.assert_close(*second, rtol=1e-8, atol=1e-10)


def test_entries_given_twice_add_up():
    place = torch.tensor([[0, 0, 1], [0, 0, 1]])
    entries = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    Q = torch.sparse_coo_tensor(place, entries, (2, 2), check_invariants=True)
    value = qp(Q, torch.tensor([-1.0, -2.0], dtype=torch.float64), solver=Clarabel()).value
    assert value.tolist() == [1.0, 2.0]
    value.sum().backward()
    assert entries.grad.tolist() == [-1.0, -1.0, -2.0]
