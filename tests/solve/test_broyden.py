"""Broyden's method: the matrix that it keeps, how fast it is, and what it hands on."""

import copy
import dataclasses
import pickle

import pytest
import torch

import torchimplicit as ti
from torchimplicit.linear import LowRank
from torchimplicit.solve.secants import Secants, SecantTape

TIGHT = {"rtol": 1e-12, "atol": 1e-12, "max_steps": 200}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contraction(radius, n=12, batch=4):
    """A smooth map whose slope at zero has this spectral radius, and inputs."""
    weight = rand(n, n)
    return radius * weight / torch.linalg.eigvals(weight).abs().max(), rand(batch, n, seed=1)


def cell(z, weight, x):
    return torch.tanh(z @ weight + x)


def pairs(count, batch=3, n=6):
    """Steps and changes of the residual, of a Jacobian not far from the identity."""
    jacobian = torch.eye(n, dtype=torch.float64) + 0.2 * rand(batch, n, n)
    steps = rand(count, batch, n, seed=1)
    return steps, torch.einsum("bij,kbj->kbi", jacobian, steps)


def textbook(steps, changes, batch=3, n=6):
    """The inverse after rank-one updates one by one: `H + (s - H y) s^T H / (s^T H y)`, `(B, n, n)`."""
    inverse = torch.eye(n, dtype=torch.float64).repeat(batch, 1, 1)
    for s, y in zip(steps, changes, strict=True):
        moved = torch.einsum("bij,bj->bi", inverse, y)
        left = torch.einsum("bi,bij->bj", s, inverse)
        scale = (s * moved).sum(1)[:, None, None]
        inverse = inverse + (s - moved).unsqueeze(2) * left.unsqueeze(1) / scale
    return inverse


def remember(memory, steps, changes):
    secants = Secants(steps[0], memory)
    for step, change in zip(steps, changes, strict=True):
        secants.propose(torch.zeros_like(step))
        secants.append(step, change)
    return secants


@pytest.mark.parametrize("memory", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_compact_inverse_is_that_of_the_last_pairs_updates(memory, count):
    steps, changes = pairs(count)
    secants = remember(memory, steps, changes)
    inverse = secants.inverse().dense(steps[0])
    assert torch.allclose(inverse, textbook(steps[-memory:], changes[-memory:]), atol=1e-10)
    assert torch.allclose(secants.inverse().matvec(changes[-1]), steps[-1], atol=1e-10), "the newest secant equation"
    residual = rand(3, 6, seed=9)
    expected = -secants.inverse().matvec(residual)
    assert torch.allclose(secants.propose(residual), expected, atol=1e-12)


def dense_run(f, z, memory, steps, halvings):
    """Iterates of the method with a dense matrix, made anew from the last pairs at every step."""
    residual = lambda z: z - f(z)  # noqa: E731
    iterates, ss, ys = [z], [], []
    for _ in range(steps):
        inverse = textbook(ss[-memory:], ys[-memory:], *z.shape)
        direction = -torch.einsum("bij,bj->bi", inverse, residual(z))
        length = torch.ones_like(z[:, :1])
        for _ in range(halvings):
            falls = residual(z + length * direction).norm(dim=1) <= (1 - 1e-4 * length[:, 0]) * residual(z).norm(dim=1)
            length = torch.where(falls.unsqueeze(1), length, length / 2)
        ss, ys = [*ss, length * direction], [*ys, residual(z + length * direction) - residual(z)]
        z = z + length * direction
        iterates.append(z)
    return iterates


@pytest.mark.parametrize("memory", [20, 3])
@pytest.mark.parametrize(("radius", "halvings"), [(0.9, 0), (6.0, 3)])
def test_the_run_is_that_of_the_dense_recursion(memory, radius, halvings):
    weight, x = contraction(radius)
    zeros = torch.zeros_like(x)
    expected = dense_run(lambda z: cell(z, weight, x), zeros, memory, 10, halvings)
    if halvings:
        full = dense_run(lambda z: cell(z, weight, x), zeros, memory, 10, 0)
        assert not torch.allclose(full[3], expected[3]), "the line search has something to do"
    solver = ti.Broyden(memory=memory, halvings=halvings, rtol=0.0, atol=1e-14, max_steps=10)
    steps = list(range(11))
    got = ti.fixed_point(cell, zeros, weight, x, solver=solver, save_steps=steps, on_failure="ignore").trajectory
    for ours, theirs in zip(got[:10], expected, strict=False):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-10)


