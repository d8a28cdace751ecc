"""What sparse programs do not know: said, with what to try."""

import warnings

import pytest
import torch

from tests.optim.quadprog.sparse.banded import MATRICES, banded
from torchimplicit import qp
from torchimplicit.optim import Clarabel, InteriorPoint


def given(**changes):
    return {name: x.to_sparse() if name in MATRICES else x for name, x in banded(n=20).items()} | changes


def test_what_cannot_be_read_is_refused():
    values = banded(n=20)
    with pytest.raises(ValueError, match=r"not symmetric.*try \(Q \+ Q\.mT\) / 2"):
        qp(values["Q"].triu().to_sparse(), values["q"], solver=Clarabel())
    with pytest.raises(ValueError, match=r"try Q\.to_dense\(\)"):
        qp(values["Q"].expand(2, 20, 20).to_sparse(), values["q"])
    with pytest.raises(ValueError, match="all matrices dense"):
        qp(**given(Q=values["Q"].expand(2, 20, 20)), solver=Clarabel())
    with pytest.raises(ValueError, match=r"expected .* to fit q and its constraint"):
        qp(**given(G=values["G"][:, :-1].to_sparse()), solver=Clarabel())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = torch.eye(3).double().to_sparse_csc()
    with pytest.raises(ValueError, match=r"try Q\.to_sparse_coo\(\)"):
        qp(matrix, torch.ones(3).double())
    assert qp(matrix.to_sparse_coo(), torch.ones(3).double(), solver=Clarabel()).report.converged, "what is advised"


def test_options_that_need_dense_matrices_say_so_and_what_is_advised_helps():
    own = torch.ones(220, dtype=torch.float64)
    large = {"Q": torch.diag(own).to_sparse(), "q": torch.linspace(-1, 1, 220).double(), "l": 0 * own}
    for option in ({"smoothed": 0.1}, {"closest_feasible": True}):
        with pytest.raises(NotImplementedError, match=r"(smoothed=0\.1|closest_feasible=True).*InteriorPoint"):
            qp(**large, **option)
        assert qp(**large, **option, solver=InteriorPoint()).report.converged
    with pytest.raises(ValueError, match="InteriorPoint"):
        qp(**banded(n=20), solver=Clarabel(), smoothed=0.1)
    values = given()
    with pytest.raises(NotImplementedError, match=r"torch\.func.*InteriorPoint"):
        torch.func.grad(lambda q: qp(values["Q"], q, solver=Clarabel()).value.sum())(values["q"])
    torch.func.grad(lambda q: qp(values["Q"], q, solver=InteriorPoint()).value.sum())(values["q"])
    rows = torch.eye(20, dtype=torch.float64)
    q = values["q"].clone().requires_grad_()
    value = qp(values["Q"], q, solver=Clarabel()).value
    with pytest.raises(NotImplementedError, match="is_grads_batched"):
        torch.autograd.grad(value, q, rows, is_grads_batched=True)
