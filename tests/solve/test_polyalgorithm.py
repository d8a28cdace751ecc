"""Two methods, one after the other: who steps when, and what the second one reaches that the first does not."""

import pickle

import pytest
import torch

import torchimplicit as ti
from torchimplicit.solve import samples

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, START = rand(8, 50, seed=1), torch.zeros(8, 50, dtype=torch.float64)
UNIT = rand(50, 50)
UNIT = UNIT / torch.linalg.eigvals(UNIT).abs().max()


def tanh(z, x, scale):
    """Contracts up to a scale of about one, and expands in ever more directions beyond."""
    return torch.tanh(scale * z @ UNIT + x)


def solve(solver, scale, **options):
    return ti.fixed_point(tanh, START, X, scale, solver=solver, on_failure="ignore", **options)


@pytest.mark.parametrize("scale", [0.5, 1.5])  # some 10 and 40 steps
def test_what_the_first_method_solves_in_time_costs_what_it_costs_alone(scale):
    alone, both = (solve(solver, scale) for solver in (ti.Anderson(max_steps=200), ti.Polyalgorithm()))
    assert torch.equal(both.value, alone.value)
    assert torch.equal(both.steps, alone.steps)
    assert both.nfev == alone.nfev


def test_the_second_goes_on_where_the_first_has_come_to():
    steps = solve(ti.Polyalgorithm(first=ti.Picard(), then=ti.Newton(), after=4, **TIGHT), 0.9, save_steps=[4, 5])
    picard = solve(ti.Picard(max_steps=4, rtol=0, atol=0), 0.9)
    assert torch.equal(steps.trajectory[0], picard.value)
    newton = ti.fixed_point(tanh, picard.value, X, 0.9, solver=ti.Newton(max_steps=1), on_failure="ignore")
    assert torch.allclose(steps.trajectory[1], newton.value, rtol=1e-12, atol=1e-12)
    assert steps.report.converged


def test_the_second_method_alone_steps_from_the_start_after_no_step():
    broyden, both = (
        solve(solver, 0.9).value
        for solver in (ti.Broyden(memory=50, **TIGHT), ti.Polyalgorithm(after=0, max_steps=50, **TIGHT))
    )
    assert torch.equal(broyden, both)


def test_the_two_methods_are_granted_what_both_are():
    short, long = (solve(ti.Polyalgorithm(then=ti.Broyden(memory=memory), **TIGHT), 3.0) for memory in (50, 100))
    assert not torch.equal(short.residual, long.residual)  # Broyden's own limit is 50 steps, and so 50 pairs


def test_it_finds_points_that_the_first_method_misses():
    alone, both = (solve(solver, 2.5) for solver in (ti.Anderson(max_steps=200), ti.Polyalgorithm()))
    assert not alone.report.converged
    assert both.report.converged
    assert (both.value - tanh(both.value, X, 2.5)).square().mean().sqrt() <= 2e-4


def test_a_batch_is_narrowed_before_and_after_the_turn(monkeypatch):
    monkeypatch.setattr(samples, "SMALL", 1)
    rate = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.9, 0.97], dtype=torch.float64).unsqueeze(1)
    sizes = []

    def f(z, x, rate):
        sizes.append(len(z))
        return torch.tanh(rate * z @ UNIT + x)

    solver = ti.Polyalgorithm(first=ti.Picard(), after=12, **TIGHT)
    narrowed = ti.fixed_point(f, START, 0.1 * X, rate, solver=solver, batched_args=(0, 1))
    assert min(sizes) <= 2
    whole = ti.fixed_point(f, START, 0.1 * X, rate, solver=solver)
    assert (narrowed.value - whole.value).abs().max() < 1e-12
    assert torch.equal(narrowed.steps, whole.steps)
    assert narrowed.steps.max() > 12 > narrowed.steps.min()


def test_its_steps_are_differentiated_through():
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    tight = {"rtol": 1e-12, "atol": 1e-13}
    grads = []
    for adjoint in (ti.Implicit(ti.LU()), ti.Unrolled()):
        value = ti.fixed_point(tanh, START, X, scale, solver=ti.Polyalgorithm(after=6, **tight), adjoint=adjoint).value
        grads.append(torch.autograd.grad(value.square().sum(), scale)[0])
    assert (grads[1] - grads[0]).abs() < 1e-6 * grads[0].abs()


def test_it_is_data():
    solver = ti.Polyalgorithm(then=ti.Newton(), after=7)
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert "after=7" in repr(solver)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"after": -1}, ValueError, r"Polyalgorithm\(after=-1\): expected an integer >= 0"),
        (
            {"then": "broyden"},
            TypeError,
            r"Polyalgorithm\(then=...\): got a str, expected a solver such as Broyden\(\)",
        ),
        (
            {"first": ti.Picard(rtol=1e-2)},
            ValueError,
            r"Picard\(rtol=0.01\): expected .*; try Polyalgorithm\(rtol=...\)",
        ),
        (
            {"then": ti.Broyden(max_steps=9)},
            ValueError,
            r"Broyden\(max_steps=9\): .*; try Polyalgorithm\(max_steps=...\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        ti.Polyalgorithm(**options)
