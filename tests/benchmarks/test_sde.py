"""The benchmark of stochastic paths runs, and measures what it says."""

import importlib

import torch


def test_all_rows_ask_for_as_much_as_their_method_says():
    sde = importlib.import_module("benchmarks.paths.sde")
    for case in sde.cases(True):
        for method in case.methods:
            # Once: looks, and of two states that have parted, four of drift and diffusion at the end.
            parted = 8 * (method == "ReversibleHeun")
            each = {"Euler": 2, "Milstein": 3, "Heun": 4, "ReversibleHeun": 2}[method] * case.steps
            for name, once in (("Direct", 8 + parted), ("Checkpointed", 8 + parted), ("bare loop, noise by number", 0)):
                if sde.ROWS[name](case, method) is not None:
                    assert each <= sde.evaluations(sde.ROWS[name], case, method) <= each + once


def test_a_bare_loop_makes_our_steps():
    sde = importlib.import_module("benchmarks.paths.sde")
    for case in sde.cases(True):
        for method in case.methods:
            solver = sde.sde_cases.METHODS[method][0](dt=1 / case.steps)
            found = sde.ti.sdeint(
                case.equation.f, case.equation.g, case.y0, torch.tensor([0.0, 1.0]), solver=solver, brownian=0,
                calculus=solver.calculus,
            )  # fmt: skip
            bare = sde.bare(case, method, numbered=True)
            assert bare is None or torch.allclose(bare(case.y0), found.value[-1], atol=1e-5)


def test_smaller_steps_are_of_the_same_path():
    sde = importlib.import_module("benchmarks.paths.sde")
    for case in sde.cases(True):
        solve = sde.ours(case, "Euler", sde.ti.Direct())
        apart = solve(case.y0) - solve(case.y0, finer=True)
        assert sde._error(solve, case, None) < 0.5 * float(apart.detach().square().mean().sqrt())


def test_unlike_samples_come_to_what_is_asked():
    unlike = importlib.import_module("benchmarks.paths.unlike")
    rough, fine = (unlike._ours(8, 2, tol) for tol in (1e-1, 1e-3))
    assert rough.evaluations.mean() < fine.evaluations.mean()
    assert rough.error.shape == (2, 8)
    assert unlike.root_mean_square(fine.error) < unlike.root_mean_square(rough.error)
    assert unlike.median(fine.error) < unlike.median(rough.error)


def test_a_ratio_of_evaluations_is_read_off_where_errors_are_the_same():
    unlike = importlib.import_module("benchmarks.paths.unlike")
    error = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    theirs = [unlike.Found(torch.full_like(error, 100.0) * k, error / k**2) for k in (1, 2, 4)]
    ours = unlike.Found(torch.full_like(error, 50.0), error / 9)
    for measure in (unlike.root_mean_square, unlike.median):
        assert abs(unlike.ratio(theirs, ours, measure) - 6) < 1e-12
