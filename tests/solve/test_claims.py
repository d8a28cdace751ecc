"""Roots and minima are recognised by the Newton step from them: in no units, never where there is none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti

ONE = torch.ones(1, 1, dtype=torch.float64)
DOWN = [ti.LBFGS(), ti.NewtonCG()]
EXPONENTS = st.lists(st.integers(-6, 6), min_size=3, max_size=3)
QUIET = settings(max_examples=15, derandomize=True)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def powers(exponents):
    return 10.0 ** double(*exponents)


def powell(z):
    """Powell's badly scaled function; its root is at (1.098e-5, 9.106)."""
    return torch.stack([1e4 * z[:, 0] * z[:, 1] - 1, torch.exp(-z[:, 0]) + torch.exp(-z[:, 1]) - 1.0001], 1)


def broyden_tridiagonal(z):
    padded = torch.nn.functional.pad(z, (1, 1))
    return (3 - 2 * z) * z - padded[:, :-2] - 2 * padded[:, 2:] + 1


def bowl(z):
    """Not quadratic, not symmetric, its minimum at no special place."""
    skewed = z[:, 0] * z[:, 1] + 0.3 * z[:, 2]
    return torch.cosh(z - double(1.0, -2.0, 0.5)).sum(1) + 0.2 * torch.sin(skewed)


def curve(z):
    t = torch.linspace(0, 2, 12, dtype=torch.float64)
    return z[:, :1] * torch.exp(-z[:, 1:2] * t) + z[:, 2:] - (2 * torch.exp(-1.3 * t) + 0.3 + 0.05 * torch.cos(5 * t))


@QUIET
@given(EXPONENTS, EXPONENTS)
def test_roots_do_not_depend_on_the_units_of_unknowns_and_equations(unknowns, equations):
    units, sizes, start = powers(unknowns), powers(equations), double(-1.0, -1.2, -0.8)[None]
    # Full steps: a line search compares residuals, and so the units of equations.
    plain = ti.root(broyden_tridiagonal, start, solver=ti.Newton(halvings=0))
    scaled = ti.root(lambda z: sizes * broyden_tridiagonal(z / units), start * units, solver=ti.Newton(halvings=0))
    assert torch.equal(scaled.status, plain.status)
    assert torch.equal(scaled.steps, plain.steps)
    torch.testing.assert_close(scaled.value / units, plain.value, rtol=1e-10, atol=0)


@QUIET
@given(EXPONENTS, st.integers(-9, 9))
def test_fits_do_not_depend_on_the_units_of_unknowns_and_data(unknowns, data):
    units, start = powers(unknowns), double(1.0, 1.0, 0.1)[None]
    plain = ti.least_squares(curve, start)
    scaled = ti.least_squares(lambda z: 10.0**data * curve(z / units), start * units)
    assert torch.equal(scaled.status, plain.status)
    torch.testing.assert_close(scaled.value / units, plain.value, rtol=1e-7, atol=0)


@QUIET
@given(EXPONENTS, st.integers(-9, 9))
def test_minima_do_not_depend_on_the_units_of_unknowns_and_energy(unknowns, energy):
    units, start = powers(unknowns), double(0.8, -1.5, 0.8)[None]
    plain = ti.argmin(bowl, start, solver=ti.Newton(halvings=0))
    scaled = ti.argmin(lambda z: 10.0**energy * bowl(z / units), start * units, solver=ti.Newton(halvings=0))
    assert torch.equal(scaled.status, plain.status)
    torch.testing.assert_close(scaled.value / units, plain.value, rtol=1e-8, atol=0)


def valley(z):
    """Rosenbrock's function: curved, not convex, and at this start of either curvature."""
    return 50 * (z[:, 1:] - z[:, :-1].square()).square().sum(1) + 0.5 * (1 - z[:, :-1]).square().sum(1)


def logistic(z):
    x = torch.linspace(-2, 3, 24, dtype=torch.float64).view(8, 3).sin() * double(1.0, 5.0, 0.2)
    y = (x.sum(1) > 0.3).double().expand(len(z), -1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z @ x.mT, y, reduction="none")
    return loss.mean(1) + 1e-2 * (z * double(1.0, 5.0, 0.2)).square().sum(1)


