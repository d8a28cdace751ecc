"""Which noise goes with which sample: the optimal assignment of a batch, the one place here that takes scipy."""

from __future__ import annotations

import torch
from torch import Tensor


def optimal_pairs(x: Tensor, z: Tensor) -> Tensor:
    r"""For every row of `x` its row of `z`, int64 `(B,)`, such that $\sum_i |x_i - z_{p(i)}|^2$ is least.

    Raises:
        ModuleNotFoundError: without scipy.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "flow_matching_loss: coupling='optimal' is an assignment by scipy, which is not installed; try pip install "
            "torchimplicit[optim]"
        ) from error
    cost = -(x.flatten(1).double() @ z.flatten(1).double().mT)  # the squares are the same for all pairings
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x.device)
