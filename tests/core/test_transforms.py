"""What is kept apart from the outside of a solve."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.transforms import active, for_rows, outside, random_state_kept


@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_drawn_inside_leave_no_trace(fails):
    state = torch.random.get_rng_state()
    try:
        with random_state_kept(torch.device("cpu")):
            torch.rand(3)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_function_of_rows_is_mapped_as_torch_does(dim):
    rows, matrix = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    for function in (lambda row: row * matrix, lambda row: (matrix @ row).expand(5, 2)):
        assert torch.equal(for_rows(function, rows, dim), torch.vmap(function, out_dims=dim)(rows))
    with pytest.raises(RuntimeError):
        for_rows(lambda row: row * float(row.sum()), rows, dim)
    assert not active()


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Phantom()], ids=lambda each: type(each).__name__)
def test_forward_mode_inside_of_forward_mode_is_refused(adjoint):
    """PyTorch would lose the outer derivative without a word; with one of them in reverse mode it is right."""

    def run(a):
        z0 = torch.zeros(2, 3, dtype=torch.float64)
        return ti.fixed_point(lambda z, a: torch.tanh(a * z + 1), z0, a, adjoint=adjoint).value.sum()

    a = torch.tensor(0.4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"forward mode inside of forward mode.*torch.func.hessian"):
        torch.func.jacfwd(torch.func.jacfwd(run))(a)


def test_what_is_drawn_outside_of_transforms_is_drawn_as_without():
    def drawn():
        return torch.rand(3, generator=torch.Generator().manual_seed(0))

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda x: x * drawn())(torch.ones(2, 3))
    assert torch.equal(torch.vmap(lambda x: x * outside(drawn))(torch.ones(2, 3))[1], drawn())


@pytest.mark.parametrize("solve", [ti.fixed_point, ti.root, ti.argmin, ti.least_squares])
def test_a_solve_without_grad_within_a_transform_is_a_constant(solve):
    """Solvers work on tensors of their own, which know no forward mode: they are not to meet what transforms wrap."""
    x = torch.linspace(0.1, 0.6, 6, dtype=torch.float64).reshape(2, 3)
    functions = {
        ti.fixed_point: lambda z, x: 0.5 * torch.cos(z) + x,
        ti.root: lambda z, x: z**3 + z - x,
        ti.argmin: lambda z, x: ((z - x) ** 4 + (z - x) ** 2).sum(1),
        ti.least_squares: lambda z, x: torch.sinh(z - x),
    }

    def of(x):
        with torch.no_grad():
            return solve(functions[solve], torch.zeros_like(x), x).value

    value, tangent = torch.func.jvp(lambda x: x * of(x), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(value, x * of(x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(tangent, of(x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.func.grad(lambda x: (x * of(x)).sum())(x), of(x), rtol=1e-6, atol=1e-8)
    mapped = torch.vmap(of)(torch.stack([x, 0.5 * x]))
    torch.testing.assert_close(mapped, torch.stack([of(x), of(0.5 * x)]), rtol=1e-4, atol=1e-5)
