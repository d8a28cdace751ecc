"""The forward solve's inverse in the backward pass: Shine's bias and its fallback, and what preconditioning saves."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

import torchimplicit as ti
from torchimplicit.linear import Jacobian, LowRank
from torchimplicit.solve.secants import Secants

SOLVER = ti.Broyden(rtol=1e-10, atol=1e-10, max_steps=100)
EXACT = ti.Implicit(ti.LU())


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, X = 0.12 * rand(10, 10), rand(6, 10, seed=1)


def cell(z, weight, x):
    return torch.tanh(z @ weight + x)


def gradients(adjoint, solver=SOLVER, f=cell, args=(WEIGHT, X), **options):
    """The gradients of a nonlinear loss by the arguments, and the solution."""
    args = [arg.clone().requires_grad_() for arg in args]
    solution = ti.fixed_point(f, torch.zeros_like(args[1]), *args, solver=solver, adjoint=adjoint, **options)
    return torch.autograd.grad(solution.value.sin().sum(), args), solution


def linear_gradient(adjoint, matrices, b, **options):
    """`u` itself: of the fixed point of `z A^T + x`, the gradient by `x` solves `(I - A)^T u = g`."""
    x = rand(*b.shape, seed=5).requires_grad_()
    f = lambda z, x: (matrices @ z.unsqueeze(2)).squeeze(2) + x  # noqa: E731
    solution = ti.fixed_point(f, torch.zeros_like(b), x, adjoint=adjoint, **options)
    return torch.autograd.grad(solution.value, x, b)[0], solution


@pytest.mark.parametrize("refine", [0, 1, 5])
def test_the_error_is_within_its_bound(refine):
    matrices, b = 0.18 * rand(6, 8, 8), rand(6, 8, seed=1)
    solver = ti.Broyden(memory=8, rtol=1e-3, atol=1e-3, max_steps=60)
    u, solution = linear_gradient(ti.Shine(refine=refine), matrices, b, solver=solver, on_failure="ignore")
    residual = torch.eye(8, dtype=torch.float64) - matrices
    exact = torch.linalg.solve(residual.mT, b.unsqueeze(2)).squeeze(2)
    inverse = solution.state.inverse().dense(b)
    left = torch.linalg.matrix_norm(torch.eye(8, dtype=torch.float64) - inverse.mT @ residual.mT, 2)
    error = (u - exact).norm(dim=1) / exact.norm(dim=1)
    fallen = solution.backward.status == ti.Status.DIVERGED
    left, error = left[~fallen], error[~fallen]
    assert (left < 1).sum() >= 3, "the bound says something"
    assert (error <= left ** (refine + 1) + 1e-12).all()
    assert (error > 1e-6).any(), "the bias is real"
    assert solution.backward.nfev == refine


def test_refinement_makes_the_gradient_better():
    exact = gradients(EXACT)[0][0]
    errors = [(gradients(ti.Shine(refine=k))[0][0] - exact).norm() / exact.norm() for k in (0, 1, 2, 4, 8)]
    assert all(later < 0.6 * before for before, later in pairwise(errors))
    jfb = (gradients(ti.Phantom())[0][0] - exact).norm() / exact.norm()
    assert errors[0] < 0.6 * jfb, "what was learnt is better than nothing"


def test_the_residual_of_the_refinement_is_reported():
    b, matrices = rand(6, 8, seed=1), 0.15 * rand(6, 8, 8)
    _, solution = linear_gradient(ti.Shine(), matrices, b, solver=SOLVER)
    bare = solution.backward.residual
    assert (bare > 0).all(), "measured by the backward pass's final product, also where no refinement did"
    u = [linear_gradient(ti.Shine(refine=k), matrices, b, solver=SOLVER)[0] for k in (1, 2)]
    _, solution = linear_gradient(ti.Shine(refine=2), matrices, b, solver=SOLVER)
    residual = torch.eye(8, dtype=torch.float64) - matrices
    gap = b - (residual.mT @ u[1].unsqueeze(2)).squeeze(2)
    assert torch.allclose(solution.backward.residual, gap.norm(dim=1) / 8**0.5)


class Sabotage:
    """Makes the factors of some samples explode, be wrong, or not be finite."""

    def __init__(self, monkeypatch, factors):
        inverse = Secants.inverse

        def sabotaged(secants):
            good = inverse(secants)
            u, v = good.u.clone(), good.v.clone()
            for row, factor in factors.items():
                u[row], v[row] = factor, 1.0
            return LowRank(u, v)

        monkeypatch.setattr(Secants, "inverse", sabotaged)


@pytest.mark.parametrize("refine", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("factor", [1e8, float("nan"), float("inf")])
def test_an_exploding_factor_gives_the_jacobian_free_gradient(monkeypatch, factor, refine):
    adjoint = ti.Shine(refine=refine)
    (_, plain), _ = gradients(adjoint)
    (_, free), _ = gradients(ti.Phantom())
    Sabotage(monkeypatch, {1: factor, 4: factor})
    with pytest.warns(ti.ConvergenceWarning, match="explodes"):
        (_, fallen), solution = gradients(adjoint, on_failure="warn")
    nonfinite, others = [1, 4], [0, 2, 3, 5]
    assert torch.allclose(fallen[nonfinite], free[nonfinite], rtol=1e-13)
    assert torch.equal(fallen[others], plain[others])
    assert (solution.backward.status[nonfinite] == ti.Status.DIVERGED).all()
    assert (solution.backward.status[others] == ti.Status.CONVERGED).all()


@pytest.mark.parametrize("refine", [1, 2, 3, 4])
def test_a_factor_that_is_worse_than_nothing_gives_it_too_also_where_the_map_expands(monkeypatch, refine):
    # In the direction of b the map expands, so that the residual of the fallback, too, is longer than b.
    matrices, b = torch.full((3, 2, 2), 0.0, dtype=torch.float64), rand(3, 2, seed=1)
    matrices[:, 0, 0] = matrices[:, 1, 1] = -1.6
    Sabotage(monkeypatch, {0: 2.0, 1: 2.0, 2: 2.0})
    solver = ti.Broyden(rtol=1e-10, atol=1e-10)
    u, solution = linear_gradient(ti.Shine(refine=refine), matrices, b, solver=solver, on_failure="ignore")
    assert torch.allclose(u, b, rtol=1e-14)
    assert (solution.backward.status == ti.Status.DIVERGED).all()


def test_fallback_is_the_bound_of_growth():
    args = ({"adjoint": ti.Shine(fallback=1e-3)}, {"adjoint": ti.Phantom()})
    strict, free = (gradients(on_failure="ignore", **arg)[0][1] for arg in args)
    assert torch.allclose(strict, free, rtol=1e-13)
    assert not torch.allclose(gradients(ti.Shine())[0][1], free, rtol=1e-3)


def test_a_gradient_that_is_not_finite_and_one_of_zero():
    weight, x = WEIGHT, X.clone().requires_grad_()
    value = ti.fixed_point(
        cell, torch.zeros_like(x), weight, x, solver=SOLVER, adjoint=ti.Shine(), on_failure="ignore"
    ).value
    incoming = torch.ones_like(value)
    incoming[1], incoming[2] = 0, torch.nan
    got = torch.autograd.grad(value, x, incoming)[0]
    assert got.isfinite().all()
    assert not got[[1, 2]].any()
    assert got[[0, 3]].all()


def test_samples_that_stop_early_keep_a_good_factor():
    # The first takes much longer; what the others' memory would learn meanwhile is rounding.
    gain = torch.tensor([[2.0], *[[1.0]] * 5], dtype=torch.float64)
    f = lambda z, gain, x: torch.tanh(gain * (z @ WEIGHT) + x)  # noqa: E731
    x = torch.cat([0.1 * X[:1], X[1:]])
    solver = ti.Broyden(memory=8, rtol=1e-9, atol=1e-9, max_steps=200)
    (_, mixed), solution = gradients(ti.Shine(), solver, f, (gain, x))
    (_, alone), _ = gradients(ti.Shine(), solver, f, (gain[1:], x[1:]))
    assert solution.steps[0] > 8 + solution.steps[1:].max(), "else there is nothing to see"
    assert torch.allclose(mixed[1:], alone, atol=1e-12)


def test_a_nonfinite_sample_reaches_no_gradient():
    x = X.clone()
    x[2, 3] = torch.nan
    for adjoint in (ti.Shine(refine=1), ti.Implicit(ti.GMRES(rtol=1e-12), precondition=True)):
        (weight, by_x), solution = gradients(adjoint, args=(WEIGHT, x), on_failure="ignore")
        assert solution.status[2] == ti.Status.NON_FINITE
        assert weight.isfinite().all()
        assert not by_x[2].any()
        others = [0, 1, 3, 4, 5]
        assert torch.allclose(by_x[others], gradients(adjoint)[0][1][others], atol=1e-13)


@pytest.fixture
def products(monkeypatch):
    """Counts the products with the transposed Jacobian."""
    count = [0]
    product = Jacobian.rmatvec

    def counting(self, v):
        count[0] += 1
        return product(self, v)

    monkeypatch.setattr(Jacobian, "rmatvec", counting)
    return count


@pytest.mark.parametrize(
    "linear", [ti.GMRES(rtol=1e-10, opening=False), ti.GMRES(rtol=1e-10), ti.BiCGStab(rtol=1e-10)], ids=str
)
def test_preconditioning_saves_products_and_gives_the_same_gradient(linear, products):
    # Six slow directions, which the solver has to learn: the map x -> tanh(z W + x) with eigenvalues 0.85 to 0.97.
    basis = torch.linalg.qr(rand(24, 24))[0]
    eigenvalues = torch.cat([torch.linspace(0.85, 0.97, 6), torch.linspace(-0.05, 0.05, 18)]).double()
    weight, x = basis @ torch.diag(eigenvalues) @ basis.T, 0.1 * rand(4, 24, seed=1)
    solver = ti.Broyden(memory=30, rtol=1e-9, atol=1e-9, max_steps=100)
    grads, counts = [], []
    for precondition in (True, False):
        products[0] = 0
        grads.append(gradients(ti.Implicit(linear, precondition=precondition), solver, args=(weight, x))[0])
        counts.append(products[0])
    assert counts[0] < 0.9 * counts[1]
    for preconditioned, plain in zip(*grads, strict=True):
        assert torch.allclose(preconditioned, plain, atol=1e-8)


def test_preconditioning_with_a_factor_that_is_singular(monkeypatch):
    secants = Secants.inverse
    monkeypatch.setattr(Secants, "inverse", lambda s: s.matrix[1].zero_() is None or secants(s))
    exact = gradients(EXACT)[0]
    for got, expected in zip(gradients(ti.Implicit(ti.GMRES(rtol=1e-12), precondition=True))[0], exact, strict=True):
        assert torch.allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("adjoint", [ti.Shine(), ti.Implicit(precondition=True)], ids=str)
@pytest.mark.parametrize("solver", [ti.Anderson(), ti.Picard(), ti.Newton()], ids=str)
def test_solvers_that_learn_nothing_are_refused(adjoint, solver):
    with pytest.raises(ValueError, match=r"expected one that learns, such as Broyden\(\)"):
        gradients(adjoint, solver)
    with pytest.raises(ValueError, match=r"Broyden\(\)"):
        ti.nn.DEQ(cell, solver=solver, adjoint=adjoint)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ti.Shine(refine=-1), r"Shine\(refine=-1\): expected an integer >= 0"),
        (lambda: ti.Shine(fallback=0.0), r"Shine\(fallback=0\.0\): expected a number > 0"),
        (lambda: ti.Implicit(precondition=1), "expected True or False"),
        (lambda: ti.Implicit(ti.CG(), precondition=True), r"not symmetric.*try GMRES\(\)"),
    ],
)
def test_impossible_options_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def solved(adjoint, start=0.0):
    return lambda x: (
        ti.fixed_point(
            lambda z, x: torch.tanh(z @ WEIGHT + x) + 0.1 * x.roll(1, 1) * z,
            torch.full((2, 10), start, dtype=torch.float64),
            x,
            solver=SOLVER,
            adjoint=adjoint,
            on_failure="ignore",
        ).value
    )


def by_hand(adjoint, x):
    """The Jacobian, a gradient at a time."""
    x = x.clone().requires_grad_()
    value = solved(adjoint)(x)
    rows = [torch.autograd.grad(value, x, unit.view_as(value), retain_graph=True)[0] for unit in torch.eye(20).double()]
    return torch.stack(rows).view(2, 10, 2, 10)


@pytest.mark.parametrize("refine", [0, 3])
def test_shine_under_transforms_of_first_order(refine):
    adjoint, xs = ti.Shine(refine=refine), rand(3, 2, 10, seed=2)
    total = lambda x: solved(adjoint)(x).sin().sum()  # noqa: E731
    each = []
    for x in xs:
        x = x.clone().requires_grad_()
        each.append(torch.autograd.grad(total(x), x)[0])
    assert torch.allclose(torch.stack([grad(total)(x) for x in xs]), torch.stack(each), atol=1e-13)
    assert torch.allclose(vmap(grad(total))(xs), torch.stack(each), atol=1e-12)
    assert torch.allclose(jacrev(solved(adjoint))(xs[0]), by_hand(adjoint, xs[0]), atol=1e-12)
    mapped = jacrev(vmap(solved(adjoint)))(xs)
    for i, x in enumerate(xs):
        assert torch.allclose(mapped[i, :, :, i], by_hand(adjoint, x), atol=1e-12)


def test_shine_in_forward_mode_is_the_transpose_of_reverse_mode():
    x, direction, incoming = rand(2, 10, seed=2), rand(2, 10, seed=3), rand(2, 10, seed=4)
    adjoint = ti.Shine()
    pushed = jvp(solved(adjoint), (x,), (direction,))[1]
    pulled = torch.tensordot(incoming, by_hand(adjoint, x), 2)
    assert torch.allclose((pushed * incoming).sum(), (direction * pulled).sum())


def test_shine_refuses_to_guess_whose_factor_is_whose():
    # The rows of a Jacobian that is mapped over samples lie between the rows of the forward solve.
    xs = rand(3, 2, 10, seed=2)
    with pytest.raises(NotImplementedError, match=r"vmap\(jacrev\(f\)\); try jacrev outside of vmap, or Implicit\(\)"):
        vmap(jacrev(solved(ti.Shine())))(xs)
    exact = vmap(jacrev(solved(EXACT)))(xs)
    preconditioned = vmap(jacrev(solved(ti.Implicit(ti.GMRES(rtol=1e-12), precondition=True))))(xs)
    assert torch.allclose(preconditioned, exact, atol=1e-9)


def test_second_derivatives_of_shine_come_near_the_exact_ones():
    x = rand(2, 10, seed=2)
    exact, ours = (
        hessian(lambda x, adjoint=adjoint: solved(adjoint)(x).sin().sum())(x)
        for adjoint in (EXACT, ti.Shine(refine=12))
    )
    assert torch.allclose(ours, exact, atol=1e-5)


def test_what_was_learnt_is_kept_only_for_those_who_want_it():
    def kept(adjoint, warm=False):
        x = X.clone().requires_grad_()
        options = {"solver": SOLVER, "adjoint": adjoint}
        first = ti.fixed_point(cell, torch.zeros_like(x), WEIGHT, x.detach(), **options) if warm else None
        solution = ti.fixed_point(cell, torch.zeros_like(x), WEIGHT, x, warm_start=first, **options)
        secants = weakref.ref((first or solution).state)
        pairs = weakref.ref((first or solution).state.steps)
        value, report = solution.value, solution.report
        del solution, first
        gc.collect()
        return secants() is not None or pairs() is not None, value, report

    for warm in (False, True):
        alive, value, _ = kept(EXACT, warm)
        assert value.grad_fn is not None
        assert not alive
    alive, *_ = kept(ti.Shine(), warm=True)
    assert not alive, "of an earlier solve nothing is needed"

    x = X.clone().requires_grad_()
    solution = ti.fixed_point(cell, torch.zeros_like(x), WEIGHT, x, solver=SOLVER, adjoint=ti.Shine())
    value, gaps = solution.value, weakref.ref(solution.state.gaps.untyped_storage())
    del solution
    assert torch.autograd.grad(value.sum(), x)[0].isfinite().all(), "the factor outlives the solution that holds it"
    del value
    gc.collect()
    assert gaps() is None


@pytest.mark.parametrize("batched", [torch.float32, torch.float64])
def test_a_layer_trains_with_what_it_has_learnt(batched):
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 6, dtype=batched)

    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, z, x):
            return torch.tanh(0.5 * self.linear(z) + x)

    layer = ti.nn.DEQ(Cell(), solver=ti.Broyden(), adjoint=ti.Shine(refine=1))
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-2)
    x, target = torch.randn(16, 6, dtype=batched), 0.5 * torch.randn(16, 6, dtype=batched)
    losses = []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert layer.report.backward.converged
