"""Projections: the nearest point by other methods, the derivatives of every order, kinks, empty sets and rounding."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import torchimplicit as ti
from torchimplicit.optim import projection

DOUBLE = torch.float64


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def positive(seed, *shape):
    return random(seed, *shape).abs() + 0.2


# Name: projection, and its arguments for points that lie off every kink. Five samples of six entries.
X, A = 1.5 * random(0, 5, 6), random(1, 2, 6)
CASES = {
    "simplex": (projection.simplex, (X, positive(2, 5))),
    "capped_simplex": (projection.capped_simplex, (X, positive(2, 5), positive(3, 5, 6))),
    "box_section": (
        projection.box_section,
        (X, -positive(3, 5, 6), positive(4, 6), random(5, 5, 6), 0.1 * random(6, 5)),
    ),
    "box": (projection.box, (X, -positive(3, 6), positive(4, 5, 1))),
    "l1_ball": (projection.l1_ball, (X, 3 * positive(2, 5))),
    "l2_ball": (projection.l2_ball, (X, 2 * positive(2, 5))),
    "linf_ball": (projection.linf_ball, (X, positive(2, 5))),
    "halfspace": (projection.halfspace, (X, random(5, 5, 6), 0.5 * random(6, 5))),
    "affine": (projection.affine, (X, A, random(7, 5, 2))),
    "second_order_cone": (projection.second_order_cone, (2 * random(8, 5, 6),)),
    "semidefinite_cone": (projection.semidefinite_cone, (random(9, 5, 3, 3),)),
    "isotonic": (projection.isotonic, (X, positive(2, 5, 6))),
}
SHARED = {("affine", 1), ("box", 1), ("box_section", 2)}  # arguments without a batch
each = pytest.mark.parametrize("name", CASES)


def case(name):
    function, arguments = CASES[name]
    return function, tuple(argument.clone() for argument in arguments)


# --- the nearest point ------------------------------------------------------------------------------------------------


SIGNS = np.array(list(itertools.product([-1, 1], repeat=6)))


def constraints(name, arguments):
    """Of one sample, for SLSQP: functions to be zero, functions to be at least zero."""
    if name in ("simplex", "capped_simplex", "box_section", "box"):
        if name == "simplex":
            lower, upper, normal, level = 0.0, np.inf, np.ones(6), arguments[0]
        elif name == "capped_simplex":
            lower, upper, normal, level = 0.0, arguments[1], np.ones(6), arguments[0]
        else:
            lower, upper, normal, level = (*arguments, None, None)[:4]
        sums = [] if normal is None else [lambda y: normal @ y - level]
        return sums, [lambda y: np.minimum(y - lower, 1e3), lambda y: np.minimum(upper - y, 1e3)]
    return {
        "l1_ball": lambda r: ([], [lambda y: r - SIGNS @ y]),
        "l2_ball": lambda r: ([], [lambda y: r * r - y @ y]),
        "linf_ball": lambda r: ([], [lambda y: r - y, lambda y: r + y]),
        "halfspace": lambda a, b: ([], [lambda y: b - a @ y]),
        "affine": lambda A, b: ([lambda y: A @ y - b], []),
        "isotonic": lambda w: ([], [np.diff]),
    }[name](*arguments)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"second_order_cone", "semidefinite_cone"}))
def test_the_nearest_point_is_that_of_a_general_solver(name):
    function, arguments = case(name)
    result = function(*arguments)
    for i in range(5):
        own = [a.numpy() if (name, k) in SHARED else a[i].numpy() for k, a in enumerate(arguments)]
        x, weight = own[0], own[1] if name == "isotonic" else 1.0
        equal, least = constraints(name, own[1:])
        found = minimize(
            lambda y, x=x, weight=weight: (weight * (y - x) ** 2).sum() / 2,
            np.zeros(6),
            jac=lambda y, x=x, weight=weight: weight * (y - x),
            method="SLSQP",
            constraints=[{"type": "eq", "fun": f} for f in equal] + [{"type": "ineq", "fun": f} for f in least],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        y = result[i].numpy()
        assert all(np.abs(f(y)).max() < 1e-13 for f in equal)
        assert all(f(y).min() > -1e-13 for f in least)
        assert np.abs(y - found.x).max() < 1e-5, found.message


def test_cone_projections_part_a_point_into_two_orthogonal_ones():
    # Necessary and sufficient for a self-dual cone: y and y - x in it, orthogonal.
    x = torch.cat([2 * random(8, 50, 6), torch.tensor([[2.0, 1, 0, 0, 0, 0], [-2.0, 1, 0, 0, 0, 0]], dtype=DOUBLE)])
    y = projection.second_order_cone(x)
    for v in (y, y - x):
        assert (v[:, 1:].norm(dim=1) <= v[:, 0] + 1e-14).all()
    assert (y * (y - x)).sum(1).abs().max() < 1e-13
    X = random(9, 50, 4, 4)
    Y = projection.semidefinite_cone(X)
    rest = Y - (X + X.mT) / 2
    assert torch.equal(Y, Y.mT)
    for v in (Y, rest):
        assert torch.linalg.eigvalsh(v).min() > -1e-14
    assert (Y * rest).sum((1, 2)).abs().max() < 1e-13
    assert projection.second_order_cone(torch.tensor([[-1.0], [3.0]])).tolist() == [[0.0], [3.0]]


@pytest.mark.parametrize("seed", range(8))
def test_box_sections_agree_with_bisection_where_bounds_are_open_and_breakpoints_coincide(seed):
    whole, open_, n = seed % 2 == 1, seed % 4 >= 2, 2 + seed
    x, a, lower = (2 * random(10 * seed + i, 64, n) for i in range(3))
    width = random(10 * seed + 3, 64, n).abs()
    if whole:  # ties, zero normals, and boxes without width
        x, a, lower, width = x.round(), a.round(), lower.round(), width.round()
    inside = lower + torch.rand(64, n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) * width
    inside = torch.where(random(10 * seed + 6, 64, n) > 0.8, lower, inside)
    b, upper = (a * inside).sum(1), lower + width
    if open_:
        lower = torch.where(random(10 * seed + 4, 64, n) > 0.5, -math.inf, lower)
        upper = torch.where(random(10 * seed + 5, 64, n) > 0.5, math.inf, upper)
    low = torch.full((64, 1), -1e4, dtype=DOUBLE)
    high = -low
    for _ in range(100):
        middle = (low + high) / 2
        over = (a * (x - middle * a).clamp(lower, upper)).sum(1, keepdim=True) > b[:, None]
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    y = projection.box_section(x, lower, upper, a, b)
    assert (y - (x - (low + high) / 2 * a).clamp(lower, upper)).abs().max() < 1e-10
    assert ((a * y).sum(1) - b).abs().max() < 1e-13
    assert ((lower <= y) & (y <= upper)).all()


def test_isotonic_regression_is_that_of_scikit_learn():
    x, weight = random(20, 40, 30).cumsum(1).round(), positive(21, 40, 30)
    y = projection.isotonic(x, weight)
    place = np.arange(30)
    expected = [
        IsotonicRegression().fit(place, *row).predict(place) for row in zip(x.numpy(), weight.numpy(), strict=True)
    ]
    assert np.abs(y.numpy() - np.stack(expected)).max() < 1e-12
    assert (y.diff(dim=1) >= 0).all()  # no tolerance
    slow = torch.arange(60.0, dtype=DOUBLE)
    slow[-1] = -1e4  # one more entry is pooled in every round
    assert torch.allclose(projection.isotonic(slow), slow.mean().expand(60))


def test_affine_sets_with_rows_that_repeat_each_other():
    rows = torch.stack([A[0], A[1], A[0] - 2 * A[1]])
    b = random(7, 5, 2)
    redundant = torch.cat([b, b[:, :1] - 2 * b[:, 1:]], 1).requires_grad_()
    y = projection.affine(X, rows, redundant)
    assert torch.allclose(y, projection.affine(X, A, b), atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda x: projection.affine(x, rows, redundant.detach()), X.clone().requires_grad_()
    )

    def moved(A):  # keeps the third row what it is
        return projection.affine(X, torch.cat([A, A[:1] - 2 * A[1:]]), redundant.detach())

    def independent(A):
        return projection.affine(X, A, b)

    for f in (lambda J: J(A), lambda J: jacrev(lambda a: J(a))(A)):  # first and second derivatives
        assert torch.allclose(f(jacrev(moved)), f(jacrev(independent)), atol=1e-10)
    assert torch.equal(projection.affine(X, A[:0], b[:, :0]), X)


# --- what every projection must do ------------------------------------------------------------------------------------


@each
@settings(max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3]), whole=st.booleans())
def test_idempotent_and_nonexpansive(name, seed, scale, whole):
    function, (x, *parameters) = case(name)
    if name == "isotonic":
        parameters = [torch.ones(6, dtype=DOUBLE)]  # nonexpansive in the norm of its weights
    first, second = (scale * random(seed + i, *x.shape) for i in range(2))
    if whole:
        first, second = first.round(), second.round()
    p, q = function(first, *parameters), function(second, *parameters)
    assert torch.allclose(function(p, *parameters), p, rtol=1e-12, atol=1e-12)
    apart, before = ((u - v).flatten(1).norm(dim=1) for u, v in ((p, q), (first, second)))
    if name == "semidefinite_cone":
        before = ((first - second) + (first - second).mT).flatten(1).norm(dim=1) / 2
    assert (apart <= before * (1 + 1e-12) + 1e-12 * scale).all()


@each
def test_derivatives_of_first_and_second_order(name):
    function, arguments = case(name)
    inputs = [argument.requires_grad_() for argument in arguments]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@each
def test_function_transforms(name):
    function, arguments = case(name)
    y = function(*arguments)
    tangents = tuple(random(30 + k, *argument.shape) for k, argument in enumerate(arguments))
    value, forward = jvp(function, arguments, tangents)
    every = tuple(range(len(arguments)))
    backward = jacrev(function, argnums=every)(*arguments)
    assert torch.equal(value, y)
    for reverse, ahead in zip(backward, jacfwd(function, argnums=every)(*arguments), strict=True):
        assert torch.allclose(reverse, ahead, atol=1e-12)
    product = sum(
        torch.tensordot(jacobian, tangent, tangent.dim()) for jacobian, tangent in zip(backward, tangents, strict=True)
    )
    assert torch.allclose(product, forward, atol=1e-11)
    dims = tuple(None if (name, k) in SHARED else 0 for k in every)
    assert torch.allclose(vmap(function, in_dims=dims)(*arguments), y, rtol=1e-13, atol=1e-14)

    def loss(x):
        return function(x, *arguments[1:]).pow(3).sum()

    assert torch.allclose(hessian(loss)(arguments[0]), jacrev(jacrev(loss))(arguments[0]), atol=1e-11)


@each
def test_parameters_that_are_shared_or_numbers_and_more_batch_dimensions(name):
    function, arguments = case(name)
    x, *parameters = (a if (name, k) in SHARED else a[:1] for k, a in enumerate(arguments))
    shared = [p if (name, k + 1) in SHARED else p[0] for k, p in enumerate(parameters)]
    alone = function(x[0], *shared)
    assert torch.equal(function(x, *parameters)[0], alone)
    many = function(x.expand(3, 2, *x.shape[1:]), *shared)
    assert torch.allclose(many, alone.expand_as(many), rtol=1e-13, atol=1e-14)
    numbers = [float(p) if p.dim() == 0 else p for p in shared]
    assert torch.equal(function(x[0], *numbers), alone)
    empty = function(x[:0], *shared)
    assert empty.shape == x[:0].shape


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions(name, dtype):
    function, arguments = case(name)
    low = [argument.to(dtype).requires_grad_() for argument in arguments]
    y = function(*low)
    assert y.dtype == dtype
    expected = function(*(argument.detach().double() for argument in low))
    assert torch.allclose(
        y.double(), expected, rtol=8 * torch.finfo(dtype).eps, atol=32 * torch.finfo(torch.float32).eps
    )
    y.square().sum().backward()
    assert all(argument.grad.dtype == dtype for argument in low)


@each
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_touches_no_other(name, poison):
    function, arguments = case(name)
    healthy = [argument.clone().requires_grad_() for argument in arguments]
    rows = [0, 2, 3, 4]
    function(*healthy)[rows].square().sum().backward()
    for nonfinite in range(len(arguments)):
        if (name, nonfinite) in SHARED or (math.isinf(poison) and nonfinite > 0):
            continue
        inputs = [argument.clone() for argument in arguments]
        inputs[nonfinite].view(5, -1)[1, 0] = poison
        inputs = [argument.requires_grad_() for argument in inputs]
        with pytest.raises(ti.ConvergenceError, match=r"1 of 5 .*\n  non_finite: sample 1 "):
            function(*inputs)
        y = function(*inputs, on_failure="ignore")
        assert y[1].isnan().all()
        assert torch.equal(y[rows], function(*arguments)[rows])
        y.square().sum().backward()  # through the non-finite sample, too
        for got, expected in zip(inputs, healthy, strict=True):
            assert torch.equal(got.grad, expected.grad)


# --- kinks ------------------------------------------------------------------------------------------------------------

KINKS = {
    "simplex": [([0.0] * 6, 1.0), ([0.0] * 6, 0.0), ([1.0, 0, 0, 0, 0, 0], 1.0), ([0.5, 0.5, 0, 0, -1, -1], 1.0)],
    "capped_simplex": [([0.0] * 6, 6.0, 1.0), ([0.0] * 6, 0.0, 1.0), ([5.0, 0, 0, 0, 0, 0], 1.0, 1.0)],
    "box_section": [([0.0] * 6, 0.0, 0.0, [1.0] * 6, 0.0), ([1.0] * 6, -1.0, 1.0, [1.0, -1, 0, 0, 0, 0], 0.0)],
    "box": [([0.0] * 6, 0.0, 0.0), ([1.0] * 6, 0.0, 1.0)],
    "l1_ball": [([0.0] * 6, 1.0), ([0.0] * 6, 0.0), ([0.5, -0.5, 0, 0, 0, 0], 1.0)],
    "l2_ball": [([0.0] * 6, 1.0), ([0.0] * 6, 0.0), ([3.0, 4, 0, 0, 0, 0], 5.0)],
    "linf_ball": [([0.0] * 6, 1.0), ([0.0] * 6, 0.0), ([1.0] * 6, 1.0)],
    "halfspace": [([0.0] * 6, [1.0] * 6, 0.0), ([0.0] * 6, [0.0] * 6, 0.0)],
    "second_order_cone": [([0.0] * 6,), ([1.0, 1, 0, 0, 0, 0],), ([-1.0, 1, 0, 0, 0, 0],), ([1.0, 0, 0, 0, 0, 0],)],
    "isotonic": [([0.0] * 6, [1.0] * 6)],
}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, places in KINKS.items() for at in places])
def test_kinks_have_derivatives_between_zero_and_one(name, at):
    function = CASES[name][0]
    inputs = tuple(torch.tensor(value, dtype=DOUBLE) for value in at)
    jacobian = jacrev(function)(*inputs)
    # Every element of Clarke's subdifferential of a projection is symmetric with eigenvalues in [0, 1].
    assert torch.allclose(jacobian, jacobian.T, atol=1e-14)
    values = torch.linalg.eigvalsh(jacobian)
    assert values.min() > -1e-14
    assert values.max() < 1 + 1e-14
    assert jacrev(jacrev(function))(*inputs).isfinite().all()
    for k in range(1, len(inputs)):
        assert jacrev(function, argnums=k)(*inputs).isfinite().all()


def test_a_point_that_cannot_move_has_no_derivative_by_what_is_projected():
    ties = torch.tensor([5.0, 0, 0, 0], dtype=DOUBLE)  # of which the last three do not trade with each other
    same = torch.zeros(4, dtype=DOUBLE)
    for f, x in (
        (lambda x: projection.capped_simplex(x, 1.0), ties),
        (lambda x: projection.capped_simplex(0.1 * x, 0.3, 0.1), torch.tensor([9.0, 9, 9, 0], dtype=DOUBLE)),
        (lambda x: projection.capped_simplex(x, 4.0), same),
        (lambda x: projection.simplex(x, 0.0), same),
        (lambda x: projection.l1_ball(x, 0.0), same),
        (lambda x: projection.l2_ball(x, 0.0), same),
        (lambda x: projection.linf_ball(x, 0.0), same),
        (lambda x: projection.box(x, 0.0, 0.0), same),
    ):
        assert not jacrev(f)(x).any()


@pytest.mark.parametrize(
    "values", [[1.0, 1, 1, 1], [2.0, 2, -1, -1], [3.0, 0.5, -0.5, -2], [-1.0, -1, -2, -3]], ids=str
)
def test_semidefinite_derivatives_at_repeated_eigenvalues(values):
    basis = torch.linalg.qr(random(40, 4, 4)).Q
    X = ((basis * torch.tensor(values, dtype=DOUBLE)) @ basis.T).unsqueeze(0).requires_grad_()
    assert torch.autograd.gradcheck(projection.semidefinite_cone, X, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(projection.semidefinite_cone, X)


def test_third_derivatives_of_the_semidefinite_cone():
    X, H = random(41, 3, 3), random(42, 3, 3)
    H = H + H.T

    def along(t):
        return projection.semidefinite_cone(X + t * H)

    third, step = jacrev(jacfwd(jacrev(along))), 1e-4
    second = jacfwd(jacrev(along))
    t = torch.zeros((), dtype=DOUBLE)
    assert torch.allclose(third(t), (second(t + step) - second(t - step)) / (2 * step), rtol=1e-5, atol=1e-5)


def test_the_semidefinite_derivative_is_half_where_eigenvalues_vanish():
    H = random(43, 3, 3)
    H = H + H.T
    zero = torch.zeros(3, 3, dtype=DOUBLE)
    value, slope = jvp(projection.semidefinite_cone, (zero,), (H,))
    assert not value.any()
    assert torch.allclose(slope, H / 2)
    assert hessian(lambda X: projection.semidefinite_cone(X).square().sum())(zero).isfinite().all()


# --- rounding ---------------------------------------------------------------------------------------------------------


def test_constraints_hold_to_rounding_for_far_points():
    x, a = 1e9 * random(50, 4, 30), random(51, 30)
    eps = 40 * torch.finfo(DOUBLE).eps
    assert (projection.simplex(x + 1e12).sum(1) - 1).abs().max() < eps
    assert (projection.l1_ball(x).abs().sum(1) - 1).abs().max() < eps
    assert (projection.l2_ball(x).norm(dim=1) - 1).abs().max() < eps
    assert (projection.capped_simplex(x, 3.0, 0.4).sum(1) - 3).abs().max() < eps
    assert (projection.box_section(x, -1.0, 1.0, a, 0.3) @ a - 0.3).abs().max() < eps
    y = projection.halfspace(x, a, 0.3)
    assert (y @ a - 0.3 <= eps * y.norm(dim=1)).all()
    rows = random(52, 3, 30)
    y = projection.affine(x, rows, torch.ones(3, dtype=DOUBLE))
    assert ((y @ rows.T - 1).norm(dim=1) <= eps * 30 * y.norm(dim=1)).all()


def test_lengths_whose_squares_are_lost():
    unit = torch.nn.functional.normalize(random(53, 3, 5), dim=1)
    for scale in (1e-200, 1e200):
        x = (scale * random(53, 3, 5)).requires_grad_()
        y = projection.l2_ball(x, 0.01 * scale)
        y.sum().backward()
        assert torch.allclose(y.detach() / scale, 0.01 * unit, rtol=1e-12)
        assert x.grad.isfinite().all()


# --- refusals ---------------------------------------------------------------------------------------------------------

x = torch.zeros(3, 4)
ones = torch.ones(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: projection.simplex(x, -1.0), r"simplex: the set is empty, radius=-1.0; expected radius >= 0"),
        (lambda: projection.l2_ball(x, torch.tensor([1.0, -2, 1])), r"l2_ball: .* empty in sample 1, radius=-2;"),
        (lambda: projection.l1_ball(x, torch.tensor([-1.0, 1, -1])), r"in samples 0, 2, radius=-1;"),
        (lambda: projection.linf_ball(x[0], torch.tensor(-1.0)), r"linf_ball: .* empty in the sample, radius=-1"),
        (
            lambda: projection.box(x, 1.0, torch.tensor([[2.0], [0], [2]])),
            r"in sample 1, lower=1, upper=0; .*lower <= u",
        ),
        (lambda: projection.box(x, math.inf, math.inf), r"a finite number between them"),
        (lambda: projection.capped_simplex(x, torch.tensor([1.0, 5, 1])), r"in sample 1, total=5, min=0, max=4;"),
        (lambda: projection.capped_simplex(x, 1.0, -1.0), r"lower=0, upper=-1"),
        (lambda: projection.box_section(x, 0, 1, ones, torch.tensor([0.0, 0, -1])), r"in sample 2, b=-1, min=0, max=4"),
        (lambda: projection.halfspace(x, 0 * ones, torch.tensor([0.0, -1, 0])), r"in sample 1, b=-1; .* not zero"),
        (
            lambda: projection.affine(x, torch.ones(2, 4), torch.tensor([[1.0, 1], [1, 2], [0, 0]])),
            r"in sample 1, resid",
        ),
        (
            lambda: projection.isotonic(x, 0 * ones),
            r"isotonic: a weight is not positive in samples 0, 1, 2; .*weights > 0",
        ),
        (lambda: projection.simplex(x, ones), r"radius of shape \(4,\) for points of shape \(3, 4\), expected \(3,\)"),
        (lambda: projection.box(x, torch.zeros(3), 1.0), r"lower of shape \(3,\)"),
        (lambda: projection.affine(x, torch.ones(2, 3), ones[:2]), r"A of \(2, 3\), expected \(p, 4\)"),
        (lambda: projection.affine(x, torch.ones(2, 4), ones), r"b of shape \(4,\)"),
        (lambda: projection.semidefinite_cone(x), r"matrices of shape \(3, 4\)"),
        (lambda: projection.simplex(torch.zeros(3, 0)), r"simplex: got shape \(3, 0\)"),
        (lambda: vmap(projection.simplex)(x, torch.tensor([1.0, -1, 2])), r"in 1 of the samples"),
    ],
)
def test_empty_sets_and_wrong_shapes_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.complex64), [1.0]])
def test_points_that_are_no_real_tensors_are_refused(wrong):
    with pytest.raises(TypeError, match="expected a real floating tensor"):
        projection.capped_simplex(wrong)


def test_a_full_set_is_not_refused_for_rounding():
    caps = torch.full((3,), 0.7, dtype=DOUBLE)
    assert caps.sum() < 2.1
    y = projection.capped_simplex(random(60, 5, 3), 2.1, caps)
    assert torch.allclose(y, caps.expand(5, 3), rtol=1e-12)
