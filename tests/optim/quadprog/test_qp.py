"""Quadratic programs: right to rounding, at every order, and honest about those without a solution."""

import copy
import pickle
from itertools import combinations

import pytest
import torch

import torchimplicit as ti
from torchimplicit import Status, qp
from torchimplicit.optim import Duals

INF = torch.inf


def program(batch=3, n=6, m=6, p=2, k=0, seed=0):
    """A random strictly convex program whose constraints can be met."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    L = draw(batch, n, n)
    Q = L @ L.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    G, A, C, inside = draw(batch, m, n), draw(batch, p, n), draw(batch, k, n), draw(batch, n, 1)
    room = torch.rand(batch, m, 1, generator=generator, dtype=torch.float64)
    h, b, c = (G @ inside + room).squeeze(2), (A @ inside).squeeze(2), (C @ inside).squeeze(2)
    return {"Q": Q, "q": draw(batch, n), "G": G, "h": h, "A": A, "b": b} | (
        {"C": C, "l": c - 0.1, "u": c + 0.2} if k else {}
    )


def optimality(solution, Q, q, G=None, h=None, A=None, b=None, C=None, l=None, u=None):  # noqa: E741
    """The largest violation of a Karush-Kuhn-Tucker condition, from the definitions alone."""
    z, duals = solution.value, solution.duals
    force = torch.einsum("...ij,...j->...i", Q, z) + q
    parts = []
    if G is not None:
        gap = h - torch.einsum("...ij,...j->...i", G, z)
        force = force + torch.einsum("...ij,...i->...j", G, duals.inequality)
        parts += [(-gap).clamp(min=0), (-duals.inequality).clamp(min=0), gap * duals.inequality]
    if A is not None:
        force = force + torch.einsum("...ij,...i->...j", A, duals.equality)
        parts.append(torch.einsum("...ij,...j->...i", A, z) - b)
    if C is not None:
        reached, y = torch.einsum("...ij,...j->...i", C, z), duals.bounds
        force = force + torch.einsum("...ij,...i->...j", C, y)
        parts += [(reached - u).clamp(min=0), (l - reached).clamp(min=0)]
        parts += [y.clamp(min=0) * (u - reached), (-y).clamp(min=0) * (reached - l)]
    return max(part.abs().max().item() for part in [force, *parts])


@pytest.mark.parametrize(
    ("n", "m", "p", "k"),
    [(6, 6, 2, 0), (20, 20, 4, 5), (100, 100, 20, 0), (5, 60, 1, 0), (10, 0, 3, 30), (12, 8, 0, 8), (8, 0, 3, 0)],
)
def test_solution_meets_the_conditions_to_rounding(n, m, p, k):
    given = program(8, n, m, p, k)
    given = {name: value for name, value in given.items() if value.shape[-1] and value.shape[1]}
    solution = qp(**given)
    assert solution.report.converged
    assert optimality(solution, **given) < 1e-11 * (1 + solution.value.abs().max())


def brute_force(Q, q, G, h):
    """The optimum over every set of active rows, one program."""
    best, value = None, INF
    n, m = len(q), len(h)
    for count in range(min(n, m) + 1):
        for rows in combinations(range(m), count):
            E = G[list(rows)]
            system = torch.cat([torch.cat([Q, E.mT], 1), torch.cat([E, torch.zeros(count, count).to(Q)], 1)])
            z = torch.linalg.lstsq(system, torch.cat([-q, h[list(rows)]])[:, None]).solution[:n, 0]
            if (G @ z <= h + 1e-9).all() and 0.5 * z @ Q @ z + q @ z < value - 1e-12:
                best, value = z, 0.5 * z @ Q @ z + q @ z
    return best


def test_solution_is_the_one_that_enumeration_finds():
    given = program(6, 3, 5, 0)
    given = {name: given[name] for name in "QqGh"}
    found = qp(**given).value
    expected = torch.stack([brute_force(*(given[name][i] for name in "QqGh")) for i in range(6)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def everything(*tensors):
    names = ("Q", "q", "G", "h", "A", "b", "C", "l", "u")
    given = dict(zip(names, tensors, strict=False))
    given["Q"] = (given["Q"] + given["Q"].mT) / 2
    solution = qp(**given)
    return solution.value, *solution.duals, solution.slack


def leaves(**given):
    return [value.clone().requires_grad_() for value in given.values()]


def test_first_and_second_derivatives_of_solution_duals_and_slacks():
    inputs = leaves(**program(2, 4, 3, 1, 3, seed=3))
    active = qp(*inputs).active
    assert (active.bounds != 0).any()
    assert (active.inequality != 0).any()
    assert torch.autograd.gradcheck(everything, inputs, atol=1e-7)
    assert torch.autograd.gradgradcheck(everything, inputs, atol=1e-6, fast_mode=True)


def test_function_transforms():
    given = program(2, 4, 4, 1)
    fixed = [given[name] for name in "GhAb"]

    def energy(q):
        return (qp(given["Q"], q, *fixed).value ** 3).sum()

    hessian = torch.func.hessian(energy)(given["q"])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(energy, given["q"]))

    def value(q, h):
        return qp(given["Q"], q, given["G"], h, given["A"], given["b"]).value

    for backward, forward in zip(
        torch.func.jacrev(value, (0, 1))(given["q"], given["h"]),
        torch.func.jacfwd(value, (0, 1))(given["q"], given["h"]),
        strict=True,
    ):
        torch.testing.assert_close(backward, forward)
    each = torch.vmap(lambda *one: qp(*one).value)(*given.values())
    torch.testing.assert_close(each, qp(**given).value)

    def loss(q, Q, G, h, A, b):
        return qp(Q, q, G, h, A, b).value.square().sum()

    order = [given[name] for name in ("q", "Q", "G", "h", "A", "b")]
    grads = torch.vmap(torch.func.grad(loss))(*order)
    q = given["q"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(q, *order[1:]), q)
    torch.testing.assert_close(grads, expected)


def test_shared_parameters_get_the_sum_of_gradients():
    given = program(4, 5, 5, 1)
    G, h = given["G"][0], given["h"].amin(0) + 5
    shared = G.clone().requires_grad_()
    apart = G.expand(4, 5, 5).clone().requires_grad_()
    for rows in (shared, apart):
        qp(given["Q"], 9 * given["q"], rows, h).value.square().sum().backward()
    torch.testing.assert_close(shared.grad, apart.grad.sum(0))
    assert (shared.grad != 0).any()


def test_no_batch_at_all_and_dtypes():
    solution = qp(torch.eye(2), torch.tensor([-1.0, -2.0]), torch.ones(1, 2), torch.ones(1))
    assert solution.value.shape == (2,)
    assert solution.value.dtype == torch.float32
    assert solution.duals.inequality.shape == (1,)
    assert solution.status.shape == (1,)
    half = qp(torch.eye(2).half(), torch.tensor([[-1.0, -2.0]]).half(), l=torch.zeros(2).half())
    assert half.value.dtype == torch.float16
    with torch.inference_mode():
        assert torch.equal(
            qp(torch.eye(2), torch.tensor([-1.0, -2.0]), torch.ones(1, 2), torch.ones(1)).value, solution.value
        )


def test_linear_and_semidefinite_programs():
    q = torch.tensor([[-1.0, -2.0], [-2.0, -1.0]], dtype=torch.float64)
    h = torch.ones(1, dtype=torch.float64, requires_grad=True)
    solution = qp(None, q, torch.ones(1, 2).double(), h, l=torch.zeros(2).double())
    torch.testing.assert_close(solution.value, torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
    solution.value.sum().backward()
    torch.testing.assert_close(h.grad, torch.tensor([2.0]).double())
    singular = torch.ones(2, 2).double()
    z = qp(singular, torch.tensor([-1.0, 1.0]).double(), u=torch.ones(2).double()).value
    torch.testing.assert_close(z, torch.tensor([1.0, -2.0]).double())


def test_random_linear_programs_agree_with_highs():
    from scipy.optimize import linprog

    given = program(8, 12, 24, 3)
    q = -(
        given["G"].mT @ torch.rand(8, 24, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).squeeze(2)
    solution = qp(None, q, *(given[name] for name in "GhAb"))
    for i in range(8):
        reference = linprog(q[i].numpy(), *(given[name][i].numpy() for name in "GhAb"), bounds=(None, None))
        assert abs(float(q[i] @ solution.value[i]) - reference.fun) < 1e-9 * (1 + abs(reference.fun))


def mixed():
    """Programs with no number, infeasible, not convex, with repeated rows and equations, ill-conditioned, and sound."""
    given = {name: value.clone() for name, value in program(6, 6, 6, 2).items()}
    given["q"][0, 0] = torch.nan
    given["G"][1, 1], given["h"][1, :2] = -given["G"][1, 0], torch.tensor([-1.0, -1.0])
    given["Q"][2] = -torch.eye(6)
    given["G"][3] = given["G"][3, :1].clone()
    given["h"][3] = given["h"][3].amin() + 2
    given["A"][3, 1], given["b"][3, 1] = given["A"][3, 0].clone(), given["b"][3, 0].clone()
    spread = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))).Q
    given["Q"][4] = spread @ torch.diag(torch.logspace(-8, 0, 6, dtype=torch.float64)) @ spread.mT
    given["Q"][4] = (given["Q"][4] + given["Q"][4].mT) / 2
    return given


def test_bad_programs_are_flagged_and_touch_no_other():
    inputs, healthy = leaves(**mixed()), leaves(**program(6, 6, 6, 2))
    shared, alone = (torch.ones(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bad = qp(inputs[0], inputs[1] + shared, *inputs[2:], on_failure="ignore")
    wanted = [Status.NON_FINITE, Status.INFEASIBLE, Status.NONCONVEX] + 3 * [Status.CONVERGED]
    assert bad.status.tolist() == [int(status) for status in wanted]
    good = qp(healthy[0], healthy[1] + alone, *healthy[2:])
    for mine, other in ((bad.value, good.value), (bad.duals.inequality, good.duals.inequality)):
        torch.testing.assert_close(mine[5], other[5], rtol=1e-13, atol=1e-14)
    bad.value.square().sum().backward()
    good.value[5].square().sum().backward()
    for mine, other in zip(inputs, healthy, strict=True):
        assert mine.grad.isfinite().all()
        assert (mine.grad[:3] == 0).all()
        torch.testing.assert_close(mine.grad[5], other.grad[5], rtol=1e-12, atol=1e-13)
    assert shared.grad.isfinite().all()
    only = [x[3:].detach() for x in inputs]
    again = torch.ones(6, dtype=torch.float64, requires_grad=True)
    qp(only[0], only[1] + again, *only[2:]).value.square().sum().backward()
    torch.testing.assert_close(shared.grad, again.grad, rtol=1e-9, atol=1e-12)


def test_what_is_no_number_gets_no_gradient_from_function_transforms_either():
    Q, bound = torch.eye(2, dtype=torch.float64), torch.full((2,), -9.0, dtype=torch.float64)
    q = torch.tensor([[1.0, 2.0], [torch.nan, 4.0], [5.0, 6.0]], dtype=torch.float64)
    slope = torch.func.grad(lambda q: qp(Q, q, l=bound, on_failure="ignore").value.sum())(q)
    expected = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [-1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(slope, expected)


def test_message_names_programs_and_remedies():
    with pytest.raises(
        ti.ConvergenceError, match=r"(?s)infeasible: sample 1 .*nonconvex: sample 2 .*non_finite: sample 0|sample 0"
    ):
        qp(**mixed())
    with pytest.warns(ti.ConvergenceWarning, match="closest_feasible"):
        qp(**mixed(), on_failure="warn")
    lost = qp(**mixed(), on_failure="nan").value
    assert lost[:3].isnan().all()
    assert lost[3:].isfinite().all()


def test_infeasible_programs_come_with_a_contradiction():
    given = mixed()
    solution = qp(**given, on_failure="ignore")
    y, nu = solution.certificate.duals.inequality[1], solution.certificate.duals.equality[1]
    combined = given["G"][1].mT @ y + given["A"][1].mT @ nu
    assert (y >= 0).all()
    assert combined.abs().max() < 1e-8 * y.max()
    assert given["h"][1] @ y + given["b"][1] @ nu < 0  # 0 z <= something negative
    assert (solution.certificate.duals.inequality[3:] == 0).all()


def test_unbounded_programs_come_with_a_ray():
    q, G = torch.tensor([-1.0, -2.0]).double(), torch.tensor([[1.0, -1.0]]).double()
    solution = qp(None, q, G, torch.ones(1).double(), l=torch.zeros(2).double(), on_failure="ignore")
    assert solution.status.item() == Status.UNBOUNDED
    ray = solution.certificate.ray
    assert q @ ray < 0
    assert (G @ ray <= 1e-8).all()
    assert (ray >= -1e-8).all()
    free = qp(torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([1.0, 1.0]), on_failure="ignore")
    assert free.status.item() == Status.UNBOUNDED


def test_weakly_active_bounds_count_as_not_met():
    h = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)  # the first is met without a multiplier
    solution = qp(torch.eye(2).double(), torch.tensor([-1.0, -1.0]).double(), torch.eye(2).double(), h)
    assert solution.active.inequality.tolist() == [0, 1]
    solution.value.sum().backward()
    torch.testing.assert_close(h.grad, torch.tensor([0.0, 1.0]).double())


def test_repeated_and_redundant_rows():
    ones = torch.ones(3, 2, dtype=torch.float64)
    h = torch.ones(3, dtype=torch.float64, requires_grad=True)
    solution = qp(torch.eye(2).double(), torch.tensor([-1.0, -2.0]).double(), ones, h)
    torch.testing.assert_close(solution.value.detach(), torch.tensor([0.0, 1.0]).double())
    assert int((solution.duals.inequality > 0).sum()) == 1
    solution.value.sum().backward()
    torch.testing.assert_close(h.grad.sum(), torch.tensor(1.0).double())
    equal = qp(torch.eye(2), torch.ones(2), A=torch.ones(2, 2), b=torch.ones(2), l=torch.zeros(2))
    torch.testing.assert_close(equal.value, torch.tensor([0.5, 0.5]))
    corner = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1], [-1, 1], [2, 1]]).double()
    z = qp(torch.eye(2).double(), -3 * torch.ones(2).double(), corner, torch.tensor([1.0, 1, 2, 0, 0, 3]).double())
    torch.testing.assert_close(z.value, torch.ones(2).double())


def test_bounds_that_are_equal_or_cross():
    q, low, high = -torch.ones(2), torch.tensor([0.3, -1.0]), torch.tensor([0.3, 0.2])
    torch.testing.assert_close(qp(torch.eye(2), q, l=low, u=high).value, torch.tensor([0.3, 0.2]))
    assert qp(torch.eye(2), q, l=high + 1, u=low, on_failure="ignore").status.item() == Status.INFEASIBLE
    torch.testing.assert_close(
        qp(torch.eye(2), q, l=high + 1, u=low, closest_feasible=True).value, (high + 1 + low) / 2
    )
    loose = qp(torch.eye(2), q, torch.ones(1, 2), torch.tensor([INF]))
    torch.testing.assert_close(loose.value, torch.ones(2))


def test_closest_feasible_splits_a_contradiction():
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]]).double().repeat(2, 1, 1)
    h = torch.tensor([[-1.0, -2.0, 0.1], [1.0, 1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.0, -2.0], [0.3, -2.0]], dtype=torch.float64, requires_grad=True)

    def value(h, q):
        return qp(torch.eye(2).double(), q, G, h, closest_feasible=True).value

    assert value(h, q)[0, 0].item() == pytest.approx(0.5)  # halfway between z <= -1 and z >= 2
    torch.testing.assert_close(value(h, q)[1], qp(torch.eye(2).double(), q[1], G[1], h[1]).value)
    assert torch.autograd.gradcheck(value, (h, q))
    assert torch.autograd.gradgradcheck(value, (h, q), fast_mode=True)
    with pytest.raises(NotImplementedError, match="transforms"):
        torch.vmap(value)(h, q)


def test_smoothed_programs():
    given = program(2, 4, 4, 1)
    for weight in (1.0, 1e-2, 1e-6):
        solution = qp(**given, smoothed=weight)
        products = solution.duals.inequality * solution.slack
        torch.testing.assert_close(products, torch.full_like(products, weight), rtol=1e-5, atol=0)
    torch.testing.assert_close(qp(**given, smoothed=1e-9).value, qp(**given).value, rtol=0, atol=1e-6)
    inputs = leaves(**given)

    def value(Q, *rest):
        return qp((Q + Q.mT) / 2, *rest, smoothed=1e-2).value

    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True)
    cost = torch.tensor([-1.0, -1.2], dtype=torch.float64, requires_grad=True)
    linear = {"G": torch.ones(1, 2).double(), "h": torch.ones(1).double(), "l": torch.zeros(2).double()}
    for smoothed, informative in ((None, False), (0.1, True)):
        (grad,) = torch.autograd.grad(qp(None, cost, **linear, smoothed=smoothed).value[1], cost)
        assert bool((grad.abs() > 0.1).all()) is informative
    for strong in (1.0, 10.0, 1e4):  # the product is met by a negative multiplier and a negative slack, too
        solution = qp(None, cost.repeat(3, 1) * torch.tensor([[1.0], [0.1], [4.0]]), **linear, smoothed=strong)
        alone = qp(None, 4 * cost[None], **linear, smoothed=strong)
        assert torch.equal(solution.value[2:], alone.value)
        for product in (solution.duals.inequality * solution.slack, -solution.duals.bounds * solution.value):
            torch.testing.assert_close(product, torch.full_like(product, strong), rtol=1e-5, atol=0)
    linear["h"] = -linear["h"]
    assert qp(None, cost, **linear, smoothed=0.1, on_failure="ignore").status.item() == Status.INFEASIBLE


def test_warm_start_tries_the_earlier_bounds():
    given = program(16, 20, 20, 4)
    first = qp(**given)
    given["q"] = given["q"] + 1e-3
    warm, cold = qp(**given, warm_start=first), qp(**given)
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-12, atol=1e-12)
    assert warm.steps.sum() < 0.2 * cold.steps.sum()
    far = {**given, "q": 10 * given["q"].flip(1)}
    torch.testing.assert_close(qp(**far, warm_start=first).value, qp(**far).value, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="16 programs"):
        qp(**program(2, 20, 20, 4), warm_start=first)
    with pytest.raises(TypeError, match="QPSolution"):
        qp(**given, warm_start=first.value)


def test_singular_backward_solve_is_reported():
    cost = torch.tensor([[-1.0, -1.0]], dtype=torch.float64, requires_grad=True)  # every point of an edge is optimal
    linear = {"G": torch.ones(1, 2).double(), "h": torch.ones(1).double(), "l": torch.zeros(2).double()}
    solution = qp(None, cost, **linear)
    with pytest.raises(ti.ConvergenceError, match="not unique"):
        solution.value[0, 1].backward()
    quiet = qp(None, cost, **linear, on_failure="ignore")
    quiet.value[0, 1].backward()
    assert quiet.backward.status.tolist() == [Status.STAGNATED]
    assert cost.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"Q": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, ValueError, "not symmetric for programs"),
        ({"Q": torch.eye(3)}, ValueError, r"expected \(\.\.\., 2, 2\)"),
        ({"G": torch.ones(3, 3)}, ValueError, r"expected \(\.\.\., 1, 2\)|to fit q"),
        ({"h": None}, ValueError, "G without h"),
        ({"A": torch.ones(1, 2)}, ValueError, "A without b"),
        ({"C": torch.ones(1, 2)}, ValueError, "C without l and u"),
        ({"l": torch.zeros(3)}, ValueError, "bounds on z itself"),
        ({"h": torch.ones(5, 1), "q": torch.ones(4, 2)}, ValueError, "batch sizes"),
        ({"q": torch.ones(2, dtype=torch.int64)}, TypeError, "floating"),
        ({"q": None}, TypeError, "q=None"),
        ({"G": torch.ones(2)}, ValueError, "shape"),
        ({"smoothed": -1}, ValueError, "smoothed"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"on_failure": "hope"}, ValueError, "on_failure"),
        ({"closest_feasible": 1}, ValueError, "closest_feasible"),
    ],
)
def test_bad_input(change, error, words):
    given = {"Q": torch.eye(2), "q": torch.ones(2), "G": torch.ones(1, 2), "h": torch.ones(1)}
    with pytest.raises(error, match=words):
        qp(**{**given, **change})


def test_max_steps_is_obeyed():
    given = program(4, 20, 20, 4)
    assert (qp(**given, max_steps=1, on_failure="ignore").steps < qp(**given).steps).any()


def test_layer_learns_trains_and_travels():
    torch.manual_seed(0)
    layer = ti.nn.QP(4, inequalities=3, equalities=1, lower=-1.0, upper=1.0)
    q = torch.randn(8, 4)
    z = layer(q)
    assert layer.report.converged
    assert (z.abs() <= 1 + 1e-6).all()
    z.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert any((parameter.grad != 0).any() for parameter in layer.parameters())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(q), z)
    torch.testing.assert_close(layer(q, warm_start=layer.solution), z)
    with pytest.raises(ValueError, match="expected"):
        layer(torch.randn(8, 3))
    with pytest.raises(ValueError, match="ridge"):
        ti.nn.QP(4, ridge=0.0)
    assert isinstance(layer.solution.duals, Duals)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_units_do_not_matter(scale):
    generator = torch.Generator().manual_seed(0)
    G, h = torch.randn(8, 10, 6, generator=generator).double(), torch.rand(8, 10, generator=generator).double()
    q, one = torch.randn(8, 6, generator=generator).double(), torch.ones(6).double()
    expected = qp(None, q, G, h, l=-one, u=one)
    found = qp(None, q, G, scale * h, l=-scale * one, u=scale * one)
    torch.testing.assert_close(found.value / scale, expected.value, rtol=1e-9, atol=1e-12)
    steep = qp(None, q, 1e9 * G, 1e9 * h, l=-one, u=one)
    torch.testing.assert_close(steep.value, expected.value, rtol=1e-8, atol=1e-9)


def test_costs_too_far_apart_are_not_called_solved():
    costs = torch.tensor([1e3, -1e-7, -1.2e-7], dtype=torch.float64)
    solution = qp(
        None, costs, torch.ones(1, 3).double(), torch.ones(1).double(), l=torch.zeros(3).double(), on_failure="ignore"
    )
    right = torch.allclose(solution.value, torch.tensor([0.0, 0.0, 1.0]).double(), atol=1e-6)
    assert right or solution.status.item() == Status.MAX_STEPS


def test_assignments_are_found_in_their_degenerate_corners():
    from scipy.optimize import linear_sum_assignment

    k, eye = 4, torch.eye(4).double()
    costs = torch.rand(12, k, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = torch.cat((eye.repeat_interleave(k, 1), eye.repeat(1, k)))  # one of these equations is redundant
    solution = qp(None, costs.flatten(1), A=A, b=torch.ones(2 * k).double(), l=torch.zeros(k * k).double())
    for cost, z in zip(costs, solution.value.view(-1, k, k), strict=True):
        rows, columns = linear_sum_assignment(cost.numpy())
        expected = torch.zeros(k, k).double()
        expected[rows, columns] = 1
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-8)


def test_single_precision_may_round_a_gram_matrix_to_an_indefinite_one():
    factor = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    Q, q = factor @ factor.T, torch.randn(20, generator=torch.Generator().manual_seed(1))
    assert qp(Q, q, l=-torch.ones(20), u=torch.ones(20)).report.converged
    refused = qp(
        Q.double() - 1e-4 * torch.eye(20).double(), q.double(), l=-torch.ones(20).double(), on_failure="ignore"
    )
    assert refused.status.item() == Status.NONCONVEX


def test_entries_on_their_bounds_are_exactly_there():
    q, upper = (
        torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.full((5,), 0.3).double(),
    )
    z = qp(
        torch.eye(5).double(), 3 * q, A=torch.ones(1, 5).double(), b=torch.ones(1).double(), l=0 * upper, u=upper
    ).value
    assert (z >= 0).all()
    assert (z <= upper).all()


def test_slack_is_that_of_the_bounds_as_they_were_given():
    G, h = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-1.0, -2.0])
    solution = qp(torch.eye(2), torch.ones(2), G, h, closest_feasible=True)
    torch.testing.assert_close(solution.slack, h - G @ solution.value)
    assert (solution.slack < 0).all()


@pytest.mark.parametrize("right", [[1.0], [1.0, 0.0, 1.0]])
def test_an_equation_that_no_point_can_meet_is_never_dropped(right):
    A = torch.zeros(len(right), 2)
    solution = qp(torch.eye(2), torch.ones(2), A=A, b=torch.tensor(right), l=-torch.ones(2), on_failure="ignore")
    assert solution.status.item() == Status.INFEASIBLE


@pytest.mark.parametrize("smoothed", [None, 1e-2])
def test_a_gradient_that_is_no_number_is_reported_and_stays_with_its_program(smoothed):
    given = program(3, 4, 4, 1)
    shared = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    given["q"] = given["q"] + shared
    grad = torch.ones(3, 4, dtype=torch.float64)
    grad[1, 0] = torch.nan
    with pytest.raises(ti.ConvergenceError, match="non_finite: sample 1"):
        qp(**given, smoothed=smoothed).value.backward(grad)
    solution = qp(**given, smoothed=smoothed, on_failure="ignore")
    assert solution.backward is None
    solution.value.backward(grad)
    assert shared.grad.isfinite().all()
    assert solution.backward.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert "backward solve: 2/3 converged" in str(solution.report)


@pytest.mark.parametrize("name", ["Q", "q", "G", "h", "A", "b"])
@pytest.mark.parametrize("smoothed", [None, 1e-2])
def test_a_program_that_is_no_number_stays_out_of_what_programs_share(smoothed, name):
    given = program(3, 4, 4, 1)
    spoilt = {key: value.clone() for key, value in given.items()}
    spoilt[name][1] = torch.nan
    found = []
    for programs, rows in ((spoilt, slice(None)), ({key: value[::2] for key, value in given.items()}, slice(0, 2))):
        shared = {key: torch.zeros_like(value[0], requires_grad=True) for key, value in given.items()}
        solution = qp(
            **{key: value[rows] + shared[key] for key, value in programs.items()},
            smoothed=smoothed,
            on_failure="ignore",
        )
        solution.value.square().sum().backward()
        found.append((solution, [part.grad for part in shared.values()]))
    (beside, gradients), (alone, wanted) = found
    assert beside.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert beside.backward.converged, "it has no gradient, so there is nothing to solve for"
    torch.testing.assert_close(beside.value[::2], alone.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, wanted, rtol=1e-7, atol=1e-9)