@pytest.mark.parametrize("energy", [bowl, valley, logistic])
@pytest.mark.parametrize("solver", DOWN, ids=str)
@QUIET
@given(EXPONENTS, st.integers(-9, 9), st.sampled_from([0.0, 1e3]))
def test_descents_do_not_depend_on_the_units_of_unknowns_and_energy_nor_on_its_zero(
    solver, energy, unknowns, factor, offset
):
    units, start = powers(unknowns), double(0.8, -1.5, 0.8)[None]
    plain = ti.argmin(energy, start, solver=solver)
    scaled = ti.argmin(lambda z: 10.0**factor * (energy(z / units) + offset), start * units, solver=solver)
    assert torch.equal(scaled.status, plain.status)
    assert offset or torch.equal(scaled.steps, plain.steps)
    torch.testing.assert_close(scaled.value / units, plain.value, rtol=1e-3 if offset else 1e-9, atol=0)


@pytest.mark.parametrize("solver", DOWN, ids=str)
def test_the_units_of_more_unknowns_than_can_be_looked_at_matter_but_do_not_deceive(solver):
    units = 10.0 ** torch.linspace(-6, 6, 300, dtype=torch.float64)

    def energy(z):
        return torch.cosh(z / units - 1).sum(1)

    for scale, converges in ((torch.ones_like(units), True), (units, False)):
        solution = ti.argmin(
            lambda y, scale=scale: energy(y * units / scale), 0 * scale[None], solver=solver, on_failure="ignore"
        )
        right = bool(((solution.value / scale - 1).abs() < 1e-2).all())
        assert solution.report.converged == right == converges


def test_a_badly_scaled_root_is_not_claimed_before_it_is_one():
    exact = double(1.0981593296e-5, 9.1061467399)
    start = double(0.0, 1.0)[None]
    for steps in (10, 30, 50, 200):
        solution = ti.root(powell, start, solver=ti.Newton(max_steps=steps), on_failure="ignore")
        error = float(((solution.value[0] - exact) / exact).abs().max())
        assert solution.report.converged == (error < 1e-3)
    assert solution.report.converged


def test_double_roots_are_found_to_the_tolerance():
    for solution in (
        ti.root(lambda z: (z - 1) ** 2, 3 * ONE),
        ti.least_squares(lambda z: (z - 1) ** 2, 3 * ONE),
        ti.root(lambda z: (z - 1) ** 2, 3 * ONE, solver=ti.Anderson(max_steps=100)),
    ):
        assert abs(float(solution.value) - 1) < 5e-4


@pytest.mark.parametrize("solver", [ti.Newton(), ti.Newton(max_steps=800), ti.Broyden(), ti.Anderson()], ids=str)
@pytest.mark.parametrize("g", [lambda z: torch.exp(-z), lambda z: 1 / z, lambda z: torch.exp(-z.square())])
def test_a_root_at_infinity_is_none(g, solver):
    assert not ti.root(g, ONE, solver=solver, on_failure="ignore").report.converged


@pytest.mark.parametrize("solver", [ti.Newton(), ti.Newton(max_steps=800)], ids=str)
@pytest.mark.parametrize("g", [lambda z: torch.exp(-z), lambda z: 1 / z])
def test_what_runs_off_is_said_to(g, solver):
    with pytest.raises(ti.ConvergenceError, match=r"unknowns of sample 0 still grow.*at infinity"):
        ti.root(g, ONE, solver=solver)