def test_low_rank_operators_have_a_transpose_and_a_matrix():
    operator = LowRank(rand(3, 2, 6), rand(3, 2, 6, seed=1))
    v = rand(3, 6, seed=2)
    assert (operator.check_adjoint(v) < 1e-14).all()
    dense = torch.eye(6, dtype=torch.float64) + operator.u.mT @ operator.v
    assert torch.allclose(operator.dense(v), dense)
    assert torch.allclose(operator.matvec(v), (dense @ v.unsqueeze(2)).squeeze(2))
    assert torch.allclose(operator.rmatvec(v), (dense.mT @ v.unsqueeze(2)).squeeze(2))
    twice = operator.repeated(6)
    assert torch.allclose(twice.dense(torch.cat([v, v])), torch.cat([dense, dense]))
    empty = LowRank(rand(3, 0, 6), rand(3, 0, 6))
    assert torch.equal(empty.matvec(v), v)
    with pytest.raises(ValueError, match=r"got shapes \(2, 6\)"):
        LowRank(rand(2, 6), rand(2, 6))


def test_convergence_is_superlinear_while_the_memory_lasts():
    weight, x = contraction(0.95)
    options = {"rtol": 0.0, "atol": 1e-13, "max_steps": 200}

    def steps(solver):
        return int(ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver).steps.max())

    # Three unknowns: the rate of the last steps against that of the first.
    g = lambda z, a: z + 0.3 * torch.sin(z.roll(1, 1) * z) - a  # noqa: E731
    a = rand(5, 3)
    trace = ti.root(g, torch.zeros_like(a), a, solver=ti.Broyden(**options), trace=True).trace
    rates = (trace[1:] / trace[:-1])[:, 0]
    rates = rates[~rates.isnan()]
    assert rates[-2:].mean() < 0.05 * rates[:2].mean()
    full = steps(ti.Broyden(memory=40, **options))
    assert full < 0.7 * steps(ti.Picard(**options))


def test_memory_and_halvings_change_the_run():
    weight, x = contraction(0.95)
    traces = {}
    for name, options in {"usual": {}, "memory": {"memory": 2}}.items():
        solver = ti.Broyden(**options, **TIGHT)
        traces[name] = ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver, trace=True).trace
    assert torch.equal(traces["usual"][:3], traces["memory"][:3]), "the first pairs fit"
    assert not torch.equal(traces["usual"][:6], traces["memory"][:6])
    # A full first step of this root's residual leads away from it; a shorter one does not.
    g = lambda z, a: 3 * (z - a) + (z - a) ** 3  # noqa: E731
    a = torch.full((1, 2), 1.0, dtype=torch.float64)
    runs = [ti.root(g, torch.zeros_like(a), a, solver=ti.Broyden(halvings=k, **TIGHT), trace=True) for k in (0, 6)]
    assert runs[0].trace[1] > runs[0].trace[0]
    assert (runs[1].trace[1:].nan_to_num(0) < runs[1].trace[0]).all()
    assert runs[1].nfev > runs[1].steps.max() + 1, "a halving is an evaluation"


