import copy
import pickle
import sys
import warnings

import cvxpy as cp
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from torchimplicit import ConvergenceError, ConvergenceWarning, Status
from torchimplicit.optim import ConeSolution, QPSolution, canonicalise, projection

TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def least_squares():
    """Nonnegative least squares with a budget: a quadratic program."""
    x, A, b = cp.Variable(3), cp.Parameter((4, 3), name="A"), cp.Parameter(4, name="b")
    constraints = [x >= 0, cp.sum(x) <= 1.5]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + 0.1 * cp.sum_squares(x)), constraints)
    return problem, [A, b], [x], constraints, [draw(2, 4, 3), draw(4, seed=1)]


def linear():
    """The dearest way to spread two units over three columns: a linear program, maximised."""
    x, c = cp.Variable((2, 3)), cp.Parameter((2, 3), nonneg=True, name="c")
    constraints = [cp.sum(x, axis=1) == 1, x >= 0, x[0, 0] + x[1, 0] <= 1.5]
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(c, x))), constraints)
    return problem, [c], [x], constraints, [draw(2, 2, 3).abs()]


def second_order():
    """Within an ellipsoid and a cone."""
    x, F, c = cp.Variable(3), cp.Parameter((3, 3), name="F"), cp.Parameter(3, name="c")
    constraints = [cp.norm(F @ x) <= 1, cp.SOC(x[0] + 3, x)]
    problem = cp.Problem(cp.Minimize(c @ x + 0.2 * cp.sum_squares(x)), constraints)
    return problem, [F, c], [x], constraints, [draw(2, 3, 3) + 2 * torch.eye(3), draw(3, seed=1)]


def semidefinite():
    """The relaxation of a maximal cut: a positive semidefinite matrix of unit diagonal."""
    X, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True, name="C")
    constraints = [cp.diag(X) == 1]
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), constraints)
    value = draw(2, 3, 3, seed=4)
    return problem, [C], [X], constraints, [value + value.mT]


def entropy():
    """The distribution of largest entropy and utility, which is the softmax."""
    p, c = cp.Variable(4), cp.Parameter(4, name="c")
    constraints = [cp.sum(p) == 1]
    return cp.Problem(cp.Maximize(cp.sum(cp.entr(p)) + c @ p), constraints), [c], [p], constraints, [draw(2, 4)]


def power():
    """The cheapest `x`, `y` of a given weighted geometric mean."""
    x, c, level = cp.Variable(2, pos=True), cp.Parameter(2, pos=True, name="c"), cp.Parameter(name="level")
    problem = cp.Problem(cp.Minimize(c @ x), [cp.PowCone3D(x[:1], x[1:], cp.reshape(level, (1,), order="F"), [0.3])])
    return problem, [c, level], [x], [], [draw(2, 2).abs() + 0.5, torch.tensor(1.2, dtype=torch.float64)]


MODELS = [least_squares, linear, second_order, semidefinite, entropy, power]
models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def by_cvxpy(problem, parameters, variables, duals, values):
    """Variables and multipliers of every sample, by cvxpy's own solve."""
    batch = max(len(v) for v, p in zip(values, parameters, strict=True) if v.dim() > p.ndim)
    rows = []
    for i in range(batch):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = (value[i] if value.dim() > parameter.ndim else value).numpy()
        problem.solve(solver=cp.CLARABEL, **TIGHT)
        multipliers = [
            part for c in duals for part in (c.dual_value if isinstance(c.dual_value, list) else [c.dual_value])
        ]
        rows.append([torch.as_tensor(v).double().flatten() for v in [*(x.value for x in variables), *multipliers]])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@models
def test_variables_and_multipliers_are_those_of_cvxpy(model):
    problem, parameters, variables, duals, values = model()
    layer = ti.nn.Convex(problem, parameters, variables, duals=duals, on_failure="raise")
    found = layer(*values)
    flat = [part for one in found for part in (one if isinstance(one, tuple) else (one,))]
    for mine, theirs in zip(flat, by_cvxpy(problem, parameters, variables, duals, values), strict=True):
        torch.testing.assert_close(mine.reshape(2, -1), theirs, rtol=2e-5, atol=2e-5)  # its accuracy, not ours
    assert layer.report.converged
    assert float(layer.report.residual.max()) < 1e-10