ENDLESS = {
    "exp": lambda z: torch.exp(-z).sum(1),
    "softplus": lambda z: torch.nn.functional.softplus(-z).sum(1),
    "linear": lambda z: -z.sum(1),
    "bump": lambda z: torch.exp(-z.square()).sum(1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [*DOWN, ti.LBFGS(rtol=1e-2, max_steps=100), ti.Newton()], ids=str)
@pytest.mark.parametrize("energy", ENDLESS.values(), ids=ENDLESS)
def test_an_energy_without_a_minimum_has_none(energy, solver, dtype):
    solution = ti.argmin(energy, ONE.to(dtype), solver=solver, on_failure="ignore")
    assert not solution.report.converged
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("start", [0.1, -0.7193, 1.0])
def test_a_slope_that_underflows_where_the_curvature_does_not_is_no_minimum(start):
    units = 1e-4  # squares of exp(z / units) overflow: the slope ends as zero, beside a curvature of 1e-19
    solution = ti.argmin(
        lambda z: 1e-6 * (1 / (1 + (z / units).exp())).sum(1),
        torch.tensor([[start * units]]),
        solver=ti.LBFGS(max_steps=200),
        on_failure="ignore",
    )
    assert not solution.report.converged


@pytest.mark.parametrize("solver", [*DOWN, ti.LBFGS(rtol=1e-9)], ids=str)
@pytest.mark.parametrize("unit", [1.0, 20.0, 1e-8])
def test_a_slope_that_wiggles_and_never_falls_is_no_minimum_however_far_away(solver, unit):
    """At 1e14 units a Newton step of ten is short; the slope is still that of the start, or the half of it."""
    z0 = unit * double([-0.3], [1.5], [-0.1], [0.3])
    found = ti.argmin(
        lambda z: 3e7 * (z / unit + 0.1 * torch.sin(z / unit)).sum(1), z0, solver=solver, on_failure="ignore"
    )
    assert (found.status != ti.Status.CONVERGED).all()


def test_steep_functions_whose_residual_has_not_fallen_yet_still_arrive():
    start, at = double([0.9999], [0.0], [-5.0]), 1.0
    found = ti.root(lambda z: torch.asinh(1e7 * (z - at)), start, solver=ti.Newton(max_steps=200, halvings=20))
    assert torch.allclose(found.value, torch.full_like(start, at), rtol=1e-4)


FLAT = {
    "logistic": lambda z: torch.nn.functional.softplus(-z).sum(1),
    "exponential": lambda z: torch.exp(-z).sum(1),
    "hill": lambda z: 1 / (1 + z.exp()).sum(1),
    "wiggle": lambda z: (z + 0.1 * torch.sin(z)).sum(1),
}


@pytest.mark.parametrize("solver", [ti.LBFGS(), ti.NewtonCG(max_steps=60), ti.Newton()], ids=str)
@pytest.mark.parametrize("energy", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_failed_solve_has_ended_a_warm_start_finds_no_minimum(energy, solver, dtype):
    """What has run off is not told by where it is: all is flat there. The earlier solution knows where it came from."""
    options = {"solver": solver, "on_failure": "ignore"}
    found = ti.argmin(energy, torch.tensor([[0.3, -1.0], [1.0, 2.0]], dtype=dtype), **options)
    for _ in range(2):
        assert (found.status != ti.Status.CONVERGED).all()
        found = ti.argmin(energy, found.value, warm_start=found, **options)


def test_a_warm_start_from_before_a_solve_overflowed_is_judged_by_its_own_size():
    a, far = double([0.1], [0.3]), double([3.0], [3.0])
    options = {"solver": ti.Newton(halvings=0), "on_failure": "ignore"}
    first = ti.root(lambda z, a: torch.atan(z) - a, far, a, **options)
    assert (first.status != ti.Status.CONVERGED).all()
    again = ti.root(lambda z, a: torch.atan(z) - a, far, a, warm_start=first, **options)
    assert (again.status != ti.Status.CONVERGED).all()
    damped = ti.root(lambda z, a: torch.atan(z) - a, far, a, warm_start=first, solver=ti.Newton())
    assert torch.allclose(damped.value, a.tan(), rtol=1e-4)


@pytest.mark.parametrize("solver", [ti.Newton(halvings=0, max_steps=20), ti.Broyden(), ti.Newton()], ids=str)
def test_no_chain_of_warm_starts_ends_in_a_root_that_is_none(solver):
    """Some unknowns of a sample run off, others stay: each is judged beside what it has been itself."""
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        unit = 10 ** (8 * torch.rand(1, 3, generator=generator, dtype=torch.float64) - 4)
        start = unit * (a + torch.randn(3, 3, generator=generator, dtype=torch.float64))
        call = {"solver": solver, "on_failure": "ignore"}
        found = ti.root(lambda z, a, unit=unit: torch.atan(5 * (z / unit - a)), start, a, **call)
        for _ in range(3):
            right = ((found.value - a * unit).abs() <= 1e-3 * (a * unit).abs()).all(1)
            assert right[found.status == ti.Status.CONVERGED].all(), f"{seed}: {found.report}, {found.value}"
            found = ti.root(lambda z, a, unit=unit: torch.atan(5 * (z / unit - a)), start, a, warm_start=found, **call)


def test_a_failed_solve_is_gone_on_with():
    """Samples that had converged are solutions at once, the others after the steps that they still need."""
    a = double([1.0], [1e6])
    options = {"solver": ti.LBFGS(max_steps=4), "on_failure": "ignore"}
    first = ti.argmin(lambda z, a: (z**4 / 4 - a * z).sum(1), torch.ones_like(a), a, **options)
    assert first.status.tolist() == [0, ti.Status.MAX_STEPS]
    second = ti.argmin(lambda z, a: (z**4 / 4 - a * z).sum(1), torch.ones_like(a), a, warm_start=first)
    assert second.status.tolist() == [0, 0]
    assert second.steps[0] == 0
    assert second.ran is None
    assert torch.allclose(second.value, a ** (1 / 3), rtol=1e-4)


def test_a_search_that_has_come_back_a_little_from_where_all_is_flat_has_found_no_minimum():
    units = 1e5
    starts = torch.tensor([[0.358, -0.246, 2.303], [0.36, -0.314, -1.079], [-1.079, 1.44, -0.111]])
    starts = torch.cat([starts, torch.randn(500, 3, generator=torch.Generator().manual_seed(0))])
    solution = ti.argmin(
        lambda z: 0.005 * (1 / (1 + (z / units).exp())).sum(1),
        units * starts,
        solver=ti.LBFGS(rtol=7e-4, atol=0.0, memory=2),
        on_failure="ignore",
    )
    assert not (solution.status == ti.Status.CONVERGED).any()


def test_separable_data_have_a_fit_only_if_it_is_regularised():
    x = double([1.0, 2], [2, 1], [-1, -2], [-2, -1])
    y = double(1, 1, 0, 0)

    def loss(w, decay):
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y) + decay / 2 * w.square().sum()

    start = torch.zeros(2, dtype=torch.float64)
    for solver in (*DOWN, ti.Newton()):
        with pytest.raises(ti.ConvergenceError, match="nothing regularises"):
            ti.argmin(loss, start, double(0)[0], solver=solver, batch_dims=0)
        for decay in (1e-4, 1e-6):
            decay = double(decay)[0].requires_grad_()
            exact = ti.argmin(loss, start, decay, solver=ti.Newton(rtol=1e-12), batch_dims=0)
            found = ti.argmin(loss, start, decay, solver=solver, batch_dims=0)
            torch.testing.assert_close(found.value, exact.value, rtol=1e-3, atol=0)
            slopes = [torch.autograd.grad(solution.value.sum(), decay)[0] for solution in (found, exact)]
            torch.testing.assert_close(*slopes, rtol=1e-2, atol=0)


@pytest.mark.parametrize("solver", [*DOWN, ti.Newton()], ids=str)
def test_a_fit_that_is_as_good_as_float32_allows_has_converged_and_where_that_is_little_float64_helps(solver):
    # Of a loss of 2e-5 this function knows the digits down to 1e-9, of its slope those down to 1e-8.
    x, y = double([1.0, 2], [2, 1], [-1, -2], [-2, -1]), double(1, 1, 0, 0)

    def loss(w, x, y, decay):
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y) + decay / 2 * w.square().sum()

    def fit(decay, dtype, **options):
        args = [part.to(dtype) for part in (x, y, double(decay)[0])]
        return ti.argmin(loss, torch.zeros(2, dtype=dtype), *args, solver=solver, batch_dims=0, **options)

    for decay in (1e-4, 1e-6):
        found = fit(decay, torch.float32)
        torch.testing.assert_close(found.value.double(), fit(decay, torch.float64).value, rtol=1e-3, atol=0)
        assert found.nfev < 150, "no search is for what the energy does not know"
    with pytest.raises(ti.ConvergenceError, match=r"stagnated: .*\n.*float64"):
        fit(1e-8, torch.float32)
    assert fit(1e-8, torch.float64).report.converged


