"""What is kept apart from the outside of a solve."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.transforms import active, for_rows, random_state_kept


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