@models
def test_gradients_agree_with_finite_differences(model):
    problem, parameters, variables, _, values = model()
    layer = ti.nn.Convex(problem, parameters, variables, on_failure="raise")
    inputs = [value[:1].clone().requires_grad_() if value.dim() > p.ndim else value.clone().requires_grad_()
              for value, p in zip(values, parameters, strict=True)]  # fmt: skip

    def solve(*values):
        if model is semidefinite:
            values = tuple((value + value.mT) / 2 for value in values)
        return layer(*values)[0]

    assert gradcheck(solve, inputs, fast_mode=True, check_forward_ad=True)
    if model in (least_squares, second_order, semidefinite):
        assert gradgradcheck(solve, inputs, fast_mode=True)
    solve(*inputs).square().sum().backward()
    assert layer.report.backward.converged


def test_largest_entropy_is_the_softmax_with_its_first_three_derivatives():
    problem, parameters, variables, _, (c,) = entropy()
    layer = ti.nn.Convex(problem, parameters, variables)
    mine, wanted = lambda c: layer(c)[0], lambda c: c.softmax(0)
    for _ in range(4):
        torch.testing.assert_close(mine(c[0]), wanted(c[0]), rtol=1e-10, atol=1e-11)
        mine, wanted = torch.func.jacrev(mine), torch.func.jacrev(wanted)


def test_a_quadratic_form_in_a_matrix_of_half_of_the_digits():
    x, P = cp.Variable(3), cp.Parameter((3, 3), PSD=True)
    layer = ti.nn.Convex(cp.Problem(cp.Minimize(cp.quad_form(x, P)), [cp.sum(x) == 1]), [P], [x], on_failure="raise")
    root = draw(2, 3, 3).float()
    matrix = (root @ root.mT + 0.1 * torch.eye(3)).requires_grad_()
    inverse = torch.linalg.solve(matrix.detach().double(), torch.ones(2, 3).double())
    (value,) = layer(matrix)
    torch.testing.assert_close(value.double(), inverse / inverse.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    value[:, 0].sum().backward()
    torch.testing.assert_close(matrix.grad, matrix.grad.mT)


def test_a_program_without_parameters_or_constraints():
    x = cp.Variable(2)
    (found,) = ti.nn.Convex(cp.Problem(cp.Minimize(cp.sum_squares(x - [3, 1]))), [], [x])()
    torch.testing.assert_close(found, torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize("solver", ["qp", "cone"])
def test_the_simplex_projection_is_the_closed_form(solver):
    x, c = cp.Variable(5, nonneg=True), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1])
    layer = ti.nn.Convex(problem, [c], [x], solver=solver, on_failure="raise")
    for f in (lambda f, c: f(c), lambda f, c: torch.autograd.grad(f(c).square().sum(), c)[0]):
        points = draw(6, 5).requires_grad_()
        torch.testing.assert_close(
            f(lambda c: layer(c)[0], points), f(projection.simplex, points), rtol=1e-10, atol=1e-10
        )


def test_programs_go_where_they_belong():
    quadratic, conic = canonicalise(*least_squares()[:3]), canonicalise(*entropy()[:3])
    assert isinstance(quadratic.solve(least_squares()[-1]).program, QPSolution)
    assert isinstance(quadratic.solve(least_squares()[-1], solver="cone").program, ConeSolution)
    assert isinstance(conic.solve(entropy()[-1]).program, ConeSolution)
    with pytest.raises(ValueError, match="has other cones"):
        ti.nn.Convex(*entropy()[:3], solver="qp")


@models
def test_no_constraint_is_lost(model):
    """Against cvxpy itself: one released pair of libraries drops `x >= 0`, which cvxpy keeps apart for some solvers."""
    problem, parameters, variables, _, values = model()
    program = canonicalise(problem, parameters, variables)
    data = program.data(values)
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = (value[1] if value.dim() > parameter.ndim else value).numpy()
    reference, *_ = problem.get_problem_data(cp.CLARABEL)
    assert program.cones.size == reference["A"].shape[0] == reference["b"].shape[0]
    for name, key in (("P", "P"), ("q", "c"), ("A", "A"), ("b", "b")):
        mine, theirs = getattr(data, name), reference.get(key)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            theirs = torch.as_tensor(theirs.toarray() if hasattr(theirs, "toarray") else theirs)
            mine = mine[1] if mine.dim() > theirs.dim() else mine
            torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)


