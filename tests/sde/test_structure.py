"""Whether the noise is what it was said to be, and the order that a report states for it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

import torchimplicit as ti
from tests.sde.cases import D
from torchimplicit import sde
from torchimplicit.sde.structure import moved, sees_state, structure_of

HALVES = (torch.bfloat16, torch.float16)
DTYPES = some.sampled_from([torch.float64, torch.float32, *HALVES])
TIMES = torch.tensor([0.0, 1.0], dtype=D)
# What unknowns do each for itself; the last ones cancel, far above what they leave.
ALONE = [
    lambda y: 0.6 * y,
    lambda y: y.tanh() + 0.3,
    lambda y: (1 + y * y).sqrt(),
    lambda y: y.abs().sqrt(),
    lambda y: (100 + y).square() - (99 + y).square(),
    lambda y: 0.3 * (y.exp() - y.exp() * (1 - 1e-3)),
]


def drawn(seed, *shape, dtype=D):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def units_of(seed, n, dtype):
    spread = 2 if dtype in HALVES else 8
    return torch.ldexp(torch.ones(n, dtype=dtype), torch.randint(-spread, spread + 1, (n,), generator=seeded(seed)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


CASE = {"seed": some.integers(0, 10**6), "batch": some.integers(1, 5), "n": some.integers(2, 40), "dtype": DTYPES}


@settings(max_examples=60, deadline=None)
@given(each=some.sampled_from(ALONE), **CASE)
def test_unknowns_that_go_their_own_ways_are_believed(each, seed, batch, n, dtype):
    unit = units_of(seed, n, dtype)
    g = lambda y: unit * each(y / unit)  # noqa: E731
    assert structure_of("diagonal", g, unit * drawn(seed, batch, n, dtype=dtype)) == "commuting"


@settings(max_examples=60, deadline=None)
@given(each=some.sampled_from(ALONE[:3]), shift=some.integers(1, 39), **CASE)
def test_an_unknown_that_sees_another_is_seen_in_every_unit(each, shift, seed, batch, n, dtype):
    unit = units_of(seed, n, dtype)
    g = lambda y: unit * (each(y / unit) + (y / unit).roll(1 + shift % (n - 1), 1))  # noqa: E731
    assert structure_of("diagonal", g, unit * drawn(seed, batch, n, dtype=dtype)) == "general"


@settings(max_examples=60, deadline=None)
@given(m=some.integers(2, 4), **CASE)
def test_columns_that_commute_are_seen_to_in_every_unit(m, seed, batch, n, dtype):
    unit, rows = units_of(seed, n, dtype), drawn(seed + 1, n, m, dtype=dtype)
    g = lambda y: y.unsqueeze(2) * rows  # noqa: E731
    assert structure_of("general", g, unit * drawn(seed, batch, n, dtype=dtype)) == "commuting"


@settings(max_examples=60, deadline=None)
@given(m=some.integers(2, 4), **CASE)
def test_polynomials_of_one_matrix_commute_and_random_matrices_do_not(m, seed, batch, n, dtype):
    if dtype in HALVES:  # sums of many numbers leave too little of them
        dtype = torch.float32
    n, unit = 2 + n % 5, units_of(seed, 2 + n % 5, dtype)
    one, y = drawn(seed + 1, n, n) / math.sqrt(n), unit * drawn(seed, batch, n, dtype=dtype)
    powers = torch.stack([torch.linalg.matrix_power(one, k) for k in range(m)]).to(dtype)
    others = drawn(seed + 2, m, n, n, dtype=dtype)

    def of(matrices):
        return lambda y: unit.unsqueeze(1) * torch.einsum("kij,bj->bik", matrices, y / unit)

    assert structure_of("general", of(powers), y) == "commuting"
    assert structure_of("general", of(others), y) == "general"


@settings(max_examples=60, deadline=None)
@given(each=some.sampled_from(ALONE[:4]), **CASE)
def test_additive_noise_that_sees_the_state_is_seen(each, seed, batch, n, dtype):
    each = each if dtype not in HALVES else ALONE[0]  # eight roundings of which are more than the others change
    unit = units_of(seed, n, dtype)
    y = unit * drawn(seed, batch, n, dtype=dtype)
    for other in (y, torch.full_like(y, torch.nan)):  # where it has not moved, or broke, it is looked at aside
        assert sees_state(lambda y: unit * each(y / unit), y, other)
    assert not sees_state(lambda y: unit * each(torch.ones_like(y)) + 0 * y, y, y + unit)
    assert not sees_state(lambda y: y.softmax(1).sum(1, keepdim=True).expand_as(y), y, y + unit)


def test_moved_states_stay_where_coefficients_are_defined():
    y = torch.tensor([[0.9, 0.1, 1e-8], [0.0, 0.0, 0.0], [0.5, 0.0, 1e9]], dtype=D)
    there = moved(y)
    assert (there >= 0).all()
    assert (there[0] < y[0]).all()
    assert (there != y).all()
    assert structure_of("diagonal", lambda y: (y * (1 - y)).sqrt() * y.sum(1, keepdim=True), y[:1]) == "general"


def test_nothing_is_made_of_what_is_not_finite_or_has_no_derivative():
    y = torch.ones(2, 3, dtype=D)
    for kind, g in (("diagonal", lambda y: y * torch.nan), ("general", lambda y: y.unsqueeze(2) * torch.inf)):
        assert structure_of(kind, lambda y, g=g: g(y).expand(*g(y).shape), y) == "commuting"
    assert not sees_state(lambda y: y * torch.nan, y, y)
    assert structure_of("diagonal", lambda y: torch.ones_like(y), y) == "commuting"
    assert structure_of("diagonal", lambda y: y.sum(1, keepdim=True).detach().expand_as(y), y) == "commuting"
    torch.manual_seed(0)
    many = y[:1].expand(40, 3)
    assert not sees_state(lambda y: nn.functional.dropout(torch.ones_like(y)), many, 2 * many)


def solve(solver, diffusion, noise, y0, **options):
    options = {"calculus": solver.calculus, "brownian": 3, **options}
    return ti.sdeint(lambda t, y: -y, diffusion, y0, TIMES, solver=solver, noise=noise, **options).report


Y0 = torch.linspace(-1, 1.5, 6, dtype=D).view(2, 3)
TURNS = drawn(7, 2, 3, 3)
WHAT = {
    "alone": ("diagonal", lambda t, y: t * y.sin()),
    "others": ("diagonal", lambda t, y: t * y.roll(1, 1)),  # nothing at the first time
    "additive": ("additive", lambda t, y: (1 + t) * torch.ones_like(y)),
    "scalar": ("scalar", lambda t, y: y.roll(1, 1).unsqueeze(2)),
    "commuting": ("general", lambda t, y: y.unsqueeze(2) * TURNS[0, :, :2]),
    "general": ("general", lambda t, y: torch.einsum("kij,bj->bik", TURNS, y)),
}
HALF = dict.fromkeys(WHAT, 0.5) | {"additive": 1.0}
ONE = dict.fromkeys(WHAT, 1.0) | {"others": 0.5, "general": 0.5}
EXPECTED = {
    sde.EulerMaruyama: HALF,
    sde.Milstein: ONE,
    sde.Heun: ONE,
    sde.Midpoint: ONE,
    sde.SRID2: {"alone": 1.5, "others": 0.5, "scalar": 1.5},
    sde.SRA1: {"additive": 1.5},
    sde.ShARK: {"additive": 1.5},
}


@pytest.mark.parametrize("method", EXPECTED, ids=lambda each: each.__name__)
def test_the_order_that_a_report_states(method):
    """`methods/test_orders.py` measures them."""
    for what, order in EXPECTED[method].items():
        noise, diffusion = WHAT[what]
        report = solve(method(dt=0.5), diffusion, noise, Y0)
        assert report.strong_order == order, what
        if what == "others" and method is not sde.EulerMaruyama:
            assert "; strong order 0.5: diagonal noise, but coefficients depend on other unknowns" in str(report)
        else:
            assert "strong order" not in str(report)


def test_steps_that_are_chosen_have_no_order():
    assert solve(sde.Heun(rtol=0.1), WHAT["alone"][1], "diagonal", Y0).strong_order is None


def test_what_a_look_costs():
    """An evaluation and two products; of additive noise two for four looks; nothing where no order depends on it."""
    for what, solver, cost in (
        ("alone", sde.EulerMaruyama(), 0), ("alone", sde.Heun(dt=1.0), 1), ("general", sde.Heun(dt=1.0), 1),
        ("additive", sde.Heun(dt=1.0), 4), ("scalar", sde.Heun(dt=1.0), 0),
    ):  # fmt: skip
        noise, diffusion = WHAT[what]
        nfev = solve(solver, diffusion, noise, Y0).nfev
        steps = 2 * (2 if isinstance(solver, sde.Heun) else 1)
        asked = 2 if what in ("general", "additive") else 0  # how many channels there are
        assert nfev - steps - asked - cost == 2, (what, nfev)  # and once both, whether samples are independent


def test_a_look_leaves_gradients_and_transforms_as_they_are():
    noise, diffusion = WHAT["others"]

    def end(y):
        options = {"solver": sde.Heun(dt=0.5), "calculus": "stratonovich", "brownian": 3, "noise": noise}
        return ti.sdeint(lambda t, y: -y, diffusion, y, TIMES, **options).value[-1]

    y0 = Y0.clone().requires_grad_()
    (plain,) = torch.autograd.grad(end(y0).sum(), y0)
    assert torch.allclose(torch.func.grad(lambda y: end(y).sum())(Y0), plain, rtol=1e-12)
    assert torch.allclose(torch.vmap(end)(torch.stack((Y0, 2 * Y0)))[0], end(Y0), rtol=1e-12)
    assert torch.func.jacrev(end)(Y0).shape == (2, 3, 2, 3)
    with torch.inference_mode():
        assert torch.equal(end(Y0), end(y0).detach())


def test_additive_noise_that_depends_on_the_state_is_refused():
    for g, other in ((lambda t, y: t * y, "diagonal"), (lambda t, y: y.unsqueeze(2), "general")):
        for solver in (sde.EulerMaruyama(), sde.SRA1(), sde.Heun(rtol=0.1)):
            with pytest.raises(ValueError, match=f"'additive' with a diffusion that depends .*try noise='{other}'"):
                solve(solver, g, "additive", Y0)
        assert solve(sde.EulerMaruyama(), g, other, Y0).converged


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("window", [(0.6, 1.0), (0.0, 0.2), (0.4, 0.65)])
def test_additive_noise_that_depends_on_the_state_for_a_while_is_refused(batch, window):
    def g(t, y):
        return torch.where((t >= window[0]) & (t <= window[1]), y, torch.ones_like(y))

    for solver in (sde.SRA1(), sde.ShARK(dt=0.5), sde.EulerMaruyama()):
        with pytest.raises(ValueError, match="'additive' with a diffusion that depends"):
            solve(solver, g, "additive", torch.full((batch, 3), 0.5, dtype=D))


def test_additive_noise_that_steps_with_the_state_is_refused():
    y0 = torch.full((2, 3), 2.4, dtype=D)  # even steps: a state a little closer to zero may stay on the same one
    with pytest.raises(ValueError, match="'additive' with a diffusion that depends"):
        solve(sde.SRA1(), lambda t, y: 0.1 * (y / 3).round(), "additive", y0)


def test_a_method_that_states_no_order_is_said_none_of():
    @dataclass(frozen=True, kw_only=True)
    class Own(sde.EulerMaruyama):
        strong: ClassVar[dict] = {}

    y, ts = torch.ones(2, 3, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = ti.sdeint(lambda t, y: -y, lambda t, y: 0.1 * y, y, ts, solver=Own(dt=0.1), brownian=1)
    assert found.report.strong_order is None


def test_additive_noise_that_sees_the_state_is_refused_under_vmap():
    def run(y0):
        return ti.sdeint(
            lambda t, y: -y,
            lambda t, y: y.sin(),
            y0,
            torch.tensor([0.0, 1.0]),
            noise="additive",
            solver=sde.SRA1(dt=0.5),
            brownian=1,
        ).value

    with pytest.raises(ValueError, match="got 'additive' with a diffusion that depends on the state"):
        torch.vmap(run)(torch.ones(3, 2, 2))


def with_channels(m, y):
    """A diffusion of so many channels, constant; None of them: a motion for every unknown."""
    return torch.full(y.shape if m is None else (*y.shape, m), 0.1, dtype=y.dtype)


@settings(max_examples=40, deadline=None)
@given(
    first=some.sampled_from([None, 1, 2, 3]), later=some.sampled_from([None, 1, 2, 3]), n=some.integers(1, 3),
    when=some.integers(1, 6), solver=some.sampled_from([sde.EulerMaruyama(dt=0.1), sde.Heun(dt=0.1), sde.Heun()]),
)  # fmt: skip
def test_the_motions_are_the_same_throughout(first, later, n, when, solver):
    """Other channels than at the first evaluation would broadcast, and be another noise."""
    asked = []

    def diffusion(t, y):
        asked.append(t)
        return with_channels(first if len(asked) <= when else later, y)

    def solve():
        return ti.sdeint(
            lambda t, y: -y, diffusion, torch.ones(2, n, dtype=D), TIMES, noise="additive", calculus=solver.calculus,
            solver=solver, brownian=1,
        )  # fmt: skip

    if first == later:
        assert solve().report.converged
        return
    with pytest.raises(ValueError, match="behind the state's, expected"):
        solve()


def test_leaves_that_lose_their_channels_are_refused():
    y0, asked = (torch.ones(2, 1, dtype=D), torch.ones(2, 2, dtype=D)), []

    def diffusion(t, y):
        asked.append(t)
        return tuple(with_channels(2 if len(asked) < 4 or leaf.shape[1] == 1 else None, leaf) for leaf in y)

    with pytest.raises(ValueError, match="behind the state's, expected"):
        ti.sdeint(lambda t, y: y, diffusion, y0, TIMES, noise="additive", solver=sde.EulerMaruyama(dt=0.1), brownian=1)