def test_energies_that_are_no_numbers_are_not_finite():
    for energy in (
        lambda z: z.square().sum(1) + torch.nan,  # whose gradient is fine
        lambda z: z.square().sum(1) * torch.nan,
        lambda z: z.square().sum(1) + torch.inf,
    ):
        for solver in (*DOWN, ti.Newton()):
            status = ti.argmin(energy, ONE, solver=solver, on_failure="ignore").status
            assert status.tolist() == [ti.Status.NON_FINITE], solver


def test_constant_and_linear_energies_have_words():
    for solver in (*DOWN, ti.Newton()):
        assert torch.equal(ti.argmin(lambda z: 0 * z.sum(1), ONE, solver=solver).value, ONE)
        with pytest.raises(ValueError, match="does not depend on the state"):
            ti.argmin(lambda z: torch.ones(1), ONE, solver=solver)
        for kinked in (lambda z: (z - 0.3).abs().sum(1), lambda z: z.sum(1)):
            with pytest.raises(ti.ConvergenceError):
                ti.argmin(kinked, ONE, solver=ti.Newton() if solver in DOWN else solver)


def test_an_unknown_at_zero_beside_others_and_alone():
    start = double(0.3, 2.0)[None]
    both = ti.root(lambda z: torch.stack([torch.sinh(z[:, 0]), z[:, 1] ** 2 - 2 + z[:, 0]], 1), start)
    torch.testing.assert_close(both.value, double(0.0, 2**0.5)[None], rtol=1e-5, atol=1e-9)
    assert float(ti.root(torch.atan, ONE).value) == 0
    for solver in DOWN:
        value = ti.argmin(lambda z: torch.cosh(z).sum(1) + z.pow(4).sum(1), start, solver=solver).value
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-9)


