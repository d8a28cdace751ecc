import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torchimplicit import ConvergenceError, ConvergenceWarning, Status
from torchimplicit.optim import Cones, cone_program
from torchimplicit.optim.cone.search import Data, normal_map
from torchimplicit.optim.cone.symmetric import to_matrix, to_triangle

pytestmark = pytest.mark.filterwarnings("default::torchimplicit.ConvergenceWarning")

KINDS = {
    "zero and nonneg": Cones(zero=2, nonneg=4),
    "second order": Cones(nonneg=1, soc=(3, 3, 1, 2)),
    "semidefinite": Cones(zero=1, psd=(3, 1)),
    "exponential": Cones(nonneg=1, exp=2),
    "power": Cones(power=((0.3, 0.7), (0.2, 0.3, 0.5))),
}
kinds = pytest.mark.parametrize("cones", KINDS.values(), ids=KINDS)


def points(cones, batch=3, seed=0, spread=1.5):
    return spread * torch.randn(batch, cones.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def programs(cones, batch=2, n=8, seed=0):
    """Programs with a known solution, which is unique: made from it by the optimality conditions."""
    generator = torch.Generator().manual_seed(seed)
    A, x, root = (
        torch.randn(batch, *shape, dtype=torch.float64, generator=generator)
        for shape in ((cones.size, n), (n,), (n, n))
    )
    v = points(cones, batch, seed + 1)
    slack = cones.project(v)
    P = root @ root.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    b = (A @ x.unsqueeze(2)).squeeze(2) + slack
    q = -(P @ x.unsqueeze(2)).squeeze(2) - ((slack - v).unsqueeze(1) @ A).squeeze(1)
    return Data(P, q, A, b), x, slack - v, slack


# The projections


@kinds
def test_a_point_is_the_sum_of_its_projections_on_the_cone_and_on_the_polar_cone(cones):
    for scale in (1e-6, 1.0, 1e6):
        v = scale * points(cones, batch=40)
        inside = cones.project(v)
        outside = v - inside
        size = {"rtol": 0, "atol": 1e-12 * scale}
        torch.testing.assert_close(cones.project(inside), inside, **size)  # in the cone, and so it stays
        torch.testing.assert_close(cones.project(outside), torch.zeros_like(v), **size)  # in the polar cone
        torch.testing.assert_close((inside * outside).sum(1), v.new_zeros(len(v)), rtol=0, atol=1e-12 * scale**2)


def test_projections_reach_the_cones_that_they_are_named_after():
    v = points(Cones(exp=50), batch=20).reshape(-1, 3)
    x, y, z = Cones(exp=1).project(v).T
    assert bool((y >= 0).all())
    curved = y > 1e-8
    assert int(curved.sum()) > 300
    assert bool((y * (x / y).exp() <= z * (1 + 1e-9) + 1e-12)[curved].all())
    v = points(Cones(power=((0.3, 0.7),) * 50), batch=20).reshape(-1, 3)
    x, y, z = Cones(power=((0.3, 0.7),)).project(v).T
    assert bool((x.clamp(min=0) ** 0.3 * y.clamp(min=0) ** 0.7 >= z.abs() - 1e-12).all())
    matrices = to_matrix(Cones(psd=(4,)).project(points(Cones(psd=(4,)), batch=20)), 4)
    assert float(torch.linalg.eigvalsh(matrices).min()) > -1e-12


@kinds
def test_derivatives_of_projections_are_right_to_the_second_order(cones):
    v = points(cones, batch=2, seed=3).requires_grad_()
    assert gradcheck(cones.project, (v,), check_forward_ad=True)
    assert gradgradcheck(cones.project, (v,), fast_mode=True)


def test_the_semidefinite_projection_has_derivatives_where_eigenvalues_repeat():
    v = to_triangle(torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64))).requires_grad_()
    assert gradcheck(Cones(psd=(4,)).project, (v,))
    assert gradgradcheck(Cones(psd=(4,)).project, (v,))


