"""`argmin` against closed forms: ridge regression, whose solution and every derivative are known."""

import pytest
import torch
from torch import nn

import torchimplicit as ti

TIGHT = ti.Newton(rtol=1e-13, atol=1e-13)
ADJOINTS = [ti.Implicit(ti.LU()), ti.Implicit(ti.CG(rtol=1e-13)), ti.Implicit(ti.GMRES(rtol=1e-13)), ti.Unrolled()]


def data(samples=3, rows=7, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, rows, width, dtype=torch.float64, generator=generator)
    return x, torch.randn(samples, rows, dtype=torch.float64, generator=generator)


def ridge(z, x, y, decay):
    return 0.5 * ((x @ z.unsqueeze(2)).squeeze(2) - y).square().sum(1) + 0.5 * (decay.exp() * z.square()).sum(-1)


def closed(x, y, decay):
    hessian = x.mT @ x + torch.diag_embed(decay.exp().expand(len(x), -1))
    return torch.linalg.solve(hessian, (x.mT @ y.unsqueeze(2)).squeeze(2))


def wavy(z, a):
    """Neither quadratic nor additive in state and argument; convex for |z a| < 1."""
    return z.square().sum(1) + torch.cosh(0.5 * z * a).sum(1) - (torch.sin(a) * z).sum(1) + 0.1 * z.pow(4).sum(1)


def solved(*args, energy=ridge, adjoint=ADJOINTS[0], **options):
    z0 = torch.zeros(args[0].shape[0], args[-1].shape[-1], dtype=torch.float64)
    return ti.argmin(energy, z0, *args, solver=TIGHT, adjoint=adjoint, **options).value


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_ridge_regression_and_its_derivatives(adjoint):
    x, y = data()
    args = x.requires_grad_(), y.requires_grad_(), torch.linspace(-2, 1, 4, dtype=torch.float64).requires_grad_()
    value, expected = solved(*args, adjoint=adjoint), closed(*args)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    got = torch.autograd.grad(value.pow(3).sum(), args, create_graph=True)
    wanted = torch.autograd.grad(expected.pow(3).sum(), args, create_graph=True)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    twice = torch.autograd.grad(got[2].square().sum(), args)
    torch.testing.assert_close(twice, torch.autograd.grad(wanted[2].square().sum(), args), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_gradients_against_finite_differences(adjoint):
    a = torch.linspace(-1, 1.5, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: solved(a, energy=wavy, adjoint=adjoint), a)
    assert torch.autograd.gradgradcheck(lambda a: solved(a, energy=wavy, adjoint=adjoint), a)


def test_the_hypergradient_of_a_validation_loss_against_finite_differences():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(digits.data[:80, 18:30], dtype=torch.float64) / 16
    y = nn.functional.one_hot(torch.tensor(digits.target[:80])).double()
    decay = torch.linspace(-4, 0, 120, dtype=torch.float64).view(12, 10).requires_grad_()

    def training(w, x, y, decay):
        return nn.functional.cross_entropy(x @ w, y) + 0.5 * (decay.exp() * w.square()).sum()

    def validation(decay):
        fit = ti.argmin(
            training, torch.zeros_like(decay), x[:40], y[:40], decay, solver=TIGHT, adjoint=ADJOINTS[1], batch_dims=0
        )
        return nn.functional.cross_entropy(x[40:] @ fit.value, y[40:])

    gradient = torch.autograd.grad(validation(decay), decay)[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = torch.randn(decay.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            # Fourth order, so that neither truncation nor rounding is in the way of six digits.
            at = {k: validation(decay + k * 1e-2 * way) for k in (-2, -1, 1, 2)}
        difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / 12e-2
        assert abs(float((gradient * way).sum() / difference) - 1) < 1e-6


@pytest.mark.parametrize("adjoint", ADJOINTS[:3], ids=str)
def test_transforms(adjoint):
    x, y = data()
    decay = torch.linspace(-2, 1, 4, dtype=torch.float64)

    def by_decay(decay, solution):
        return solution(x, y, decay)

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got = transform(lambda d: by_decay(d, lambda *args: solved(*args, adjoint=adjoint)))(decay)
        torch.testing.assert_close(got, transform(lambda d: by_decay(d, closed))(decay), rtol=1e-8, atol=1e-9)
    many = torch.stack([decay, decay + 1, -decay])
    mapped = torch.vmap(lambda d: solved(x, y, d, adjoint=adjoint))(many)
    torch.testing.assert_close(mapped, torch.stack([closed(x, y, d) for d in many]), rtol=1e-10, atol=1e-11)
    grads = torch.vmap(torch.func.grad(lambda d: solved(x, y, d, adjoint=adjoint).square().sum()))(many)
    expected = torch.vmap(torch.func.grad(lambda d: closed(x, y, d).square().sum()))(many)
    torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-10)


def test_unrolled_under_transforms_and_with_checkpoints():
    x, y = data()
    decay = torch.linspace(-2, 1, 4, dtype=torch.float64)
    expected = torch.func.grad(lambda d: closed(x, y, d).square().sum())(decay)
    descent = ti.Picard(damping=0.05, rtol=1e-13, atol=1e-13, max_steps=2000)

    def loss(d, adjoint):
        start = torch.zeros(3, 4, dtype=torch.float64)
        return ti.argmin(ridge, start, x, y, d, solver=descent, adjoint=adjoint).value.square().sum()

    got = torch.func.grad(lambda d: loss(d, ti.Unrolled()))(decay)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    leaf = decay.clone().requires_grad_()
    loss(leaf, ti.Unrolled(checkpoint=True)).backward()
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-8, atol=1e-9)


def test_one_coupled_problem_a_nested_and_a_complex_state():
    x, y = data()
    decay = torch.zeros(4, dtype=torch.float64)

    def coupled(z, x, y, decay):
        return ridge(z["slope"], x, y - z["offset"], decay).sum() + z["offset"].square().sum()

    start = {"slope": torch.zeros(3, 4, dtype=torch.float64), "offset": torch.zeros(3, 7, dtype=torch.float64)}
    value = ti.argmin(coupled, start, x, y, decay, solver=TIGHT, batch_dims=0).value
    offset = (y - (x @ value["slope"].unsqueeze(2)).squeeze(2)) / 3  # where the energy's slope by the offset is zero
    torch.testing.assert_close(value["offset"], offset)
    torch.testing.assert_close(value["slope"], closed(x, y - offset, decay))

    target = torch.tensor([[1 + 2j, -3j]], dtype=torch.complex128, requires_grad=True)
    found = ti.argmin(
        lambda z, t: torch.view_as_real(z - t).square().sum((1, 2)), torch.zeros_like(target), target
    ).value
    torch.testing.assert_close(found, target)
    (gradient,) = torch.autograd.grad(found.imag.sum(), target)
    torch.testing.assert_close(gradient, torch.full_like(target, 1j))


def test_samples_are_independent_and_each_has_its_status():
    a = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [-3.0, 1.0]], dtype=torch.float64).requires_grad_()
    solution = ti.argmin(wavy, torch.zeros(3, 2, dtype=torch.float64), a, solver=TIGHT, on_failure="ignore")
    healthy = a.detach()[[0, 2]].requires_grad_()
    alone = ti.argmin(wavy, torch.zeros(2, 2, dtype=torch.float64), healthy, solver=TIGHT)
    assert solution.status.tolist() == [ti.Status.CONVERGED, ti.Status.NON_FINITE, ti.Status.CONVERGED]
    assert torch.equal(solution.value[[0, 2]], alone.value)
    solution.value.sum().backward()
    alone.value.sum().backward()
    torch.testing.assert_close(a.grad[[0, 2]], healthy.grad)
    assert torch.equal(a.grad[1], torch.zeros(2, dtype=torch.float64))


