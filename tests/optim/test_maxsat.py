"""The derivative of vectors that rest: along a flat direction there is none to vouch for."""

import torch

from torchimplicit.core.status import Report, Status
from torchimplicit.optim.maxsat import Descent, respond

D = torch.float64


def response(*grads):
    """Of two unit vectors that repel each other and are opposite, for sample by sample a gradient by each of them.

    Turned together they are no worse; turned apart the energy's curvature is 2, for moves (1, 1) across.
    """
    coupling, force = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=D), torch.zeros(2, 2, dtype=D)
    count = len(grads)
    value = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]], dtype=D).expand(2, count, 2)
    zeros = torch.zeros(count, dtype=torch.int64)
    grad = torch.tensor(grads, dtype=D).transpose(0, 1)
    return respond(
        coupling,
        force,
        value,
        zeros.bool().expand(2, -1) | True,
        grad,
        Descent(),
        Report(zeros, zeros, zeros.double(), 0),
    )


def test_a_response_is_found_where_the_energy_is_curved_and_none_where_it_is_flat():
    w, report = response(([5.0, 1.0], [7.0, 1.0]), ([0.0, 1.0], [0.0, -1.0]))
    assert report.status.tolist() == [Status.CONVERGED, Status.STAGNATED]
    assert torch.allclose(w[:, 0], torch.tensor([[0.0, 0.5], [0.0, 0.5]], dtype=D))
    assert w[:, 1].abs().max() == 0


def test_no_gradient_needs_no_response_and_one_that_is_not_finite_gets_none():
    w, report = response(([0.0, 0.0], [0.0, 0.0]), ([torch.nan, 0.0], [0.0, 1.0]))
    assert report.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]
    assert w.abs().max() == 0