@pytest.mark.parametrize(
    "row",
    [
        (-1, 1e-12, -1),
        (1e-12, 1, -1),
        (1, 1e-12, -1),
        (1e-9, -1, 0.1),
        (5, 1, 148),
        (-1e5, 1e-3, -1),
        (0, 1, 0),
        (1, 0, 0),
    ],
)
def test_the_exponential_projection_survives_the_ends_of_its_bracket(row):
    cone, v = Cones(exp=1), torch.tensor([row], dtype=torch.float64)
    inside, scale = cone.project(v), float(v.norm())
    assert float((inside * (inside - v)).sum().abs()) < 1e-12 * scale**2
    torch.testing.assert_close(cone.project(v - inside), torch.zeros_like(v), rtol=0, atol=1e-12 * scale)
    assert bool(torch.func.jacrev(cone.project)(v).isfinite().all())


# The programs


@kinds
def test_the_solution_its_multipliers_and_its_slack_are_found_to_rounding(cones):
    data, x, y, slack = programs(cones)
    solution = cone_program(*data, cones)
    assert solution.report.converged
    for found, wanted in ((solution.value, x), (solution.dual, y), (solution.slack, slack)):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    z = torch.cat([solution.value, solution.slack - solution.dual], 1)
    assert float(normal_map(z, data, cones).abs().max()) < 1e-11


@kinds
@pytest.mark.parametrize(("rows", "cost"), [(1e4, 1.0), (1.0, 1e-5), (1e-3, 1e5)])
def test_the_units_of_the_rows_and_of_the_cost_do_not_matter(cones, rows, cost):
    data, x, y, slack = programs(cones)
    scaled = Data(cost * data.P, cost * data.q, rows * data.A, rows * data.b)
    solution = cone_program(*scaled, cones)
    for found, wanted in ((solution.value, x), (solution.dual * rows / cost, y), (solution.slack / rows, slack)):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@kinds
def test_gradients_agree_with_finite_differences_in_both_modes_and_twice(cones):
    data, *_ = programs(cones, batch=1)
    inputs = [part.requires_grad_() for part in data]

    def solve(P, q, A, b):
        solution = cone_program((P + P.mT) / 2, q, A, b, cones)
        return solution.value, solution.dual

    assert gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True)
    if not (cones.power or cones.exp):  # which take long; their projections are tested above
        assert gradgradcheck(solve, inputs, fast_mode=True)


def test_transforms_agree_with_plain_calls():
    cones = KINDS["second order"]
    data, *_ = programs(cones, batch=2)

    def solve(q):
        return cone_program(data.P, q, data.A, data.b, cones).value

    stacked = torch.stack([data.q, data.q + 0.01])
    mapped = torch.vmap(solve)(stacked)
    for row, q in zip(mapped, stacked, strict=True):
        torch.testing.assert_close(row, solve(q), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.func.jacrev(solve)(data.q), torch.func.jacfwd(solve)(data.q))


def test_shared_data_get_the_sum_of_the_gradients():
    cones = KINDS["second order"]
    data, *_ = programs(cones, batch=3)
    q, shared = data.q, data.A[0].clone().requires_grad_()
    own = data.A[:1].repeat(3, 1, 1).requires_grad_()
    for A in (shared, own):
        cone_program(data.P, q, A, data.b[0], cones).value.square().sum().backward()
    torch.testing.assert_close(shared.grad, own.grad.sum(0))


def test_without_a_batch_there_is_none():
    cones = KINDS["second order"]
    data, x, *_ = programs(cones, batch=1)
    solution = cone_program(*data.map(lambda part: part[0]), cones)
    assert solution.value.shape == x[0].shape
    assert solution.dual.shape == (cones.size,)
    torch.testing.assert_close(solution.value, x[0])