def test_an_energy_without_minimum_says_so():
    with pytest.raises(ti.ConvergenceError, match="Stationary"):
        ti.argmin(lambda z: z.exp().sum(1), torch.zeros(2, 1), solver=ti.Newton(rtol=0, max_steps=10))


def test_newton_finds_the_maximum_that_is_near_and_descent_leaves_it():
    def hills(z):
        return torch.cos(z).sum(1)

    start = torch.full((1, 1), 0.5, dtype=torch.float64)
    newton = ti.argmin(hills, start, solver=ti.Newton(), check_minimum=False)
    assert abs(float(newton.value)) < 1e-4
    with pytest.raises(ti.ConvergenceError, match=r"saddle: sample 0 .*\n.*maximum"):
        ti.argmin(hills, start, solver=ti.Newton())
    for solver in (ti.LBFGS(), ti.NewtonCG(), ti.Picard(damping=0.5, max_steps=200)):
        assert abs(float(ti.argmin(hills, start, solver=solver).value) - torch.pi) < 2e-3


def test_parameters_of_a_module_get_gradients():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.center = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, z):
            return (z - self.center).square().sum(1)

    module = Distance()
    ti.argmin(module, torch.zeros(3, 2)).value.sum().backward()
    torch.testing.assert_close(module.center.grad, torch.full((2,), 3.0))


