"""Iterates on the way: which ones, with which gradient."""

import dataclasses

import pytest
import torch

import torchimplicit as ti

TIGHT = {"rtol": 1e-11, "atol": 1e-11}
SOLVERS = [
    ti.Picard(max_steps=200, **TIGHT),
    ti.Anderson(max_steps=200, **TIGHT),
    ti.Anderson(window=2, period=1, max_steps=200, **TIGHT),
    ti.Broyden(max_steps=200, **TIGHT),
    ti.Broyden(memory=2, max_steps=200, **TIGHT),
    ti.Newton(max_steps=200, **TIGHT),
    ti.PseudoTransient(max_steps=200, **TIGHT),
]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, X, START = 0.15 * rand(5, 5), rand(4, 5, seed=1), rand(4, 5, seed=2)


def f(z, weight, x):
    return torch.tanh(z @ weight + x)


def leaves():
    return WEIGHT.clone().requires_grad_(), X.clone().requires_grad_()


def iterates(steps, weight=WEIGHT, x=X, z=START):
    """`f` applied 0, 1, ... times."""
    path = [z]
    for _ in range(steps):
        path.append(f(path[-1], weight, x))
    return path


def gradients(value, args):
    return torch.autograd.grad(value.sin().sum(), args, retain_graph=True)


def close(grads, expected, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=0.0, atol=tolerance) for a, b in zip(grads, expected, strict=True))


@pytest.mark.parametrize("grad", [True, False])
def test_iterate_k_is_the_function_applied_k_times(grad):
    steps = [0, 1, 2, 3, 7]
    with torch.set_grad_enabled(grad):
        solution = ti.fixed_point(f, START, *leaves(), solver=SOLVERS[0], save_steps=steps)
    path = iterates(7)
    assert len(solution.trajectory) == 5
    for step, got in zip(steps, solution.trajectory, strict=True):
        assert torch.allclose(got, path[step], atol=1e-14)
        assert got.requires_grad == grad


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled()], ids=str)
def test_iterate_k_is_where_k_steps_end(solver, adjoint):
    args = leaves()
    steps = list(range(6))
    solution = ti.fixed_point(f, START, *args, solver=solver, adjoint=adjoint, save_steps=steps)
    for step in steps:
        # Every residual is better than the one before here, so that the best iterate is the latest.
        short = dataclasses.replace(solver, max_steps=step)
        assert (solution.steps >= 3).all()
        stopped = ti.fixed_point(f, START, *args, solver=short, adjoint=adjoint, on_failure="ignore")
        assert torch.allclose(solution.trajectory[step], stopped.value, atol=1e-10)
    assert torch.equal(solution.trajectory[0], START)


def test_order_repetition_and_what_lies_beyond_the_end():
    solution = ti.fixed_point(f, START, *leaves(), solver=SOLVERS[0], save_steps=(3, 0, 10_000, 3))
    late, first, beyond, again = solution.trajectory
    assert torch.equal(late, again)
    assert torch.equal(first, START)
    assert torch.equal(beyond, solution.value)
    assert ti.fixed_point(f, START, *leaves()).trajectory == ()


def test_a_sample_that_has_arrived_stays_at_its_solution():
    x = X.clone()
    start = START.clone()
    start[1] = iterates(300)[-1][1]
    solution = ti.fixed_point(f, start, WEIGHT, x, solver=SOLVERS[1], save_steps=[0, 2, 4])
    assert solution.steps[1] == 0
    assert all(torch.equal(z[1], start[1]) for z in solution.trajectory)


def test_an_iterate_has_the_gradient_of_one_step_from_it():
    args = leaves()
    solution = ti.fixed_point(f, START, *args, solver=SOLVERS[0], save_steps=[0, 2, 50])
    path = iterates(2)
    for got, z in zip(solution.trajectory, (path[0], path[2], solution.value.detach()), strict=True):
        step = f(z, *args)
        expected = torch.autograd.grad(step, args, got.detach().cos())
        assert torch.allclose(got, z, atol=1e-13), "its value is its own, not the step's"
        assert close(gradients(got, args), expected)


def test_phantom_takes_its_own_steps_from_it():
    args = leaves()
    options = {"solver": SOLVERS[0], "save_steps": [1, 3]}
    solution = ti.fixed_point(f, START, *args, adjoint=ti.Phantom(steps=3, damping=0.5), **options)
    path = iterates(3)
    for got, z in zip(solution.trajectory, (path[1], path[3]), strict=True):
        moved = z
        for _ in range(3):
            moved = 0.5 * moved + 0.5 * f(moved, *args)
        assert close(gradients(got, args), torch.autograd.grad(moved, args, got.detach().cos()))


@pytest.mark.parametrize("adjoint", [ti.Unrolled(), ti.Unrolled(checkpoint=True)], ids=str)
def test_unrolling_gives_the_exact_gradient(adjoint):
    args = (*leaves(), START.clone().requires_grad_())
    weight, x, start = args
    solution = ti.fixed_point(f, start, weight, x, solver=SOLVERS[0], adjoint=adjoint, save_steps=[1, 4])
    path = iterates(4, *args)
    for got, expected in zip(solution.trajectory, (path[1], path[4]), strict=True):
        assert torch.allclose(got, expected, atol=1e-14)
        assert close(gradients(got, args), gradients(expected, args))