def test_what_a_bound_is_written_as_does_not_matter():
    c = cp.Parameter(2)
    point = torch.tensor([[-1.0, 3.0]], dtype=torch.float64)
    for x, constraints in (
        (cp.Variable(2, nonneg=True), lambda x: [x <= 2]),
        (cp.Variable(2, bounds=[0, 2]), lambda x: []),
        (cp.Variable(2), lambda x: [x >= 0, x <= 2]),
    ):
        for extra in (0, cp.norm(x, 2)):  # with and without a curved cone
            problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c) + 1e-9 * extra), constraints(x))
            (found,) = ti.nn.Convex(problem, [c], [x], on_failure="raise")(point)
            torch.testing.assert_close(found, torch.tensor([[0.0, 2.0]]).double(), rtol=0, atol=1e-8)


def test_attributes_of_variables_and_parameters_come_back_whole():
    D, S, Y = cp.Variable((2, 2), diag=True), cp.Variable((2, 2), symmetric=True), cp.Variable((2, 3))
    d, s, y = cp.Parameter((2, 2), diag=True), cp.Parameter((2, 2), symmetric=True), cp.Parameter((2, 3))
    Z, z = (kind((2, 3), sparsity=[(0, 1), (2, 0)]) for kind in (cp.Variable, cp.Parameter))
    cost = sum(cp.sum_squares(a - b) for a, b in ((D, d), (S, s), (Y, y), (Z, z)))
    layer = ti.nn.Convex(cp.Problem(cp.Minimize(cost)), [d, s, y, z], [Z, Y, S, D], on_failure="raise")
    values = [torch.diag_embed(draw(4, 2)), draw(4, 2, 2, seed=1), draw(4, 2, 3, seed=2), torch.zeros(2, 3).double()]
    values[1] = (values[1] + values[1].mT) / 2
    values[3][0, 2], values[3][1, 0] = 1.5, -0.3
    for found, wanted in zip(layer(*values), [values[3].expand(4, 2, 3), *values[2::-1]], strict=True):
        torch.testing.assert_close(found, wanted)
    leaf = values[1].clone().requires_grad_()
    layer(values[0], leaf, *values[2:])[2][:, 0, 1].sum().backward()
    torch.testing.assert_close(leaf.grad, torch.tensor([[0.0, 0.5], [0.5, 0.0]]).double().expand(4, 2, 2))


def test_a_parameter_without_a_batch_is_shared_and_gets_the_sum():
    problem, parameters, variables, _, (A, b) = least_squares()
    layer = ti.nn.Convex(problem, parameters, variables)
    shared, own = b.clone().requires_grad_(), b.repeat(2, 1).requires_grad_()
    for value in (shared, own):
        layer(A, value)[0].square().sum().backward()
    torch.testing.assert_close(shared.grad, own.grad.sum(0))
    assert layer(A[0], b)[0].shape == (3,)
    assert layer(A[:1], b)[0].shape == (1, 3)


def test_the_dtype_is_kept():
    for model in (least_squares, second_order):
        problem, parameters, variables, duals, values = model()
        layer = ti.nn.Convex(problem, parameters, variables, duals=duals)
        single = [value.float().requires_grad_() for value in values]
        value, *_ = layer(*single)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, layer(*values)[0].float(), rtol=1e-4, atol=1e-5)
        value.sum().backward()
        assert all(leaf.grad.dtype == torch.float32 for leaf in single)
    layer.float()  # holds no tensor that would lose its digits
    torch.testing.assert_close(
        layer(*values)[0], canonicalise(problem, parameters, variables).solve(values).variables[0]
    )


def test_under_transforms():
    problem, parameters, variables, _, (F, c) = second_order()
    layer = ti.nn.Convex(problem, parameters, variables)
    cs = torch.stack([c, c + 0.1])
    mapped = torch.vmap(lambda c: layer(F[0], c)[0])(cs)
    torch.testing.assert_close(mapped, layer(F[0], cs)[0], rtol=1e-10, atol=1e-10)
    gradients = torch.vmap(torch.func.grad(lambda c: layer(F[0], c)[0].sum()))(cs)
    leaf = cs.clone().requires_grad_()
    layer(F[0], leaf)[0].sum().backward()
    torch.testing.assert_close(gradients, leaf.grad, rtol=1e-9, atol=1e-10)


# What has no solution


def ball():
    x, c, r = cp.Variable(2), cp.Parameter(2, name="c"), cp.Parameter(name="r")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.norm(x) <= r, x[0] >= 1]), [c, r], [x]


