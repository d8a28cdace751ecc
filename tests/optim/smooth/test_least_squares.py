"""`least_squares`: fits of exponentials, with values and derivatives known otherwise."""

import pytest
import torch

import torchimplicit as ti

T = torch.linspace(0, 2, 15, dtype=torch.float64)
TIGHT = ti.LevenbergMarquardt(rtol=1e-13, atol=1e-13)


def decay(z, t, y):
    return z[:, :1] * torch.exp(-z[:, 1:] * t) - y


def data(batch=6, noise=0.05):
    generator = torch.Generator().manual_seed(0)
    truth = 1 + torch.rand(batch, 2, dtype=torch.float64, generator=generator)
    y = truth[:, :1] * torch.exp(-truth[:, 1:] * T)
    return truth, y + noise * torch.randn(y.shape, dtype=torch.float64, generator=generator)


def test_an_exact_fit_is_found_in_a_few_steps():
    truth, y = data(noise=0)
    solution = ti.least_squares(decay, torch.ones_like(truth), T, y, solver=TIGHT)
    torch.testing.assert_close(solution.value, truth, rtol=1e-9, atol=1e-9)
    assert int(solution.steps.max()) <= 8, "quadratic where the residuals vanish"


@pytest.mark.parametrize("solver", [TIGHT, ti.LBFGS(rtol=1e-13, atol=1e-13)], ids=str)
@pytest.mark.parametrize("linear", [ti.LU(), ti.CG(rtol=1e-13), ti.GMRES(rtol=1e-13)], ids=str)
def test_derivatives_of_a_fit_whose_residuals_stay(solver, linear):
    y = data(1, noise=0.3)[1][:, ::4].clone().requires_grad_()
    t = T[::4].clone().requires_grad_()

    def fit(t, y):
        start = torch.ones(1, 2, dtype=torch.float64)
        return ti.least_squares(decay, start, t, y, solver=solver, adjoint=ti.Implicit(linear)).value

    assert torch.autograd.gradcheck(fit, (t, y))
    assert torch.autograd.gradgradcheck(lambda y: fit(t.detach(), y), y)


def test_gauss_newton_is_the_damping_of_zero():
    truth, y = data()
    start = 0.9 * truth
    plain = ti.LevenbergMarquardt(damping=0, rtol=1e-12, atol=1e-12, max_steps=1)
    step = ti.least_squares(decay, start, T, y, solver=plain, on_failure="ignore", save_steps=(1,)).trajectory[0]
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda z, i=i: decay(z[None], T, y[i])[0], start[i]) for i in range(6)]
    )
    expected = start - torch.linalg.lstsq(jacobian, decay(start, T, y).unsqueeze(2)).solution.squeeze(2)
    torch.testing.assert_close(step, expected)


def test_damping_saves_a_start_from_which_gauss_newton_fails():
    truth, y = data()
    far = torch.tensor([[0.1, 8.0]], dtype=torch.float64).repeat(6, 1)
    full = ti.LevenbergMarquardt(damping=0, max_steps=50)
    assert not ti.least_squares(decay, far, T, y, solver=full, on_failure="ignore").report.converged
    torch.testing.assert_close(
        ti.least_squares(decay, far, T, y, solver=TIGHT).value,
        ti.least_squares(decay, truth, T, y, solver=TIGHT).value,
    )


def test_nested_residuals_few_and_many_and_one_coupled_problem():
    target = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def parts(z, target):
        return {"near": z - target, "small": (0.5 * z.sum(1), [z[:, :2]])}

    solution = ti.least_squares(parts, torch.zeros_like(target), target, solver=TIGHT)
    ones = torch.ones(4, 4, dtype=torch.float64)
    hessian = torch.eye(4, dtype=torch.float64) + 0.25 * ones + torch.diag(torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(solution.value, target @ torch.linalg.inv(hessian).mT)
    one = ti.least_squares(parts, torch.zeros_like(target), target, solver=TIGHT, batch_dims=0)
    torch.testing.assert_close(one.value, solution.value)

    def fewer(z):
        return (z.square().sum(1, keepdim=True) - 1) / 2  # a whole circle of minima

    circle = ti.least_squares(fewer, target, solver=TIGHT).value
    torch.testing.assert_close(circle.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_transforms():
    y = data(4)[1].view(2, 2, -1)

    def fit(y):
        start = torch.ones(2, 2, dtype=torch.float64)
        return ti.least_squares(decay, start, T, y, solver=TIGHT, adjoint=ti.Implicit(ti.LU())).value

    torch.testing.assert_close(torch.vmap(fit)(y), torch.stack([fit(one) for one in y]))
    mapped = torch.vmap(torch.func.jacrev(fit))(y)
    torch.testing.assert_close(mapped, torch.stack([torch.func.jacfwd(fit)(one) for one in y]))


@pytest.mark.parametrize(
    ("residuals", "error", "says"),
    [
        (lambda z: z.sum(), ValueError, r"residuals have shape \(\), expected \(2, \.\.\.\).*batch_dims=0"),
        (lambda z: z.T, ValueError, r"shape \(3, 2\)"),
        (lambda z: z > 0, TypeError, "torch.bool"),
        (lambda z: torch.complex(z, z), TypeError, "view_as_real"),
        (lambda z: [], ValueError, "returned nothing"),
        (lambda z: z[:, :0], ValueError, r"shape \(2, 0\)"),
        (lambda z: z.detach(), ValueError, "does not depend on the state"),
        (3, TypeError, "expected a callable"),
    ],
)
def test_wrong_residuals(residuals, error, says):
    with pytest.raises(error, match=says):
        ti.least_squares(residuals, torch.zeros(2, 3))