def test_a_singular_update_makes_a_sample_start_anew_and_touches_no_other():
    # Along (1, 0) the residual changes along (0, 1): s^T y = 0, and no inverse has this secant.
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    half = torch.tensor([[0.5, 0.0], [0.2, 0.7]], dtype=torch.float64)
    matrices = torch.stack([half, quarter, 0.5 * half])
    a = rand(3, 2)
    g = lambda z, m, a: (m @ z.unsqueeze(2)).squeeze(2) - a  # noqa: E731

    def run(matrices):
        solver = ti.Broyden(rtol=0.0, atol=1e-10, max_steps=30)
        return ti.root(g, torch.zeros_like(a), matrices, a, solver=solver, trace=True, on_failure="ignore")

    singular, benign = run(matrices), run(torch.stack([half, half, 0.5 * half]))
    assert singular.value.isfinite().all()
    assert singular.residual.isfinite().all()
    assert singular.state.inverse().dense(a).isfinite().all()
    for name in ("value", "steps", "status", "residual"):
        assert torch.equal(getattr(singular, name)[[0, 2]], getattr(benign, name)[[0, 2]])
    picard = ti.root(
        g, torch.zeros_like(a), matrices, a, solver=ti.Picard(max_steps=2), trace=True, on_failure="ignore"
    )
    assert torch.allclose(singular.trace[:3, 1], picard.trace[:3, 1]), "the step after is Picard's"


def test_a_factor_that_is_singular_at_the_end_is_the_identity():
    steps = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]], dtype=torch.float64).permute(1, 0, 2)
    secants = Secants(steps[0], 2)
    secants.propose(steps[0])
    secants.append(steps[0], torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64) * torch.tensor([[1.0], [2.0]]))
    secants.matrix[0] = torch.zeros(2, 2)
    assert secants.inverse().dense(steps[0]).isfinite().all()


def test_a_sample_at_its_solution_disturbs_nobody():
    weight, x = contraction(0.9)
    x[1] = 0  # z = 0 solves it

    def run(x):
        return ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=ti.Broyden(**TIGHT))

    solution, alone = run(x), run(x[[0, 2, 3]])
    assert solution.steps[1] == 0
    assert torch.equal(solution.value[1], torch.zeros_like(x[1]))
    assert torch.equal(solution.steps[[0, 2, 3]], alone.steps)
    assert torch.allclose(solution.value[[0, 2, 3]], alone.value, atol=1e-14)
    assert torch.equal(solution.state.inverse().dense(x)[1], torch.eye(12, dtype=torch.float64)), "nothing was learnt"


@pytest.mark.parametrize("memory", [5, 60])
def test_what_a_stopped_sample_learnt_does_not_depend_on_those_that_go_on(memory):
    weight, x = contraction(0.97)
    x[1:] = 1e-3 * x[1:]
    gain = torch.tensor([[1.0], [0.3], [0.3], [0.3]], dtype=torch.float64)
    f = lambda z, weight, gain, x: torch.tanh(gain * (z @ weight) + x)  # noqa: E731
    solver = ti.Broyden(memory=memory, rtol=1e-6, atol=1e-6, max_steps=100)
    mixed = ti.fixed_point(f, torch.zeros_like(x), weight, gain, x, solver=solver)
    alone = ti.fixed_point(f, torch.zeros_like(x[1:]), weight, gain[1:], x[1:], solver=solver)
    assert mixed.steps[0] > 5 + mixed.steps[1:].max(), "else there is nothing to see"
    assert torch.allclose(mixed.state.inverse().dense(x)[1:], alone.state.inverse().dense(x[1:]), atol=1e-12)


@pytest.mark.parametrize("memory", [3, 20])
def test_unrolled_runs_the_same_arithmetic(memory):
    weight, x = contraction(0.8)
    weight.requires_grad_()
    solver = ti.Broyden(memory=memory, **TIGHT)
    solutions = [
        ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver, adjoint=adjoint, trace=True)
        for adjoint in (ti.Unrolled(), ti.Implicit(ti.LU()))
    ]
    unrolled, implicit = solutions
    assert torch.equal(unrolled.steps, implicit.steps)
    assert torch.allclose(unrolled.trace, implicit.trace, rtol=1e-3, atol=1e-12, equal_nan=True)
    assert torch.allclose(unrolled.value, implicit.value, atol=1e-12)
    assert unrolled.state is None
    grads = [torch.autograd.grad(solution.value.sin().sum(), weight)[0] for solution in solutions]
    assert torch.allclose(*grads, atol=1e-8)


