"""Samples that are not finite, forward or in their Jacobian, and what all samples share."""

import pytest
import torch

import torchimplicit as ti

LINEAR = [ti.GMRES(), ti.GMRES(opening=False), ti.LU(), ti.BiCGStab(), ti.CG(), ti.Neumann(terms=30)]
ADJOINTS = [*(ti.Implicit(solver) for solver in LINEAR), ti.Shine(), ti.Shine(refine=2)]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Implicit(ti.LU()), ti.Unrolled(), ti.Phantom()], ids=str)
@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_a_shared_tensor_as_long_as_the_batch_keeps_its_gradient(adjoint, bias):
    x, weight = rand(4, 4), 0.2 * rand(4, 4, seed=1)

    def gradient(x):
        shared = torch.full((4,), bias, dtype=torch.float64, requires_grad=True)
        x = x.clone().requires_grad_()
        solution = ti.fixed_point(
            lambda z, x, weight, shared: torch.tanh(z @ weight + x + shared),
            torch.zeros(4, 4, dtype=torch.float64), x, weight, shared, adjoint=adjoint, on_failure="ignore",
        )  # fmt: skip
        solution.value[:3].square().sum().backward()
        return shared.grad, x.grad

    nonfinite = x.clone()
    nonfinite[3, 1] = torch.nan
    state = torch.random.get_rng_state()
    (expected, by_x), (got, by_nonfinite) = gradient(x), gradient(nonfinite)
    assert torch.allclose(got, expected, rtol=1e-12)
    assert torch.equal(by_nonfinite, by_x)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("adjoint", [ti.Implicit(ti.GMRES(rtol=1e-12)), ti.Unrolled()], ids=str)
def test_a_shared_tensor_of_no_slope_keeps_its_second_derivative(adjoint):
    """Its rows are equal, and no sample has a derivative by them: only other values show whose they are."""
    x = rand(4, 4)

    def curvature(x):
        shared = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        value = ti.fixed_point(
            lambda z, x, shared: 0.3 * torch.tanh(z) + x + shared.square(), torch.zeros_like(x), x, shared,
            solver=ti.Picard(rtol=1e-12), adjoint=adjoint, on_failure="ignore",
        ).value  # fmt: skip
        (first,) = torch.autograd.grad(value[:3].sum(), shared, create_graph=True)
        return torch.autograd.grad(first.sum(), shared)[0]

    nonfinite = x.clone()
    nonfinite[3, 1] = torch.nan
    torch.testing.assert_close(curvature(nonfinite), curvature(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled(), ti.Phantom()], ids=str)
def test_a_shared_tensor_that_changes_no_value_keeps_its_gradient(adjoint):
    """As a straight-through estimator: only derivatives show whose its rows are."""
    x = rand(4, 4)

    def gradient(x):
        shared = rand(4, seed=1).requires_grad_()
        value = ti.fixed_point(
            lambda z, x, shared: 0.3 * torch.tanh(z) + x + (shared - shared.detach()), torch.zeros_like(x), x, shared,
            adjoint=adjoint, on_failure="ignore",
        ).value  # fmt: skip
        return torch.autograd.grad(value[:3].square().sum(), shared)[0]

    nonfinite = x.clone()
    nonfinite[3, 1] = torch.nan
    torch.testing.assert_close(gradient(nonfinite), gradient(x), rtol=1e-12, atol=0)


def infinite_slope(z, x, w):
    """At a state of zero, which an input of zero has, the root's derivative is infinite."""
    return w * x + 0.1 * x.sign() * (z * z).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("which", ["all", "others"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_a_jacobian_that_is_not_finite_reaches_no_shared_gradient(adjoint, which, order):
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.5, 1.5]], dtype=torch.float64)

    def gradient(x):
        w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        solution = ti.fixed_point(
            infinite_slope, torch.zeros_like(x), x, w, solver=ti.Broyden(rtol=1e-9), adjoint=adjoint,
            on_failure="ignore",
        )  # fmt: skip
        value = solution.value if which == "all" else solution.value * (x != 0)
        (found,) = torch.autograd.grad(value.sin().sum(), w, create_graph=order == 2)
        report = solution.backward
        return torch.autograd.grad(found, w)[0] if order == 2 else found, report

    (expected, _), (got, report) = gradient(x[[0, 2]]), gradient(x)
    assert torch.allclose(got, expected, rtol=1e-3)
    assert report.status[1] == ti.Status.NON_FINITE


