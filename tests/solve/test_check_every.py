"""Looking at the residuals only every so many steps."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.solve import samples

OPTIONS = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 300}
KINDS = [ti.Picard, ti.Anderson, ti.Broyden]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = rand(6, 5)
RATE = torch.linspace(0.3, 0.95, 6).double().unsqueeze(1)
WEIGHT = torch.linalg.qr(rand(5, 5, seed=1))[0]


def f(z, x, rate):
    return rate * torch.tanh(z @ WEIGHT) + x


def solve(solver, f=f, x=X, rate=RATE, **options):
    return ti.fixed_point(f, torch.zeros_like(x), x, rate, solver=solver, trace=True, **options)


@pytest.fixture
def looks(monkeypatch):
    """The steps that were looked at."""
    seen = []
    judge = samples.Samples.judge

    def listening(self, step, z, residual, stuck):
        seen.append(step)
        return judge(self, step, z, residual, stuck)

    monkeypatch.setattr(samples.Samples, "judge", listening)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [2, 3, 7])
def test_rare_looks_find_the_same_solution(kind, every, looks):
    often = solve(kind(**OPTIONS))
    many = len(looks)
    looks.clear()
    rarely = solve(kind(check_every=every, **OPTIONS))
    assert len(looks) <= many / every + 2
    assert all(step % every == 0 for step in looks)
    assert (rarely.status == ti.Status.CONVERGED).all()
    assert torch.allclose(rarely.value, often.value, atol=1e-6)
    # As many steps as before, rounded up, for a sample that still meets its tolerance when it is looked at.
    assert torch.equal(rarely.steps, -(-often.steps // every) * every)
    assert (rarely.residual <= 1.0001e-8 * (1 + rarely.value.square().mean(1).sqrt())).all()


def test_the_trace_has_what_was_looked_at():
    often, rarely = (solve(ti.Picard(check_every=every, **OPTIONS)) for every in (1, 4))
    seen = torch.arange(len(rarely.trace)) % 4 == 0
    assert rarely.trace[~seen].isnan().all()
    both = rarely.trace[seen][: len(often.trace[::4])]
    assert torch.equal(both[~often.trace[::4].isnan()], often.trace[::4][~often.trace[::4].isnan()])


@pytest.mark.parametrize("limit", [0, 1, 4, 5, 10])
def test_the_limit_of_steps_is_kept_to_the_step(limit, looks):
    count = [0]

    def counted(z, x, rate):
        count[0] += 1
        return f(z, x, rate)

    solver = ti.Picard(rtol=0.0, atol=1e-15, max_steps=limit, check_every=4)
    solution = solve(solver, counted, on_failure="ignore")
    assert count == [limit + 1]
    assert (solution.steps == limit).all()
    assert looks[-1] == limit
    z = torch.zeros_like(X)
    for _ in range(limit):
        z = f(z, X, RATE)
    assert torch.equal(solution.value, z)
    assert len(solution.trace) == limit + 1


@pytest.mark.parametrize("every", [3, 5, 8])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_best_iterate_survives_a_memory_shorter_than_the_stride(every, window):
    # Maps that expand: the best iterate is long gone when a look finds the residual risen.
    rate = torch.tensor([[0.5], [1.6], [2.5], [0.9], [5.0], [1.2]], dtype=torch.float64)
    g = lambda z, x, rate: rate * torch.sin(3 * z @ WEIGHT) + x  # noqa: E731
    for solver in (
        ti.Anderson(window=window, rtol=1e-8, atol=1e-8, max_steps=60, check_every=every),
        ti.Broyden(memory=window, rtol=1e-8, atol=1e-8, max_steps=60, check_every=every),
    ):
        solution = solve(solver, g, rate=rate, on_failure="ignore")
        residual = (solution.value - g(solution.value, X, rate)).square().mean(1).sqrt()
        assert torch.allclose(residual, solution.residual, rtol=1e-9, atol=1e-15)
        assert torch.allclose(solution.trace.nan_to_num(torch.inf).amin(0), solution.residual, rtol=1e-5, atol=0)


def test_failures_are_told_apart():
    x = X.clone()
    x[0, 0] = torch.nan
    rate = torch.tensor([[0.5], [3.0], [0.5], [0.5], [0.5], [0.5]], dtype=torch.float64)
    linear = lambda z, x, rate: rate * z + x  # noqa: E731
    solution = solve(ti.Picard(check_every=5, **OPTIONS), linear, x, rate, on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.NON_FINITE, ti.Status.DIVERGED, *[ti.Status.CONVERGED] * 4]
    assert solution.value.isfinite().all()


def test_saved_steps_need_every_look():
    rarely, often = (
        solve(ti.Anderson(check_every=every, **OPTIONS), save_steps=[1, 2, 5]).trajectory for every in (7, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(rarely, often, strict=True))


def test_unrolling_looks_rarely_too():
    x = X.clone().requires_grad_()
    grads = []
    for every in (1, 4):
        value = solve(ti.Anderson(check_every=every, **OPTIONS), x=x, adjoint=ti.Unrolled()).value
        grads.append(torch.autograd.grad(value.sin().sum(), x)[0])
    assert torch.allclose(*grads, atol=1e-6)


@pytest.mark.parametrize("every", [0, -1, 2.0])
def test_impossible_strides_are_refused(every):
    with pytest.raises(ValueError, match="check_every="):
        ti.Picard(check_every=every)
