"""The Newton step from an iterate, and what it may be wrong by."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit.solve.ahead import newton_step, shortest_step

EXPONENTS = st.lists(st.integers(-8, 8), min_size=3, max_size=3)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps(matrices, residuals):
    """Newton's steps, the shortest ones where Jacobians are singular; and where they are."""
    found, _, singular = newton_step(matrices, matrices.abs(), residuals)
    shortest, _ = shortest_step(matrices, residuals, torch.zeros_like(residuals))
    return torch.where(singular.unsqueeze(1), shortest, found), singular


def step(matrix, residual):
    found, singular = steps(matrix[None], residual[None])
    return found[0], bool(singular)


@settings(max_examples=30, derandomize=True)
@given(EXPONENTS, EXPONENTS)
def test_the_step_is_that_of_newton_in_any_units(unknowns, equations):
    columns, rows = 10.0 ** double(*unknowns), 10.0 ** double(*equations)
    matrix, residual = rand(3, 3), rand(3, seed=1)
    found, singular = step(rows[:, None] * matrix / columns, rows * residual)
    assert not singular
    torch.testing.assert_close(found, -columns * torch.linalg.solve(matrix, residual), rtol=1e-12, atol=0)


def test_a_singular_jacobian_has_the_shortest_step_where_the_residual_has_an_answer_and_none_else():
    # Of rank two but for rounding, which LU factors without complaint.
    matrix = double([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9])
    found, singular = step(matrix, matrix @ double(1.0, 0.0, 1.0))
    assert singular
    torch.testing.assert_close(matrix @ found, -matrix @ double(1.0, 0.0, 1.0), rtol=1e-6, atol=1e-9)
    assert found.norm() < 2
    found, singular = step(matrix, double(1.0, -2.0, 1.0))
    assert singular
    assert found.isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_has_no_step_and_leaves_the_others_theirs(bad):
    matrix, residual = rand(2, 3, 3), rand(2, 3, seed=1)
    expected = steps(matrix, residual)[0]
    matrix[1, 0, 0] = bad
    found = steps(matrix, residual)[0]
    assert torch.equal(found[0], expected[0])
    assert found[1].isnan().all()


def noisy(size):
    """A function with a root at one, but for a noise that its derivative knows nothing of."""
    return lambda z: z - 1 + size * torch.sin(1e15 * z.detach())


def test_only_rounding_excuses_a_step_that_is_too_long():
    solver = ti.Newton(rtol=1e-13, max_steps=100)
    assert ti.root(noisy(1e-16), double(0.5)[None], solver=solver).report.converged
    found = ti.root(noisy(1e-10), double(0.5)[None], solver=solver, on_failure="ignore")
    assert not found.report.converged, "a noise of 1e-10 is no rounding"


def test_rounding_excuses_no_more_than_half_of_the_digits():
    """Newton's steps never become shorter than the condition makes of rounding: about 1e-4 of the unknowns."""
    matrix, solution = double([1.0, 1.0], [1.0, 1.0 + 1e-11]), double(1.0, 2.0)

    def g(z):
        return z @ matrix - solution @ matrix + 1e-15 * torch.sin(1e16 * z.detach())

    start = (solution + 1e-3 * double(1.0, -1.0))[None]
    found = ti.root(g, start, solver=ti.Newton(rtol=1e-12, max_steps=200), on_failure="ignore")
    assert (found.value - solution).abs().max() > 1e-7
    assert not found.report.converged


def test_where_the_step_cannot_be_solved_for_nothing_is_claimed():
    """Of a shift of many unknowns GMRES has no step at all, which must not pass for one of length zero."""
    z = torch.ones(1, 300, dtype=torch.float64)
    c = z.clone()
    c[0, 0] = 0
    found = ti.root(lambda z: z.roll(1, 1) - c, z, solver=ti.Picard(max_steps=0), on_failure="ignore")
    assert not found.report.converged
    assert ti.root(lambda z: z.roll(1, 1) - z.detach().roll(1, 1), z, solver=ti.Picard(max_steps=0)).report.converged


def test_who_has_grown_but_grows_no_more_does_not_run_off():
    solver = ti.Picard(damping=0.05, rtol=1e-13, max_steps=1000)
    found = ti.root(noisy(1e-6), double(1e-3)[None], solver=solver, on_failure="ignore")
    assert not found.report.converged
    assert abs(float(found.value) - 1) < 1e-4
    assert found.report.advice == ""


def test_an_unknown_that_has_run_to_where_it_has_no_influence_is_at_no_root():
    def g(z):
        return torch.where(z > 5, 0 * z, torch.exp(-z))

    found = ti.root(g, double(1.0)[None], solver=ti.Newton(), on_failure="ignore")
    assert g(found.value).item() == 0
    assert not found.report.converged
