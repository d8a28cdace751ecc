"""Programs that users have: repeated and dependent rows, no interior, no rank, any scale. Right, and called so."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.degenerate import KINDS, faults_of
from tests.fuzz.dice import Dice
from tests.test_equations import CountOperations
from torchimplicit import Status, qp

INF = torch.inf
EYE = torch.eye(2, dtype=torch.float64)


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def name(solution):
    return Status(solution.status.item()).name


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_are_right_and_so_is_what_converged(kind):
    for seed in range(3):
        known = KINDS[kind](Dice(f"{kind} {seed}"))
        solution = known.solve()
        assert not faults_of(known, solution), seed
        assert solution.status.item() == known.status, seed


def support_vectors(seed):
    """The dual of a support vector machine in the plane, with points on a grid: `Q` has rank two."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(5, 51, (), generator=generator))
    X = (20 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 10).round() / 10
    label = torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
    box = 10.0 ** int(torch.randint(-2, 3, (), generator=generator))
    V = X * label[:, None]
    return V @ V.T, -torch.ones_like(label), label, box


def check_support_vectors(seed):
    Q, q, label, box = support_vectors(seed)
    solution = qp(Q, q, A=label[None], b=t(0.0), l=0 * q, u=box - 0 * q, on_failure="ignore")
    assert solution.report.converged, seed
    z = solution.value
    slope = Q @ z + q + label * solution.duals.equality
    gap = (slope.clamp_min(0) * z + (-slope).clamp_min(0) * (box - z)).sum()
    assert gap <= 1e-9 * z.sum(), seed
    assert abs(label @ z) <= 1e-9 * box * len(z), seed


def test_support_vector_duals():
    for seed in range(20):
        check_support_vectors(seed)


def test_the_support_vectors_of_five_points():
    X = torch.tensor([[-0.5, -0.9], [-0.5, 0.9], [1, 0.1], [-0.6, -0.8], [0.4, 0.9]], dtype=torch.float64)
    label = t(1.0, -1.0, -1.0, 1.0, 1.0)
    low, high = torch.minimum(0 * label, 0.1 * label), torch.maximum(0 * label, 0.1 * label)
    for ridge in (0.0, 1e-10):
        Q = X @ X.T + ridge * torch.eye(5, dtype=torch.float64)
        solution = qp(Q, -label, A=torch.ones(1, 5, dtype=torch.float64), b=t(0.0), l=low, u=high)
        torch.testing.assert_close(solution.value, t(0.0, -0.1, -0.1, 0.1, 0.1), rtol=0, atol=1e-8)


NO_BOUND = (INF, 1e6, 1e9, 1e12, 1e15, 1e19, 1e20, 1e50, 1e300)