def test_an_absolute_tolerance_is_in_the_units_of_the_unknowns():
    slow = {"max_steps": 12, "damping": 0.5}
    assert not ti.root(lambda z: z, ONE, solver=ti.Picard(**slow), on_failure="ignore").report.converged
    assert ti.root(lambda z: z, ONE, solver=ti.Picard(atol=1e-3, **slow)).value.abs() < 1e-3
    assert ti.Picard(rtol=1e-10).absolute == 1e-12, "a tight relative tolerance is not limited by a forgotten one"
    assert ti.Picard(rtol=1e-10, atol=1e-3).absolute == 1e-3


@pytest.mark.parametrize("solver", [ti.Newton(linear_solver=ti.GMRES()), ti.LBFGS()], ids=str)
def test_many_unknowns_are_judged_together(solver):
    width = 300
    weights = torch.linspace(1, 20, width, dtype=torch.float64)

    def energy(z):
        return (weights * torch.cosh(z - 1)).sum(1)

    solution = ti.argmin(energy, torch.zeros(2, width, dtype=torch.float64), solver=solver)
    torch.testing.assert_close(solution.value, torch.ones_like(solution.value), rtol=1e-3, atol=0)
    root = ti.root(lambda z: z**3 + z - 1, torch.ones(1, width, dtype=torch.float64), solver=ti.Broyden(max_steps=200))
    torch.testing.assert_close(root.value, torch.full_like(root.value, 0.6823278038), rtol=1e-3, atol=0)


def test_flat_directions_are_no_hindrance_but_slopes_along_them_are():
    def valley(z):
        return (z[:, 0] + z[:, 1] - 1).square() + z[:, 2].square()

    start = double(2.0, 3.0, 1.0)[None]
    for solver in DOWN:
        solution = ti.argmin(valley, start, solver=solver)
        assert abs(float(solution.value[0, :2].sum()) - 1) < 1e-6
        sloping = ti.argmin(lambda z: valley(z) + 1e-3 * z[:, 0], start, solver=solver, on_failure="ignore")
        assert not sloping.report.converged


def test_one_sample_does_not_notice_when_others_are_looked_at():
    starts = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for solver in (*DOWN, ti.Newton()):
        together = ti.argmin(bowl, starts, solver=solver, on_failure="ignore")
        alone = [ti.argmin(bowl, start[None], solver=solver, on_failure="ignore") for start in starts]
        assert together.status.tolist() == [int(one.status) for one in alone]
        assert together.steps.tolist() == [int(one.steps) for one in alone]
