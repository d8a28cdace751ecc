"""Properties that hold for any input: hypothesis looks for one that breaks them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import torchimplicit as ti
from torchimplicit.core.tree import Layout
from torchimplicit.linear import Matrix

quick = settings(max_examples=30, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(seed=seeds, batch=st.integers(1, 5), width=st.integers(1, 9), contraction=st.floats(0.0, 0.9))
def test_solvers_agree_on_contractions(seed, batch, width, contraction):
    weight = random(seed, width, width)
    weight = contraction * weight / torch.linalg.matrix_norm(weight, 2)
    x = random(seed + 1, batch, width)
    tight = {"rtol": 1e-11, "atol": 1e-12, "max_steps": 600}
    values = [
        ti.fixed_point(lambda z: torch.tanh(z @ weight) + x, torch.zeros_like(x), solver=solver).value
        for solver in (ti.Picard(**tight), ti.Anderson(**tight), ti.Newton(**tight))
    ]
    assert torch.allclose(values[0], values[1], rtol=1e-8, atol=1e-9)
    assert torch.allclose(values[0], values[2], rtol=1e-8, atol=1e-9)


@quick
@given(seed=seeds, batch=st.integers(1, 4), width=st.integers(1, 12), transpose=st.booleans(), scale=st.floats(-6, 6))
def test_linear_solvers_agree_with_a_dense_solve(seed, batch, width, transpose, scale):
    matrix = torch.eye(width, dtype=torch.float64) + 0.4 * random(seed, batch, width, width) / width**0.5
    b = 10.0**scale * random(seed + 1, batch, width)
    expected = torch.linalg.solve(matrix.mT if transpose else matrix, b)
    for solver in (ti.LU(), ti.GMRES(rtol=1e-11), ti.GMRES(rtol=1e-11, restart=3, max_steps=500)):
        prepared = solver.prepare(Matrix(matrix))
        x, report = prepared.solve_transpose(b) if transpose else prepared.solve(b)
        assert report.converged, report
        assert (x - expected).norm() <= 1e-7 * expected.norm()


@quick
@given(
    seed=seeds,
    batch=st.integers(1, 3),
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex128]),
)
def test_states_survive_flattening(seed, batch, shapes, dtype):
    leaves = [random(seed + i, batch, *shape).to(dtype) for i, shape in enumerate(shapes)]
    state = {"first": leaves[0], "rest": (leaves[1:], [leaves[0] * 2])}
    layout = Layout(state)
    rows = layout.flatten(state)
    assert rows.shape == (batch, layout.width)
    assert not rows.is_complex()
    back = layout.unflatten(rows)
    for got, given_ in zip(pytree.tree_leaves(back), pytree.tree_leaves(state), strict=True):
        assert got.dtype == given_.dtype
        assert torch.equal(got, given_)


@quick
@given(seed=seeds, damping=st.floats(0.1, 1.0), rtol=st.sampled_from([1e-2, 1e-4, 1e-8]))
def test_what_counts_as_converged_has_converged(seed, damping, rtol):
    weight, x = 0.2 * random(seed, 6, 6), random(seed + 1, 4, 6)
    for solver in (ti.Picard(damping=damping, rtol=rtol, max_steps=500), ti.Anderson(damping=damping, rtol=rtol)):
        solution = ti.fixed_point(lambda z: torch.tanh(z @ weight + x), x, solver=solver, on_failure="ignore")
        z = solution.value
        residual = (torch.tanh(z @ weight + x) - z).square().mean(1).sqrt()
        tolerance = solver.absolute + rtol * z.square().mean(1).sqrt()
        done = solution.status == ti.Status.CONVERGED
        assert (residual[done] <= 1.00001 * tolerance[done]).all()
        assert torch.allclose(residual, solution.residual, rtol=1e-6, atol=1e-14)


LINEAR_SOLVERS = (ti.GMRES(), ti.GMRES(opening=False), ti.LU(), ti.BiCGStab(), ti.Neumann(terms=40))


@quick
@given(
    seed=seeds,
    batch=st.integers(2, 5),
    width=st.integers(1, 4),
    coupling=st.floats(0.0, 0.3),
    spread=st.floats(0.0, 8.0),
    which=st.integers(0, len(LINEAR_SOLVERS) - 1),
)
def test_no_backward_solve_claims_a_residual_that_the_true_operator_does_not_have(
    seed, batch, width, coupling, spread, which
):
    weight = random(seed, width, width)
    weight = 0.5 * weight / torch.linalg.matrix_norm(weight, 2)
    mix = random(seed + 1, batch, batch)
    mix = coupling * mix / torch.linalg.matrix_norm(mix, 2)
    factors = 10 ** (spread * random(seed + 2, batch, width).clamp(-1, 1))
    shift = torch.zeros(batch, width, dtype=torch.float64, requires_grad=True)
    solution = ti.fixed_point(
        lambda z, shift: z @ weight + mix @ z + 1 + shift,
        torch.zeros(batch, width, dtype=torch.float64),
        shift,
        solver=ti.Picard(rtol=1e-11, atol=1e-12, max_steps=400),
        adjoint=ti.Implicit(LINEAR_SOLVERS[which]),
        on_failure="ignore",
    )
    (solution.value * factors).sum().backward()
    true = (factors - (shift.grad - shift.grad @ weight.T - mix.T @ shift.grad)).norm(dim=1) / width**0.5
    report, size = solution.backward, factors.norm(dim=1) / width**0.5
    told = report.status != ti.Status.CONVERGED
    assert (told | (true <= 10 * 1e-4 * size)).all()
    assert torch.allclose(report.residual, true, rtol=1e-6, atol=1e-12 * float(size.max()))


@quick
@given(seed=seeds, batch=st.integers(2, 5), nonfinite=st.integers(0, 4), value=st.floats(-2, 2), constant=st.booleans())
def test_a_nonfinite_sample_moves_no_gradient_between_the_entries_of_a_shared_tensor(
    seed, batch, nonfinite, value, constant
):
    weight, x = 0.2 * random(seed, batch, batch), random(seed + 1, batch, batch)
    shared = torch.full((batch,), value, dtype=torch.float64) if constant else random(seed + 2, batch)
    keep = torch.arange(batch) != nonfinite % batch

    def gradient(x):
        leaf = shared.clone().requires_grad_()
        solution = ti.fixed_point(
            lambda z, x, b: torch.tanh(z @ weight + x + b), torch.zeros_like(x), x, leaf, on_failure="ignore"
        )
        solution.value[keep].sum().backward()
        return leaf.grad

    bad = x.clone()
    bad[~keep] = torch.nan
    state = torch.random.get_rng_state()
    assert torch.allclose(gradient(bad), gradient(x), rtol=1e-10, atol=1e-13)
    assert torch.equal(torch.random.get_rng_state(), state)