def test_no_quadratic_term_is_a_linear_objective():
    cones = Cones(soc=(3,))
    A = torch.cat([torch.zeros(1, 2), -torch.eye(2)]).double()
    q, b = torch.tensor([3.0, 4.0]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    solution = cone_program(None, q, A, b, cones)  # min q'x for |x| <= 1
    torch.testing.assert_close(solution.value, torch.tensor([-0.6, -0.8]).double())


def test_half_of_the_digits_in_and_out():
    cones = KINDS["second order"]
    data, x, *_ = programs(cones)
    single = data.map(lambda part: part.float().requires_grad_())
    solution = cone_program(*single, cones)
    assert solution.value.dtype == solution.dual.dtype == torch.float32
    torch.testing.assert_close(solution.value, x.float(), rtol=1e-4, atol=1e-4)
    solution.value.sum().backward()
    assert single.q.grad.dtype == torch.float32


def test_no_grad_and_inference_mode_give_the_same_value():
    cones = KINDS["second order"]
    data, x, *_ = programs(cones)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(cone_program(*data, cones).value, x)


# What has no solution


def failing():
    """Four programs `min |x|^2 / 2 - q'x` for `|x| <= r`, `x_0 >= l`: sound, infeasible, not finite, sound."""
    cones = Cones(nonneg=1, soc=(3,))
    A = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]).double()
    b = torch.tensor([[-0.5, 1.0, 0, 0], [-2.0, 1.0, 0, 0], [-0.5, torch.nan, 0, 0], [-0.5, 2.0, 0, 0]]).double()
    q = torch.tensor([[0.1, -2.0], [1.0, 1.0], [1.0, 1.0], [0.3, 5.0]]).double()
    return torch.eye(2).double(), q, A, b, cones


def test_each_program_has_its_own_status_and_its_mates_notice_nothing():
    P, q, A, b, cones = failing()
    q, A = q.requires_grad_(), A.requires_grad_()
    with pytest.warns(
        ConvergenceWarning, match=r"infeasible: sample 1 .*\n.*\n  non_finite: sample 2|non_finite: sample"
    ):
        solution = cone_program(P, q, A, b, cones, on_failure="warn")
    assert solution.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.NON_FINITE, Status.CONVERGED]
    assert bool(solution.value.isfinite().all())
    grads = torch.autograd.grad(solution.value.square().sum(), (q, A))
    assert grads[0][[1, 2]].abs().max() == 0
    alone = cone_program(P, q[[0, 3]], A, b[[0, 3]], cones)
    torch.testing.assert_close(alone.value, solution.value[[0, 3]], rtol=1e-12, atol=1e-12)
    for grad, other in zip(grads, torch.autograd.grad(alone.value.square().sum(), (q, A)), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-12)


def test_raising_ignoring_and_marking_what_failed():
    P, q, A, b, cones = failing()
    q = q.requires_grad_()
    with pytest.raises(ConvergenceError, match="infeasible: sample 1") as raised:
        cone_program(P, q, A, b, cones)
    assert raised.value.report.failed.tolist() == [1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(cone_program(P, q, A, b, cones, on_failure="ignore").value.isfinite().all())
        solution = cone_program(P, q, A, b, cones, on_failure="nan")
        assert solution.value.isnan().all(1).tolist() == [False, True, True, False]
        (grad,) = torch.autograd.grad(solution.value.sum(), q)
    assert bool(grad.isfinite().all())
    assert bool((grad[[0, 3]] != 0).any(1).all())


def test_an_unbounded_program_is_called_so():
    A = torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]).double()  # |x_1| <= x_0 + 1 in part
    b = torch.tensor([1.0, 0.0, 0.0]).double()
    cones = Cones(soc=(3,))
    with pytest.raises(ConvergenceError, match="unbounded: sample 0"):
        cone_program(
            None, torch.tensor([0.0, -1.0]).double(), A * torch.tensor([0.0, 1.0]).double(), b * 0, Cones(nonneg=3)
        )
    solution = cone_program(
        None, torch.tensor([-1.0, 0.0]).double(), A[[0, 2, 2]], torch.zeros(3).double(), cones, on_failure="ignore"
    )
    assert solution.status.tolist() == [Status.UNBOUNDED]


def test_a_program_that_is_not_convex_is_called_so():
    P, q, A, b, cones = failing()
    matrices = torch.stack([P, -P]).requires_grad_()
    solution = cone_program(matrices, q[0], A, b[0], cones, on_failure="nan")
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONCONVEX]
    (grad,) = torch.autograd.grad(solution.value[0].sum(), matrices)
    assert grad[1].abs().max() == 0
    with pytest.raises(ValueError, match="not symmetric at batch index 1"):
        cone_program(torch.stack([P, P + torch.ones(2, 2).triu(1)]), q[0], A, b[0], cones)


def test_too_few_steps_are_reported_as_such():
    P, q, A, b, cones = failing()
    solution = cone_program(P, q[1], A, b[1], cones, max_steps=1, on_failure="ignore")
    assert solution.status.tolist() == [Status.MAX_STEPS]
    assert cone_program(P, q[1], A, b[1], cones, on_failure="ignore").status.tolist() == [Status.INFEASIBLE]