def test_the_failure_is_raised_by_default():
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = ti.fixed_point(infinite_slope, torch.zeros_like(x), x, w).value
    with pytest.raises(ti.ConvergenceError, match="non_finite: sample 1"):
        value[0].sum().backward()


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_slope_by_a_parameter_that_is_infinite_is_found_by_halving(batch):
    """The state's Jacobian is finite; nothing but the shared gradient shows the sample."""
    x = torch.linspace(1, 2, batch, dtype=torch.float64)[:, None].clone()
    x[batch // 2] = 0
    x.requires_grad_()
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solution = ti.fixed_point(
        lambda z, x, w: 0.5 * z + torch.sqrt(w * x), torch.zeros(batch, 1).double(), x, w, on_failure="ignore"
    )
    solution.value.sum().backward()
    assert torch.allclose(w.grad, 2 * (x.detach().sqrt().sum() * 0.5 / 0.5**0.5), rtol=1e-3)
    assert x.grad.isfinite().all()
    assert torch.nonzero(solution.backward.status == ti.Status.NON_FINITE).flatten().tolist() == [batch // 2]


def test_what_halving_finds_is_raised_by_default():
    x, w = torch.tensor([[1.0], [0.0]]).double(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = ti.fixed_point(lambda z, x, w: 0.5 * z + torch.sqrt(w * x), torch.zeros(2, 1).double(), x, w).value
    with pytest.raises(ti.ConvergenceError, match="non_finite: sample 1"):
        value.sum().backward()


def test_what_cannot_be_kept_apart_is_said():
    """The batch is the second dimension of the argument, where no sample's row is found."""
    x = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solution = ti.fixed_point(
        lambda z, x, w: 0.5 * z + torch.sqrt(w * x.T), torch.zeros(3, 1).double(), x, w, on_failure="ignore"
    )
    with pytest.warns(ti.ConvergenceWarning, match="could not be kept apart"):
        solution.value.sum().backward()


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Implicit(ti.LU()), ti.Unrolled(), ti.Phantom(3)], ids=str)
def test_second_derivatives_that_alone_are_not_finite_are_said(adjoint):
    """Where `x` is zero, the first derivative by `w` is finite and the second is not."""
    x = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solution = ti.fixed_point(
        lambda z, x, w: 0.5 * z + (w * x) ** 1.5, torch.zeros_like(x), x, w, adjoint=adjoint, on_failure="ignore"
    )
    (first,) = torch.autograd.grad(solution.value.sum(), w, create_graph=True)
    assert first.isfinite()
    with pytest.warns(ti.ConvergenceWarning, match="could not be kept apart"):
        torch.autograd.grad(first, w)


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Implicit(ti.LU()), ti.Unrolled(), ti.Phantom()], ids=str)
def test_values_are_those_that_are_reported_where_samples_depend_on_one_that_is_not_finite(adjoint):
    """A healthy sample that stands in for it leads the others elsewhere: not to what residuals were reported of."""
    x, z0 = rand(4, 3), torch.zeros(4, 3, dtype=torch.float64)
    x[2], z0[2] = torch.nan, 1e3  # where it is held is where it looks to be to the others
    x.requires_grad_()

    def solve():
        return ti.fixed_point(
            lambda z, x: 0.5 * z + x + torch.tanh(z[2].nan_to_num(1e3)), z0, x, adjoint=adjoint, on_failure="ignore"
        )

    with torch.no_grad():
        plain = solve()
    assert plain.status.tolist() == [0, 0, ti.Status.NON_FINITE, 0]
    solution = solve()
    assert solution.status.tolist() == [ti.Status.COUPLED, ti.Status.COUPLED, ti.Status.NON_FINITE, ti.Status.COUPLED]
    assert torch.equal(solution.value, plain.value)


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Implicit(ti.LU()), ti.Unrolled(), ti.Phantom()], ids=str)
@pytest.mark.parametrize("unit", [1e-21, 1.0, 1e20])
def test_a_weight_as_long_as_the_batch_keeps_its_gradient_whatever_the_unit(adjoint, unit):
    """A solution of zero does not tell in which units a function saturates, where it depends on no weight."""

    def gradient(x):
        weight, x = (0.3 * rand(2, 2)).requires_grad_(), (unit * x).requires_grad_()
        value = ti.fixed_point(
            lambda z, weight, x: unit * torch.tanh(z / unit @ weight) + x, torch.zeros(2, 2, dtype=torch.float64),
            weight, x, solver=ti.Picard(rtol=1e-3, atol=1e-5), adjoint=adjoint, on_failure="ignore",
        ).value  # fmt: skip
        return torch.autograd.grad(value[0].sum(), x)[0][0]

    healthy = rand(2, 2, seed=1)
    nonfinite = healthy.clone()
    nonfinite[1, 1] = torch.inf
    healthy[1] = healthy[0]
    assert torch.allclose(gradient(nonfinite), gradient(healthy), rtol=1e-9)


def test_a_failed_sample_has_the_gradient_of_where_the_value_is():
    """It depends on the one that is not finite, and would end elsewhere beside a healthy one."""
    x, z0 = rand(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    x[2], z0[2] = torch.nan, 1e3
    weight = torch.tensor([0.5, -0.4], dtype=torch.float64, requires_grad=True)
    solution = ti.fixed_point(
        lambda z, weight, x: weight * torch.sin(z) + x + torch.tanh(z[2].nan_to_num(1e3)), z0, weight, x,
        adjoint=ti.Implicit(ti.LU()), solver=ti.Picard(rtol=1e-9, max_steps=2), on_failure="ignore",
    )  # fmt: skip
    z = solution.value.detach()[:2]
    (by_weight,) = torch.autograd.grad(solution.value[:2].sum(), weight)
    assert torch.allclose(by_weight, (torch.sin(z) / (1 - weight * torch.cos(z))).sum(0), rtol=1e-12)
