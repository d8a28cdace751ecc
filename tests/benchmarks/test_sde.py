"""The benchmark of stochastic paths runs, and measures what it says."""

import importlib

import torch


def test_our_rows_evaluate_and_solve_alike():
    sde = importlib.import_module("benchmarks.paths.sde")
    for case in sde.cases(True):
        for method in case.methods:
            each = {"Euler": 2, "Milstein": 3, "Heun": 4}[method] * case.steps
            for name in ("Direct", "Checkpointed"):
                assert each < sde.evaluations(sde.ROWS[name], case, method) <= each + 5
        for numbered in (False, True):
            assert sde.evaluations(lambda case, method, n=numbered: sde.bare(case, method, n), case, "Euler") == (
                2 * case.steps
            )


def test_a_bare_loop_makes_our_steps():
    sde = importlib.import_module("benchmarks.paths.sde")
    case = sde.cases(True)[0]
    bare = sde.bare(case, "Euler", numbered=True)(case.y0)
    found = sde.ours(case, "Euler", sde.ti.Direct())
    assert bare.shape == found(case.y0).shape
    assert not torch.equal(bare, case.y0)


def test_smaller_steps_are_of_the_same_path():
    sde = importlib.import_module("benchmarks.paths.sde")
    for case in sde.cases(True):
        solve = sde.ours(case, "Euler", sde.ti.Direct())
        assert sde._error(solve, case, None) < 0.5 * float((solve(case.y0, finer=True) - case.y0).std())


def test_unlike_samples_come_to_what_is_asked():
    sde = importlib.import_module("benchmarks.paths.sde")
    counts, errors = zip(*(sde._our_adaptive(8, tol) for tol in (1e-1, 1e-3)), strict=True)
    assert counts[0] < counts[1]
    assert errors[1] < errors[0]