def test_warm_start_trace_and_batched_args():
    x, y = data()
    decay = torch.zeros(4, dtype=torch.float64)
    start = torch.zeros(3, 4, dtype=torch.float64)
    first = ti.argmin(ridge, start, x, y, decay, solver=TIGHT, batched_args=(0, 1), trace=True, save_steps=(0,))
    assert first.trace is not None
    assert len(first.trace) == int(first.steps.max()) + 1 == 2  # an energy that is quadratic
    assert torch.equal(first.trajectory[0], start)
    again = ti.argmin(ridge, start, x, y, decay, warm_start=first)
    assert again.steps.tolist() == [0, 0, 0]
    assert torch.equal(again.value, first.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_half_precision(dtype):
    target = torch.tensor([[1.0, -2.0]], requires_grad=True)
    weight = torch.eye(2)

    def energy(z, target, weight):
        return ((z - target) @ weight).square().sum(1)

    loose = ti.Newton(rtol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        value = ti.argmin(energy, torch.zeros(1, 2), target, weight, solver=loose).value
    value.sum().backward()
    torch.testing.assert_close(value, target, rtol=0.05, atol=0.05)
    torch.testing.assert_close(target.grad, torch.ones(1, 2), rtol=0.05, atol=0.05)
    half = ti.argmin(energy, torch.zeros(1, 2, dtype=dtype), target.to(dtype), weight.to(dtype), solver=loose).value
    assert half.dtype is dtype
    torch.testing.assert_close(half, target.to(dtype), rtol=0.05, atol=0.05)


ZEROS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("energy", "options", "error", "says"),
    [
        (lambda z: z.square(), {}, ValueError, r"energy returned shape \(3, 4\), expected \(3,\)"),
        (lambda z: z.square().sum(), {}, ValueError, r"energy returned shape \(\), expected \(3,\).*batch_dims=0"),
        (lambda z: z.square().sum(1), {"batch_dims": 0}, ValueError, r"shape \(3,\), expected \(\)"),
        (lambda z: 1.0, {}, TypeError, "energy returned a float"),
        (lambda z: z.to(torch.complex64).sum(1), {}, TypeError, r"returned torch\.complex64, expected a real"),
        (lambda z: (z > 0).sum(1), {}, TypeError, r"returned torch\.int64"),
        (lambda z: torch.ones(3), {}, ValueError, "does not depend on the state"),
        (lambda z: z.detach().sum(1), {}, ValueError, "does not depend on the state"),
        (lambda z: z.mul_(2).sum(1), {}, ValueError, "writes into its state"),
        (None, {}, TypeError, "expected a callable"),
    ],
)
def test_wrong_energies(energy, options, error, says):
    with pytest.raises(error, match=says):
        ti.argmin(energy, ZEROS, **options)
    with pytest.raises(error, match=says), torch.no_grad():
        ti.argmin(energy, ZEROS, **options)


def test_an_energy_of_its_arguments_alone_is_refused():
    a = torch.ones(3, 4, requires_grad=True)
    for adjoint in (ti.Implicit(), ti.Unrolled(), ti.Phantom()):
        with pytest.raises(ValueError, match="does not depend on the state"):
            ti.argmin(lambda z, a: a.square().sum(1), ZEROS, a, adjoint=adjoint)
    with pytest.raises(ValueError, match="does not depend on the state"), torch.no_grad():
        ti.argmin(lambda z, a: a.square().sum(1), ZEROS, a)
    with pytest.raises(ValueError, match="does not depend on the state"):
        torch.func.grad(lambda a: ti.argmin(lambda z, a: a.square().sum(1), ZEROS, a).value.sum())(a.detach())


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled(), ti.Phantom(damping=0.4)], ids=str)
def test_no_graph_is_kept_where_nothing_wants_a_gradient(adjoint):
    center = torch.ones(3, 4)

    def energy(z, center):
        return (z - center).square().sum(1)

    descent = ti.Picard(damping=0.4)
    assert not ti.argmin(energy, ZEROS, center, solver=descent, adjoint=adjoint).value.requires_grad
    solution = ti.argmin(energy, ZEROS, center.requires_grad_(), solver=descent, adjoint=adjoint)
    assert solution.value.requires_grad


def test_captured_tensors_are_named():
    center = torch.ones(4, requires_grad=True)
    for solver, adjoint in ((None, None), (ti.NewtonCG(), ti.Implicit()), (ti.Newton(), ti.Unrolled())):
        with pytest.raises(ti.CaptureError, match="tensor 'center'"):
            ti.argmin(lambda z: (z - center).square().sum(1), ZEROS, solver=solver, adjoint=adjoint)
    with pytest.raises(ti.CaptureError):
        torch.func.grad(lambda c: ti.argmin(lambda z: (z - c).square().sum(1), ZEROS).value.sum())(center.detach())


def test_a_minimum_at_the_bottom_of_a_long_valley_is_no_saddle():
    slant = 1 - 1e-10  # no units of the unknowns make this one round: its curvatures are 2 and 1e-10
    hessian = torch.tensor([[1.0, slant], [slant, 1.0]], dtype=torch.float64)
    solution = ti.argmin(
        lambda z: 0.5 * ((z @ hessian) * z).sum(1), torch.ones(1, 2, dtype=torch.float64), solver=ti.Newton(atol=1e-6)
    )
    assert solution.status.tolist() == [ti.Status.CONVERGED]
