"""Matrices of given sums: the nearest one by its multipliers, derivatives, ties, masks, sizes and refusals."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.func import hessian, jacfwd, jacrev, vmap

import torchimplicit as ti
from torchimplicit.optim import projection
from torchimplicit.optim.projection import transport

DOUBLE = torch.float64


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def shares(seed, *shape):
    return random(seed, *shape).softmax(-1)


def check_nearest(X, Y, play):
    """Optimality by the harshest cycle: no other permutation or plan goes further in the direction of `X - Y`.

    For doubly stochastic matrices, by Birkhoff, those are combinations of permutations.
    """
    for x, y in zip(X.double(), Y.double(), strict=True):
        push = x - y
        rows, columns = linear_sum_assignment(-push.numpy())
        assert float(push[rows, columns].sum() - (push * y).sum()) <= play * float(push.abs().sum())


@settings(max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    size=st.integers(-6, 6).map(lambda power: 10.0**power),
    n=st.integers(1, 7),
    whole=st.booleans(),
)
def test_the_nearest_doubly_stochastic_matrix(seed, dtype, size, n, whole):
    X = random(seed, 4, n, n)
    X = size * (X.round() if whole else X).to(dtype)
    Y = projection.birkhoff_polytope(X)
    play = 100 * torch.finfo(dtype).eps * n
    assert (Y >= 0).all()
    assert (Y.sum(-1) - 1).abs().max() <= play
    assert (Y.sum(-2) - 1).abs().max() <= play
    check_nearest(X, Y, play * (1 + 1 / size))
    assert torch.allclose(projection.birkhoff_polytope(Y), Y, rtol=0, atol=10 * play)


@settings(max_examples=25, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), unit=st.integers(-30, 30).map(lambda power: 10.0**power))
def test_plans_are_those_of_the_simplex_in_any_unit(seed, unit):
    # With one column of free sums in all but name, rows are simplices: a column that takes what is left.
    X, rows = unit * random(seed, 3, 2, 5), unit * shares(seed + 1, 3, 2)
    columns = unit * shares(seed + 2, 3, 5)
    Y = projection.transport_polytope(X, rows, columns)
    assert ((Y.sum(-1) - rows).abs() <= 1e-14 * unit).all()
    assert ((Y.sum(-2) - columns).abs() <= 1e-14 * unit).all()
    # Two rows: the first is a section of a box, of entries up to the columns' sums.
    half = ((X[:, 0] - X[:, 1]) + columns) / 2
    wanted = projection.capped_simplex(half, rows[:, 0], columns)
    assert torch.allclose(Y[:, 0], wanted, rtol=1e-9, atol=1e-13 * unit)


def test_derivatives_of_every_order_and_transforms():
    X, rows, columns = random(0, 2, 3, 4), shares(1, 2, 3), shares(2, 2, 4)

    def plan(X, logits):
        return projection.transport_polytope(X, logits.softmax(-1), columns)

    inputs = X.clone().requires_grad_(), rows.log().requires_grad_()
    assert torch.autograd.gradcheck(plan, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(plan, inputs)
    assert torch.allclose(jacfwd(plan)(*inputs), jacrev(plan)(*inputs), atol=1e-12)
    mapped = vmap(projection.transport_polytope)(X, rows, columns)
    assert torch.allclose(mapped, projection.transport_polytope(X, rows, columns), atol=1e-14)
    square = random(3, 3, 3)
    assert torch.autograd.gradcheck(projection.birkhoff_polytope, square.requires_grad_(), check_forward_ad=True)
    assert hessian(lambda X: projection.birkhoff_polytope(X).square().sum())(square.detach()).isfinite().all()


@pytest.mark.parametrize("X", [torch.eye(4), torch.zeros(4, 4), 5 * torch.eye(4), -torch.ones(4, 4)], ids=str)
def test_kinks_have_derivatives_between_zero_and_one(X):
    jacobian = jacrev(projection.birkhoff_polytope)(X.double()).reshape(16, 16)
    values = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)
    assert torch.allclose(jacobian, jacobian.T, atol=1e-13)
    assert values.min() > -1e-13
    assert values.max() < 1 + 1e-13


def test_a_permutation_does_not_move():
    # Its zeros are met with equality and not pushed: they count as held, as everywhere.
    assert jacrev(projection.birkhoff_polytope)(torch.eye(3, dtype=DOUBLE)).abs().max() < 1e-14


def test_forbidden_entries_are_the_limit_of_far_ones_and_have_no_gradient():
    X, gone = random(4, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.bool)
    gone[1, :2, :2] = gone[2, 0, 1:] = True  # only one way is left for some
    far, out = X.masked_fill(gone, -1e6).requires_grad_(), X.masked_fill(gone, -math.inf).requires_grad_()
    Y, wanted = projection.birkhoff_polytope(out), projection.birkhoff_polytope(far)
    assert torch.allclose(Y, wanted, atol=1e-9)
    assert not Y[gone].any()
    for tensor, value in ((out, Y), (far, wanted)):
        (value * random(5, 4, 4)).sum().backward()
        assert not tensor.grad[gone].any()
    assert torch.allclose(out.grad, far.grad, atol=1e-9)


x = torch.zeros(2, 3, 3)
blocked = torch.zeros(2, 3, 3)
blocked[1, :2, 1:] = -math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: projection.birkhoff_polytope(blocked), r"empty in sample 1; expected sums that can be reached"),
        (
            lambda: projection.transport_polytope(x, torch.ones(3), torch.tensor([[1.0, 1, 1], [1, 1, 2]])),
            r"in sample 1, rows=3, columns=4; expected rows and columns of the same total",
        ),
        (lambda: projection.transport_polytope(x, torch.tensor([2.0, 2, -1]), torch.ones(3)), r"expected rows >= 0"),
        (lambda: projection.birkhoff_polytope(torch.zeros(2, 3)), r"got matrices of shape \(2, 3\)"),
        (lambda: projection.transport_polytope(x, torch.ones(2), torch.ones(3)), r"rows of shape \(2,\)"),
        (lambda: projection.sparse_simplex(x, 0), r"sparse_simplex\(count=0\): expected an integer >= 1"),
    ],
)
def test_empty_sets_and_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_not_finite_or_not_found_is_told_by_sample(monkeypatch):
    X = random(6, 3, 4, 4)
    X[1, 2, 2] = math.nan
    with pytest.raises(ti.ConvergenceError, match="non_finite: sample 1"):
        projection.birkhoff_polytope(X)
    Y = projection.birkhoff_polytope(X, on_failure="ignore")
    assert torch.equal(Y[[0, 2]], projection.birkhoff_polytope(X[[0, 2]]))
    monkeypatch.setattr(transport, "_STEPS", 1)
    with pytest.raises(ti.ConvergenceError, match=r"birkhoff_polytope: 2 of 2 .*\n  stagnated: sample 0"):
        projection.birkhoff_polytope(10 * X[[0, 2]])


def test_sparse_simplex_by_all_supports():
    x = random(7, 20, 6).requires_grad_()
    y = projection.sparse_simplex(x, 3, 0.8)
    best = torch.full((20,), math.inf, dtype=DOUBLE)
    for kept in combinations(range(6), 3):
        point = torch.zeros(20, 6, dtype=DOUBLE)
        point[:, kept] = projection.simplex(x.detach()[:, kept], 0.8)
        best = torch.minimum(best, (point - x.detach()).square().sum(1))
    assert torch.allclose((y - x).square().sum(1), best)
    assert torch.autograd.gradcheck(lambda x: projection.sparse_simplex(x, 3, 0.8), x, check_forward_ad=True)
    assert torch.equal(projection.sparse_simplex(x, 9), projection.simplex(x))