def test_one_infeasible_sample_in_a_batch():
    layer = ti.nn.Convex(*ball())
    c = draw(3, 2).requires_grad_()
    r = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match=r"infeasible: sample 1 "):
        (value,) = layer(c, r)
    assert layer.report.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    grads = torch.autograd.grad(value.square().sum(), (c, r))
    rows = [0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = layer(c[rows], r[rows])[0]
    torch.testing.assert_close(alone, value[rows], rtol=1e-12, atol=1e-12)
    for grad, mine in zip(grads, torch.autograd.grad(alone.square().sum(), (c, r)), strict=True):
        torch.testing.assert_close(grad, mine, rtol=1e-9, atol=1e-12)
        assert grad[1].abs().max() == 0


@pytest.mark.parametrize("solver", ["qp", "cone"])
def test_infeasible_unbounded_and_broken_samples_of_a_quadratic_program(solver):
    x, c, a = cp.Variable(1), cp.Parameter(1, name="c"), cp.Parameter(name="a")
    layer = ti.nn.Convex(
        cp.Problem(cp.Minimize(c @ x), [x >= a, a * x <= 4]), [c, a], [x], solver=solver, on_failure="nan"
    )
    c = torch.tensor([[1.0], [1.0], [-1.0], [torch.nan]]).double().requires_grad_()
    a = torch.tensor([1.0, 3.0, 0.0, 1.0]).double().requires_grad_()
    (value,) = layer(c, a)
    wanted = [Status.CONVERGED, Status.INFEASIBLE, Status.UNBOUNDED, Status.NON_FINITE]
    assert layer.report.status.tolist() == wanted
    assert value.isnan().flatten().tolist() == [False, True, True, True]
    value[0].sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor([1.0, 0.0, 0.0, 0.0]).double())


def test_raising_keeps_the_report():
    layer = ti.nn.Convex(*ball(), on_failure="raise")
    with pytest.raises(ConvergenceError, match="infeasible: sample 0"):
        layer(draw(1, 2), torch.tensor([0.5]).double())
    assert layer.report.status.tolist() == [Status.INFEASIBLE]


# Options


def test_a_warm_start_takes_fewer_steps_and_can_be_reset():
    layer = ti.nn.Convex(*ball(), warm_start=True)
    c, r = draw(3, 2), torch.tensor(2.0).double()
    (cold,) = layer(c, r)
    assert int(layer.report.steps.min()) > 0
    (warm,) = layer(c + 1e-6, r)
    assert layer.report.steps.tolist() == [0, 0, 0]
    torch.testing.assert_close(warm, cold, rtol=1e-4, atol=1e-5)
    layer(c[:2], r)  # of another size: cold
    assert int(layer.report.steps.min()) > 0
    layer.reset()
    layer(c[:2], r)
    assert int(layer.report.steps.min()) > 0
    quadratic = ti.nn.Convex(*least_squares()[:3], warm_start=True)
    values = least_squares()[-1]
    quadratic(*values)
    assert int(quadratic.report.steps.min()) > 0
    quadratic(*values)
    assert quadratic.report.steps.tolist() == [0, 0]


def test_copies_and_pickles_work_without_cvxpy(monkeypatch):
    layer = ti.nn.Convex(*second_order()[:3])
    values = second_order()[-1]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        monkeypatch.setitem(sys.modules, "cvxpy", None)
        torch.testing.assert_close(other(*values)[0], layer(*values)[0])
    assert "parameters=(F, c)" in repr(layer)


def test_the_problem_is_left_as_it_was():
    problem, parameters, variables, duals, values = least_squares()
    parameters[1].value = values[1].numpy()
    ti.nn.Convex(problem, parameters, variables, duals=duals)
    assert parameters[0].value is None
    assert parameters[1].value is not None
    assert variables[0].value is None
    assert duals[0].dual_value is None


# What is refused