def test_the_solution_keeps_its_own_gradient():
    args = leaves()
    plain = ti.fixed_point(f, START, *args, solver=SOLVERS[1], adjoint=ti.Implicit(ti.LU()))
    saved = ti.fixed_point(f, START, *args, solver=SOLVERS[1], adjoint=ti.Implicit(ti.LU()), save_steps=[1, 2, 99])
    assert torch.equal(plain.value, saved.value)
    assert close(gradients(plain.value, args), gradients(saved.value, args), 0.0)


@pytest.mark.parametrize(
    "adjoint", [ti.Implicit(), ti.Phantom(steps=2), ti.Unrolled(), ti.Unrolled(checkpoint=True)], ids=str
)
@pytest.mark.parametrize("bad", ["at once", "later"])
def test_nonfinite_samples_are_kept_out(adjoint, bad):
    weight, x = leaves()
    x, start = x.detach().clone(), START.clone()
    if bad == "at once":
        x[2, 1] = torch.nan
    else:  # 1, then 15, then beyond all numbers
        x[2], start[2] = 100.0, 1.0
    x.requires_grad_()
    h = lambda z, w, x: torch.where(x > 90, z.exp().exp(), torch.tanh(z @ w + x))  # noqa: E731
    solution = ti.fixed_point(
        h,
        start,
        weight,
        x,
        solver=ti.Picard(**TIGHT, max_steps=60),
        adjoint=adjoint,
        save_steps=[0, 1, 3, 99],
        on_failure="ignore",
    )
    assert solution.status[2] == ti.Status.NON_FINITE
    assert (solution.steps[2] > 0) == (bad == "later")
    others = [0, 1, 3]
    alone_weight, alone_x = weight.detach().clone().requires_grad_(), x[others].detach().clone().requires_grad_()
    alone = ti.fixed_point(
        f,
        START[others],
        alone_weight,
        alone_x,
        solver=ti.Picard(**TIGHT, max_steps=60),
        adjoint=adjoint,
        save_steps=[0, 1, 3, 99],
    )
    for got, expected in zip(solution.trajectory, alone.trajectory, strict=True):
        assert got.isfinite().all()
        assert torch.allclose(got[others], expected, atol=1e-13)
        if not (isinstance(adjoint, ti.Unrolled) and got is solution.trajectory[0]):
            by_weight, by_x = gradients(got, (weight, x))
            by_alone_weight, by_alone_x = gradients(expected, (alone_weight, alone_x))
            assert by_x.isfinite().all()
            assert torch.allclose(by_weight, by_alone_weight, atol=1e-12)
            assert torch.allclose(by_x[others], by_alone_x, atol=1e-12)
            assert not by_x[2].any()


def test_all_samples_nonfinite():
    weight, x = leaves()
    x = torch.full_like(x, torch.nan).requires_grad_()
    for adjoint in (ti.Implicit(), ti.Phantom()):
        solution = ti.fixed_point(f, START, weight, x, adjoint=adjoint, save_steps=[1], on_failure="ignore")
        assert torch.equal(solution.trajectory[0], START)
        assert not any(grad.any() for grad in gradients(solution.trajectory[0], (weight, x)))


def test_nested_states_and_roots():
    def g(z, a):
        return {"u": 2 * z["u"] - a, "v": z["v"] - 0.4 * z["u"].sin()}

    a = rand(4, 3).requires_grad_()
    zeros = {"u": torch.zeros(4, 3).double(), "v": torch.zeros(4, 3).double()}
    solution = ti.root(g, zeros, a, solver=ti.Newton(**TIGHT), save_steps=[0, 1])
    assert torch.equal(solution.trajectory[0]["u"], zeros["u"])
    assert torch.allclose(solution.trajectory[1]["u"], a / 2)
    assert solution.trajectory[1]["v"].shape == (4, 3)


def test_transforms_are_refused_but_for_unrolling():
    def total(adjoint):
        def of(weight):
            options = {"solver": SOLVERS[0], "adjoint": adjoint, "save_steps": [2]}
            return ti.fixed_point(f, START, weight, X, **options).trajectory[0].sin().sum()

        return of

    with pytest.raises(NotImplementedError, match=r"save_steps does not work under torch\.func.*Unrolled\(\)"):
        torch.func.grad(total(ti.Implicit()))(WEIGHT)
    weight = WEIGHT.clone().requires_grad_()
    expected = gradients(iterates(2, weight)[2], weight)[0]
    assert torch.allclose(torch.func.grad(total(ti.Unrolled()))(WEIGHT), expected, atol=1e-12)


@pytest.mark.parametrize("steps", [[-1], [1.0], 3, "12", [None], {1}])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"save_steps: got .*, expected a list of steps, integers >= 0"):
        ti.fixed_point(f, START, WEIGHT, X, save_steps=steps)


def test_a_layer_returns_them_beside_its_solution():
    layer = ti.nn.DEQ(lambda z, x: torch.tanh(z @ WEIGHT + x), solver=SOLVERS[0])
    x = X.clone().requires_grad_()
    z, along = layer(x, z0=START, save_steps=[0, 2])
    assert torch.equal(z, layer(x, z0=START))
    assert torch.equal(along[0], START)
    assert torch.allclose(along[1], iterates(2)[2])
    step = f(along[1].detach(), WEIGHT, x)
    expected = torch.autograd.grad(step, x, along[1].detach().cos())[0]
    assert torch.allclose(gradients(along[1], x)[0], expected)
    nested = ti.nn.DEQ(lambda z, x: {"z": torch.tanh(z["z"] @ WEIGHT + x["z"])}, solver=SOLVERS[0])
    value, (first,) = nested({"z": x}, save_steps=[1])
    assert torch.allclose(first["z"], torch.tanh(x))
    assert value["z"].shape == x.shape
