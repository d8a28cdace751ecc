"""Samples that depend on each other: what a backward solve reports was computed with the true operator."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import diagnose

TIGHT = ti.Broyden(rtol=1e-12, atol=1e-13, max_steps=200)
RTOL = 1e-4
ADJOINTS = [
    ti.Implicit(ti.GMRES(rtol=RTOL)),
    ti.Implicit(ti.GMRES(rtol=RTOL, opening=False)),
    ti.Implicit(ti.GMRES(rtol=RTOL), precondition=True),
    ti.Implicit(ti.LU()),
    ti.Implicit(ti.BiCGStab(rtol=RTOL)),
    ti.Implicit(ti.CG(rtol=RTOL)),
    ti.Implicit(ti.Neumann(terms=60)),
    ti.Unrolled(),
]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean(z, weight, x):
    return torch.tanh(z @ weight + 0.2 * z.mean(0) + x)


def one_way(z, weight, x):
    return torch.tanh(z @ weight + 0.3 * z.roll(1, 0) * torch.tensor([[0.0], [1.0], [0.0], [1.0]]).double() + x)


def normalised(z, weight, x):
    return 0.3 * nn.functional.batch_norm(z @ weight + x, None, None, training=True) + 0.1 * x


def gradient(f, adjoint, second=False):
    weight, x = (0.15 * rand(5, 5)).requires_grad_(), 0.5 * rand(4, 5, seed=1)
    factors = 10.0 ** rand(4, 5, seed=2)
    solution = ti.fixed_point(
        f, torch.zeros_like(x), weight, x, solver=TIGHT, adjoint=adjoint, on_failure="ignore", batch_dims=1
    )
    (grad,) = torch.autograd.grad((solution.value * factors).sum(), weight, create_graph=second)
    whole = ti.fixed_point(f, torch.zeros_like(x), weight, x, solver=TIGHT, adjoint=ti.Implicit(ti.LU()), batch_dims=0)
    (exact,) = torch.autograd.grad((whole.value * factors).sum(), weight)
    return solution, float((grad.detach() - exact).norm() / exact.norm())


@pytest.mark.parametrize("second", [False, True], ids=["plain", "create_graph"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("f", [mean, one_way, normalised], ids=lambda f: f.__name__)
def test_never_converged_with_a_gradient_that_is_off(f, adjoint, second):
    solution, off = gradient(f, adjoint, second)
    backward = solution.backward
    failed = [ti.Status(int(status)) for status in backward.status[backward.failed]]
    assert off <= 10 * RTOL or failed, f"{off:.1e} off: {backward}"
    if isinstance(adjoint, ti.Implicit) and isinstance(adjoint.linear_solver, ti.LU | ti.GMRES):
        assert set(failed) == {ti.Status.COUPLED}
        assert "batch_dims=0" in backward.remedies[ti.Status.COUPLED]


def test_the_remedy_helps():
    weight, x = (0.15 * rand(5, 5)).requires_grad_(), 0.5 * rand(4, 5, seed=1)
    whole = ti.fixed_point(mean, torch.zeros_like(x), weight, x, batch_dims=0)
    whole.value.sum().backward()
    assert whole.backward.converged


def test_forward_mode_and_transforms_say_so_too():
    weight, x = 0.15 * rand(5, 5), 0.5 * rand(4, 5, seed=1)

    def solve(weight, adjoint=ti.Implicit(ti.LU())):
        return ti.fixed_point(mean, torch.zeros_like(x), weight, x, solver=TIGHT, adjoint=adjoint).value

    with pytest.raises(ti.ConvergenceError, match="coupled"):
        torch.func.jvp(solve, (weight,), (rand(5, 5, seed=3),))
    with pytest.raises(ti.ConvergenceError, match="coupled"):
        torch.func.grad(lambda weight: solve(weight)[0].sum())(weight)


@pytest.mark.parametrize("solver", [ti.GMRES(), ti.LU(), ti.BiCGStab(), ti.Neumann(terms=30)], ids=str)
def test_a_residual_that_is_reported_is_the_true_one(solver):
    weight, x = (0.15 * rand(5, 5)).requires_grad_(), rand(4, 5, seed=1)
    solution = ti.fixed_point(
        lambda z, weight, x: torch.tanh(z @ weight + x),
        torch.zeros_like(x), weight, x, solver=TIGHT, adjoint=ti.Implicit(solver),
    )  # fmt: skip
    shift = torch.zeros_like(x, requires_grad=True)
    shifted = ti.fixed_point(
        lambda z, weight, x, shift: torch.tanh(z @ weight + x) + shift,
        torch.zeros_like(x), weight, x, shift, solver=TIGHT, adjoint=ti.Implicit(solver),
    )  # fmt: skip
    factors = rand(4, 5, seed=2)
    (shifted.value * factors).sum().backward()
    z = solution.value.detach().requires_grad_()
    residual = z - torch.tanh(z @ weight + x)
    (product,) = torch.autograd.grad(residual, z, shift.grad)
    true = (factors - product).norm(dim=1) / 5**0.5
    assert torch.allclose(shifted.backward.residual, true, rtol=1e-6, atol=1e-14)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6).double()

    def forward(self, z, x):
        return torch.tanh(0.5 * self.linear(z) + x)


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Implicit(ti.LU()), ti.Unrolled(), ti.Phantom()], ids=str)
def test_features_taken_for_samples_are_refused(adjoint):
    x = rand(6)
    with pytest.raises(ValueError, match=r"shape \(6,\).*z0\[None\] and x\[None\].*batch_dims=0"):
        ti.nn.DEQ(Cell(), adjoint=adjoint)(x)
    with pytest.raises(ValueError, match="depend on each other"), torch.no_grad():
        ti.nn.DEQ(Cell(), adjoint=adjoint)(x)
    assert ti.nn.DEQ(Cell(), adjoint=adjoint)(x[None]).shape == (1, 6)
    assert ti.fixed_point(Cell(), torch.zeros_like(x), x, adjoint=adjoint, batch_dims=0).report.converged


def test_samples_of_one_number_each_are_not():
    state = torch.random.get_rng_state()
    a = torch.rand(50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    solution = ti.root(lambda z, a: z**3 + z - a, torch.zeros(50), a)
    solution.value.sum().backward()
    assert torch.allclose(a.grad, 1 / (3 * solution.value.detach() ** 2 + 1), rtol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), state), "looking draws no random numbers"
    shaken = ti.fixed_point(
        lambda z: 0.5 * z + 1e-3 * torch.rand_like(z), torch.zeros(5), solver=ti.Picard(), on_failure="ignore"
    )
    assert shaken.value.shape == (5,), "what is random is not coupled"


@pytest.mark.parametrize("front", ["argmin", "root", "vmap"])
def test_features_taken_for_samples_are_refused_by_every_public_function(front):
    a = rand(4)
    with pytest.raises(ValueError, match=r"shape \(4,\).*depend on each other"):  # noqa: PT012
        if front == "argmin":
            ti.argmin(lambda z, a: (z - a) ** 2 + 0.1 * (z.sum() - z) * z, torch.zeros(4).double(), a)
        elif front == "root":
            ti.root(lambda z, a: z - a + 0.3 * z.flip(0), torch.zeros(4).double(), a)
        else:
            torch.vmap(lambda a: ti.fixed_point(lambda z, a: 0.3 * z.flip(0) + a, 0 * a, a).value)(a.expand(3, 4))


def test_diagnosis_names_coupling_and_no_tolerance():
    class Coupled(Cell):
        def forward(self, z, x):
            return torch.tanh(0.5 * self.linear(z) + x + 0.3 * z.mean(0))

    layer, x = ti.nn.DEQ(Coupled(), on_failure="ignore"), rand(4, 6)
    for result in (diagnose.check_gradient(layer, x), diagnose.certify(layer, x)):
        assert not result.ok
        assert result.coupled.tolist() == [True] * 4
        advice = str(result).split("Try: ")[1:]
        assert len(advice) == 1
        assert "batch_dims=0" in advice[0]
        assert "rtol" not in advice[0]
    whole = ti.nn.DEQ(Cell())
    assert not diagnose.certify(whole, x).coupled.any()
    assert diagnose.check_gradient(whole, x).ok


@pytest.mark.parametrize("share", [0.0, 2e-4])
def test_a_sample_that_a_failing_one_has_moved_on_has_not_converged(share):
    """It arrived where the other one was then, which went on, far beyond."""
    gain = torch.tensor([[0.1], [0.99], [0.1]], dtype=torch.float64)

    def cell(z, gain):
        return gain * z + share * z.mean(0) + 1

    solver = ti.Picard(max_steps=200)
    solution = ti.fixed_point(cell, torch.zeros_like(gain), gain, solver=solver, on_failure="ignore")
    expected = ti.Status.COUPLED if share else ti.Status.CONVERGED
    assert solution.status.tolist() == [expected, ti.Status.MAX_STEPS, expected]
    residual = (cell(solution.value, gain) - solution.value).abs().flatten()
    torch.testing.assert_close(solution.residual[[0, 2]], residual[[0, 2]])