def test_problems_that_are_refused():
    x, y = cp.Variable(2), cp.Variable()
    p, q = cp.Parameter(name="p"), cp.Parameter(name="q")
    cases = [
        (cp.Problem(cp.Minimize(cp.sum_squares(x)), [p * q * x >= 1]), [p, q], [x], "(?s)DPP.*constraint 0"),
        (cp.Problem(cp.Minimize(p * q * y), [y >= 1]), [p, q], [y], "(?s)rules for parameters.*the objective"),
        (cp.Problem(cp.Maximize(cp.sum_squares(x))), [], [x], r"not convex by cvxpy's rules \(DCP\).*the objective"),
        (cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.sqrt(y) <= 1]), [], [x], "constraint 0"),
        (cp.Problem(cp.Minimize(cp.sum(b := cp.Variable(2, boolean=True, name="b")))), [], [b], "boolean variables: b"),
        (cp.Problem(cp.Minimize(cp.abs(cp.Variable(complex=True, name="w") + y))), [], [y], "complex.*: w"),
        (cp.Problem(cp.Minimize(p * y), [y >= 1]), [], [y], "parameters: p of the problem missing"),
        (cp.Problem(cp.Minimize(y), [y >= 1]), [p], [y], "parameters: got p, not in the problem"),
        (cp.Problem(cp.Minimize(y), [y >= 1]), [], [x], "variables: got .*, not in the problem"),
        (cp.Problem(cp.Minimize(y), [y >= 1]), [], [], "variables: got none"),
    ]
    for problem, parameters, variables, message in cases:
        with pytest.raises(ValueError, match=message):
            ti.nn.Convex(problem, parameters, variables)
    with pytest.raises(TypeError, match="problem: got a int"):
        ti.nn.Convex(3, [], [])
    with pytest.raises(TypeError, match=r"parameters: .*expected a list"):
        ti.nn.Convex(cp.Problem(cp.Minimize(y), [y >= 1]), [y], [y])


def test_values_of_parameters_that_are_refused():
    problem, parameters, variables, _, (A, b) = least_squares()
    layer = ti.nn.Convex(problem, parameters, variables)
    with pytest.raises(ValueError, match="got 1 parameters, expected 2: A, b"):
        layer(A)
    with pytest.raises(ValueError, match=r"parameter A: got shape \(2, 3, 4\), expected \(4, 3\)"):
        layer(A.mT, b)
    with pytest.raises(ValueError, match=r"different sizes \(A: 2, b: 3\)"):
        layer(A, b.repeat(3, 1))
    with pytest.raises(TypeError, match=r"parameter b: got torch\.int64"):
        layer(A, b.long())
    with pytest.raises(TypeError, match="parameter b: got a list"):
        layer(A, b.tolist())


@pytest.mark.parametrize(
    ("attributes", "value", "message"),
    [
        ({"nonneg": True}, [[1.0, 1.0], [1.0, -0.5]], "nonneg=True.* 0.5 at batch index 1.*relu"),
        ({"nonpos": True}, [[-1.0, 1.0], [-1.0, -0.5]], "nonpos=True.* 1 at batch index 0"),
        ({"bounds": [0, 2]}, [[1.0, 2.0], [3.0, 1.0]], r"bounds=\[0, 2\].* 1 at batch index 1.*clamp"),
        (
            {"PSD": True},
            [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]]],
            "PSD=True.* 1 at batch index 1.*L @ L.mT",
        ),
        ({"symmetric": True}, [[[1.0, 1.0], [0.0, 1.0]]], "symmetric=True.* 1 at batch index 0"),
        ({"diag": True}, [[[1.0, 1.0], [0.0, 1.0]]], "diag=True.* 1 at batch index 0"),
    ],
)
def test_values_outside_of_the_declared_domain_are_refused(attributes, value, message):
    value = torch.tensor(value)
    p = cp.Parameter(tuple(value.shape[1:]), **attributes)
    x = cp.Variable(value.shape[-1])
    cost = p @ cp.pos(x) if value.dim() == 2 and "nonneg" in attributes else cp.sum(p @ x)
    layer = ti.nn.Convex(cp.Problem(cp.Minimize(cost + cp.sum_squares(x))), [p], [x])
    with pytest.raises(ValueError, match=message):
        layer(value)


def test_options_that_are_refused():
    problem, parameters, variables, *_ = least_squares()
    for option in ({"solver": "scs"}, {"tol": 0}, {"max_steps": 0}, {"warm_start": 1}):
        with pytest.raises(ValueError, match=rf"Convex\({next(iter(option))}="):
            ti.nn.Convex(problem, parameters, variables, **option)
    with pytest.raises(ValueError, match="on_failure: got 'x', expected 'raise', 'warn', 'ignore' or 'nan'"):
        ti.nn.Convex(problem, parameters, variables, on_failure="x")


@pytest.mark.parametrize("missing", ["cvxpy", "clarabel"])
def test_without_the_extra_the_error_says_what_to_install(monkeypatch, missing):
    model = least_squares()[:3]
    layer = ti.nn.Convex(*model, solver="cone")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install torchimplicit\[optim\]"):
        layer(*least_squares()[-1]) if missing == "clarabel" else ti.nn.Convex(*model)