def test_tape_and_ring_propose_the_same():
    steps, changes = pairs(6)
    tape = SecantTape(4)
    for step, change in zip(steps, changes, strict=True):
        tape.append(step, change)
    residual = rand(3, 6, seed=7)
    assert torch.allclose(tape.propose(residual), remember(4, steps, changes).propose(residual), atol=1e-12)


def test_roots_of_nested_states():
    def g(z, a):
        return {"u": z["u"] + 0.3 * z["v"].tanh() - a, "v": z["v"] - 0.4 * z["u"].sin()}

    a = rand(4, 3)
    zeros = {"u": torch.zeros_like(a), "v": torch.zeros_like(a)}
    broyden, newton = (ti.root(g, zeros, a, solver=solver(**TIGHT)) for solver in (ti.Broyden, ti.Newton))
    for name in zeros:
        assert torch.allclose(broyden.value[name], newton.value[name], atol=1e-10)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-11])
def test_a_warm_start_with_what_was_learnt_takes_fewer_evaluations(tolerance):
    weight, x = contraction(0.95, n=20, batch=8)
    solver = ti.Broyden(memory=20, rtol=tolerance, atol=tolerance, max_steps=100)
    first = ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver)
    nearby = x + 0.02 * rand(8, 20, seed=5)
    forgetful = dataclasses.replace(first, state=None)
    count = [
        ti.fixed_point(cell, torch.zeros_like(x), weight, nearby, solver=solver, warm_start=start).nfev
        for start in (first, forgetful)
    ]
    assert count[0] <= 0.9 * count[1]


def test_a_warm_start_leaves_what_it_starts_from_as_it_is():
    weight, x = contraction(0.9)
    solver = ti.Broyden(**TIGHT)
    first = ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver)
    before = first.state.inverse().dense(x)
    for _ in range(2):
        again = ti.fixed_point(cell, torch.zeros_like(x), weight, x + 0.1, solver=solver, warm_start=first)
        assert again.state is not first.state
    assert torch.equal(first.state.inverse().dense(x), before)


@pytest.mark.parametrize("other", [torch.float32, torch.float64])
def test_pairs_that_do_not_fit_are_not_used(other):
    weight, x = contraction(0.9)
    solver = ti.Broyden(rtol=1e-5, atol=1e-5)
    first = ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver)
    small = ti.fixed_point(cell, torch.zeros_like(x[:2]), weight, x[:2], solver=solver)
    weight, x = weight.to(other), x.to(other)
    start = dataclasses.replace(small, value=first.value.to(other))
    if other is torch.float32:
        start = dataclasses.replace(start, state=first.state)
    fresh = dataclasses.replace(start, state=None)
    runs = [
        ti.fixed_point(cell, torch.zeros_like(x), weight, x + 0.1, solver=solver, warm_start=s) for s in (start, fresh)
    ]
    assert torch.equal(runs[0].value, runs[1].value)
    assert runs[0].nfev == runs[1].nfev


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_the_state_survives_copies(copied):
    weight, x = contraction(0.9)
    solver = ti.Broyden(rtol=1e-6, atol=1e-6)
    first = ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver)
    twin = copied(first)
    assert torch.equal(twin.state.inverse().dense(x), first.state.inverse().dense(x))
    runs = [
        ti.fixed_point(cell, torch.zeros_like(x), weight, x + 0.1, solver=solver, warm_start=s) for s in (first, twin)
    ]
    assert torch.equal(runs[0].value, runs[1].value)


def test_no_steps_at_all():
    weight, x = contraction(0.9)
    solver = ti.Broyden(max_steps=0)
    solution = ti.fixed_point(cell, torch.zeros_like(x), weight, x, solver=solver, on_failure="ignore")
    assert torch.equal(solution.state.inverse().dense(x), torch.eye(12, dtype=torch.float64).repeat(4, 1, 1))


@pytest.mark.parametrize("options", [{"memory": 0}, {"memory": 2.5}, {"halvings": -1}])
def test_impossible_options_are_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"Broyden\({name}={value}\): expected an integer"):
        ti.Broyden(**options)