@pytest.mark.parametrize("bound", NO_BOUND)
@pytest.mark.parametrize("Q", [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
def test_a_big_number_for_no_bound_changes_nothing(bound, Q):
    given = {"G": -t(1.0, 2.0)[None], "h": -t(1.0), "l": t(0.0, 0.0), "u": t(bound, bound)}
    solution = qp(torch.diag(t(*Q)), t(1.0, 1.0), **given)
    torch.testing.assert_close(solution.value, t(0.0, 0.5), rtol=1e-12, atol=1e-12)
    both = qp(torch.diag(t(*Q)), t(1.0, 1.0), given["G"], given["h"], l=t(-1.0, -bound), u=t(bound, bound))
    assert both.report.converged
    crossed = t([1.0, 0.0], [-1.0, 0.0]), t(-1.0, -1.0)
    apart = qp(torch.diag(t(*Q)), t(1.0, 1.0), *crossed, u=t(bound, bound), on_failure="ignore")
    assert name(apart) == "INFEASIBLE"


def test_a_big_bound_that_is_met_is_a_bound():
    for bound in (1e6, 1e9, 1e12):
        solution = qp(None, t(-1.0, 0.0), t(0.0, 1.0)[None], t(1.0), l=t(0.0, 0.0), u=t(bound, bound))
        assert solution.value[0].item() == bound
    assert name(qp(None, t(-1.0), u=t(1e25), on_failure="ignore")) == "UNBOUNDED"


@pytest.mark.parametrize("bound", [1e6, 1e12, 1e19, 1e300])
def test_no_big_number_hides_a_contradiction(bound):
    for seed in (60000, 60001, 60005):
        known = KINDS["contradictory"](Dice(f"contradictory {seed}"))
        bounds = {"l": known.l.clamp_min(-bound), "u": known.u.clamp_max(bound)}
        assert replace(known, **bounds).solve().status.item() == Status.INFEASIBLE, seed


SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)


@pytest.mark.parametrize("kind", ["repeated rows", "no interior", "contradictory", "endless", "repeated rows, curved"])
def test_units_of_costs_rows_and_unknowns_change_no_verdict(kind):
    known = KINDS[kind](Dice(f"{kind} 3"))
    ones, rows = torch.ones_like(known.z), torch.ones_like(known.l)
    for size in SCALES:
        for unknowns, by in ((size * ones, rows), (ones, size * rows), (size * ones, rows / size)):
            other = known.scaled(unknowns, by)
            assert other.solve().status.item() == known.status, size
        dear = replace(known, Q=size * known.Q, q=size * known.q)
        assert dear.solve().status.item() == known.status, size


@settings(max_examples=20, derandomize=True)
@given(
    st.sampled_from(["repeated rows", "curved", "no interior"]),
    st.integers(0, 10**6),
    st.sampled_from([1e15, 1e17, 1e19, 1e20, 1e300]),
)
def test_any_number_says_no_bound_in_any_units(kind, seed, big):
    """In rows of units 1e8 apart the same number is in some no further out than others' bounds."""
    known = KINDS[f"{kind}, in other units"](Dice(f"{kind}, in other units {seed}"))
    solution = replace(known, l=known.l.clamp_min(-big), u=known.u.clamp_max(big)).solve()
    assert solution.report.converged
    assert not faults_of(known, solution)


@pytest.mark.parametrize(
    ("kind", "seed", "big"),
    [("no interior", 60009, 1e12), ("no interior", 60009, 1e15), ("repeated rows", 7710003, 1e12),
     ("curved", 60011, 1e12), ("no interior", 7710005, 1e17), ("repeated rows", 330004, 1e15),
     ("curved", 330008, 1e10)],
)  # fmt: skip
def test_numbers_that_are_not_far_out_of_all_rows(kind, seed, big):
    known = KINDS[f"{kind}, in other units"](Dice(f"{kind}, in other units {seed}"))
    solution = replace(known, l=known.l.clamp_min(-big), u=known.u.clamp_max(big)).solve()
    assert solution.report.converged
    assert not faults_of(known, solution)


def test_mates_with_far_bounds_change_nothing():
    """Bounds from 1 to 1e3, beside one of 1e12."""
    C, q = t([[1.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]), t([-1.0, -2.0], [-1.0, -2.0])
    u, low = t([1e3, 1.0], [1e12, 1.0]), t([0.0, 0.0], [0.0, 0.0])
    together = qp(None, q, C, u, l=low)
    alone = qp(None, q[0], C[0], u[0], l=low[0])
    assert torch.equal(together.value[0], alone.value)
    assert together.steps[0] == alone.steps


@pytest.mark.parametrize("cost", [1e-12, 1e-9, 1e-6, 1.0, 1e6, 1e12])
def test_a_ray_is_found_whatever_the_unit_of_the_cost(cost):
    """Of a small cost the curvature is lost beside the rows, in units of the whole system."""
    known = KINDS["endless"](Dice("endless 60009"))
    assert replace(known, Q=cost * known.Q, q=cost * known.q).solve().status.item() == Status.UNBOUNDED


@pytest.mark.parametrize("dear", [1.0, 1e6, 1e12])
def test_a_solution_of_zero_is_zero_whatever_it_costs(dear):
    """Where all bounds are zero nothing has a size."""
    known = KINDS["transport"](Dice("transport 60002"))
    assert not known.z.any()
    assert not replace(known, q=dear * known.q).solve().value.any()


def test_a_battery_over_a_day():
    """Charge, discharge and store, 24 hours each: an equation twice, and corners that miss each other by 1e-8."""
    hours, one = 24, torch.float64
    eye, prices = (
        torch.eye(hours, dtype=one),
        torch.rand(16, hours, generator=torch.Generator().manual_seed(0)).double(),
    )
    steps = torch.cat((-0.9 * eye, eye / 0.9, eye - torch.diag(torch.ones(hours - 1, dtype=one), -1)), 1)
    last = torch.zeros(1, 3 * hours, dtype=one)
    last[0, -1] = 1
    A = torch.cat((steps, last, steps[:1] + steps[1:2]))
    b = torch.zeros(hours + 2, dtype=one)
    b[0] = b[-2] = b[-1] = 0.5
    upper = torch.cat((torch.full((2 * hours,), 0.3 + 1.2e-8, dtype=one), torch.ones(hours, dtype=one)))
    prices = prices.mul(10).round().div(10)
    q = torch.cat((prices, -prices, 0 * prices), 1)
    for curvature in (0.0, 1e-3):
        Q = torch.diag(torch.cat((torch.full((2 * hours,), curvature, dtype=one), torch.zeros(hours, dtype=one))))
        solution = qp(Q, q, A=A, b=b, l=0 * upper, u=upper)
        assert solution.residual.max() < 1e-9
        assert not solution.determined.duals.any()


def test_mates_change_no_verdict():
    """A program with a solution, a contradictory one, an endless one, one with big numbers, one with a row twice."""
    G = t(
        [[1.0, 1.0], [-1.0, 0.0]],
        [[1.0, 0.0], [-1.0, 0.0]],
        [[0.0, 1.0], [-1.0, -1.0]],
        [[1.0, 0.0], [0.0, 1.0]],
        [[1.0, 1.0], [2.0, 2.0]],
    )
    h = t([1.0, 0.0], [-1.0, -1.0], [1.0, 3.0], [1e15, 1e15], [1.0, 2.0])
    Q = torch.diag_embed(t([0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 2.0], [1.0, 0.0]))
    q = t([-1.0, -2.0], [1.0, 1.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, -2.0])
    low = t([0.0, 0.0], [-1.0, -1.0], [-INF, 0.0], [-5.0, -5.0], [0.0, 0.0])
    together = qp(Q, q, G, h, l=low, on_failure="ignore")
    words = ["CONVERGED", "INFEASIBLE", "UNBOUNDED", "CONVERGED", "CONVERGED"]
    assert [Status(s).name for s in together.status.tolist()] == words
    for i, word in enumerate(words):
        alone = qp(Q[i], q[i], G[i], h[i], l=low[i], on_failure="ignore")
        assert name(alone) == word
        if word == "CONVERGED":
            torch.testing.assert_close(alone.value, together.value[i], rtol=1e-9, atol=1e-12)


@settings(max_examples=20, derandomize=True)
@given(
    st.sampled_from(["repeated rows", "repeated rows, curved", "no interior", "transport", "contradictory", "endless"]),
    st.integers(0, 10**6),
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.integers(-9, 9),
)
def test_no_units_make_a_verdict_wrong(kind, seed, unknowns, rows, costs):
    known = KINDS[kind](Dice(f"{kind} {seed}"))
    known = known.scaled(10.0**unknowns * torch.ones_like(known.z), 10.0**rows * torch.ones_like(known.l))
    known = replace(known, Q=10.0**costs * known.Q, q=10.0**costs * known.q)
    assert not faults_of(known, known.solve())


def test_bounds_that_contradict_do_so_at_any_size():
    for size, Q in product(SCALES, (None, torch.eye(1, dtype=torch.float64))):
        crossed = qp(Q, t(1.0), t([-1.0], [1.0]), t(-size, -size), on_failure="ignore")
        assert name(crossed) == "INFEASIBLE"
        # A point meets these bounds: nothing may prove that none does.
        touching = qp(Q, t(1.0), t([-1.0], [1.0]), t(-size, size))
        torch.testing.assert_close(touching.value, t(size), rtol=1e-9, atol=0)


@pytest.mark.parametrize("by", [1e-3, 1e-6, 3e-9, 9e-10, 1e-10, 1e-12])
def test_bounds_that_contradict_by_less_than_the_verdict_forgives_are_met(by):
    """By as much on one row and on three: beyond that none is, and the nearest bounds are found."""
    alone = t([1.0, 0.0], [-1.0, 0.0]), t(1.0, -1.0 - by)
    together = t([1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]), t(1.0, -0.5 - by, -0.5)
    for Q, (G, h), nearest in product((None, EYE), (alone, together), (False, True)):
        given = {"l": t(0.0, 0.0), "closest_feasible": nearest, "on_failure": "ignore"}
        solution = qp(Q, t(1.0, 2.0), G, h, **given)
        assert name(solution) == ("CONVERGED" if nearest or by < 1e-9 else "INFEASIBLE")
        if nearest:
            assert -1.01 * by <= solution.slack.min() <= 0


def test_sums_that_agree_in_single_precision_only_contradict_and_have_a_nearest_program():
    """Plans between marginals that add up to one but for their rounding."""
    for seed, k in product(range(5), (3, 5)):
        generator = torch.Generator().manual_seed(seed)
        marginals = torch.rand(2, k, generator=generator)
        marginals = (marginals / marginals.sum(1, keepdim=True)).flatten()
        sums = torch.cat((torch.eye(k).repeat_interleave(k, 1), torch.eye(k).repeat(1, k)))
        given = {"A": sums, "b": marginals, "l": torch.zeros(k * k)}
        solution = qp(None, torch.rand(k * k, generator=generator), **given, closest_feasible=True)
        assert (sums @ solution.value - marginals).abs().max() < 1e-7, seed


def test_a_flat_cost_of_any_size_is_unbounded():
    root = t(0.3, -0.7, 1.1)
    for size in SCALES:
        solution = qp(root[:, None] * root, size * t(1.0, 1.0, 0.5), on_failure="ignore")
        assert name(solution) == "UNBOUNDED"
        ray = solution.certificate.ray
        assert ray @ t(1.0, 1.0, 0.5) < 0
        assert abs(root @ ray) <= 1e-12 * ray.abs().max()


@pytest.mark.parametrize(("n", "m"), [(10, 10), (10, 15), (10, 60), (50, 80)])
def test_more_rows_than_unknowns_go_the_short_way(n, m):
    # Of a definite Q: the whole system of unknowns and rows takes twice as many operations, six times as long at 50.
    draw = torch.Generator().manual_seed(n + m)
    G, q = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((16, m, n), (16, n)))
    with CountOperations() as counter:
        solution = qp(torch.eye(n, dtype=torch.float64), q, G, torch.ones(16, m, dtype=torch.float64))
    assert solution.report.converged
    assert counter.count < 1800