def test_tol_decides_what_counts_as_solved():
    data, *_ = programs(KINDS["power"])
    solution = cone_program(*data, KINDS["power"], tol=1e-18, on_failure="ignore")
    assert set(solution.status.tolist()) == {Status.STAGNATED}
    assert cone_program(*data, KINDS["power"]).report.converged


# What has no derivative


def test_where_the_solution_is_not_unique_the_backward_solve_says_so():
    A = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]]).double()
    b = torch.tensor([2.0, 0.0, 0.0, -1.0]).double()
    A, b = A[[3, 0, 1, 2]], b[[3, 0, 1, 2]]  # min x_0 + x_1 for x_0 + x_1 >= 1, |x| <= 2: a segment of solutions
    q = torch.ones(2, dtype=torch.float64, requires_grad=True)
    solution = cone_program(None, q, A, b, Cones(nonneg=1, soc=(3,)), on_failure="warn")
    assert solution.report.converged
    with pytest.warns(ConvergenceWarning, match="not unique"):
        solution.value[0].backward()
    assert solution.report.backward.status.tolist() == [Status.STAGNATED]
    assert bool(q.grad.isfinite().all())


def test_equations_that_are_there_twice_cost_the_multipliers_alone():
    A = torch.tensor([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]).double()
    b = torch.tensor([1.0, 2.0, 5.0, 0.0, 0.0]).double().requires_grad_()
    q = torch.tensor([1.0, -1.0]).double().requires_grad_()
    solution = cone_program(torch.eye(2).double(), q, A, b, Cones(zero=2, soc=(3,)))
    torch.testing.assert_close(solution.value.detach(), torch.tensor([-0.5, 1.5]).double())
    (grad,) = torch.autograd.grad(solution.value[0], q)  # x = (1 -+ (q_0 - q_1)) / 2
    torch.testing.assert_close(grad, torch.tensor([-0.5, 0.5]).double())
    assert solution.report.backward.converged
    assert solution.report.backward.steps.tolist() == [2]  # by least squares, and said so


# Warm starts


def test_a_warm_start_spares_the_interior_point_solver_where_newton_arrives():
    cones = KINDS["exponential"]
    data, *_ = programs(cones)
    first = cone_program(*data, cones)
    near = data._replace(q=data.q + 1e-4)
    warm, cold = cone_program(*near, cones, warm_start=first), cone_program(*near, cones)
    assert warm.report.steps.tolist() == [0, 0]
    assert int(cold.report.steps.min()) > 0
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-10, atol=1e-10)


def test_a_warm_start_from_afar_falls_back_on_the_interior_point_solver():
    cones = KINDS["second order"]
    data, *_ = programs(cones)
    other, x, *_ = programs(cones, seed=7)
    solution = cone_program(*other, cones, warm_start=cone_program(*data, cones))
    assert solution.report.converged
    torch.testing.assert_close(solution.value, x, rtol=1e-9, atol=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soc": (0,)}, r"Cones\(soc=\(0,\)\): expected a tuple of integers >= 1"),
        ({"zero": -1}, "zero=-1.*integer >= 0"),
        ({"exp": True}, "exp=True.*integer"),
        ({"power": ((0.5, 0.6),)}, "sum 1"),
    ],
)
def test_impossible_cones_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cones(**options)


def test_data_that_do_not_fit_are_refused():
    data, *_ = programs(KINDS["exponential"], batch=2)
    cones = KINDS["exponential"]
    with pytest.raises(ValueError, match=r"b: got shape \(2, 6\), expected \(7,\)"):
        cone_program(*data._replace(b=data.b[:, :6]), cones)
    with pytest.raises(ValueError, match=r"batches of \[1, 2\]"):
        cone_program(*data._replace(q=data.q[:1]), cones)
    with pytest.raises(TypeError, match=r"q: got torch\.int64"):
        cone_program(*data._replace(q=data.q.long()), cones)
    for option, message in (({"tol": 0}, "tol"), ({"max_steps": 0}, "max_steps"), ({"on_failure": "no"}, "on_failure")):
        with pytest.raises(ValueError, match=message):
            cone_program(*data, cones, **option)
