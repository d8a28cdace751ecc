"""Flow matching: a field of a continuous normalising flow trained by regression, without a solve."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchimplicit.core.options import require_instance
from torchimplicit.nn.paths.cnf import CNF
from torchimplicit.nn.paths.layer import given
from torchimplicit.nn.score.images import check_images
from torchimplicit.nn.score.pairing import optimal_pairs

Coupling = Literal["independent", "optimal"]


def flow_matching_loss(flow: CNF, x: Tensor, context: Any = None, *, coupling: Coupling = "independent") -> Tensor:
    r"""The flow-matching loss of every sample, $|f(t, z_t) - (x - z) / (t_1 - t_0)|^2$ by dimension, `(B,)`.

    With $z$ from the flow's base, $t$ uniform between its times and $z_t$ on the straight line from $z$ to $x$. The
    field of least loss is the mean velocity of the lines through a point; its flow leads the base to the data, so that
    `flow.log_prob` and `flow.sample` are those of the data's law. No path is solved: a step costs an evaluation.
    Noise and times are torch's generator's.

    With coupling "optimal" the noise of a batch is assigned to its samples such that the lines are shortest, which
    makes the paths straighter and solving them cheaper, and the law is the same. Not for the last digit of a
    likelihood, which the loss does not bound: that is trained by `-flow.log_prob(x)`, at a solve a step.

    Source: Y. Lipman et al., arXiv 2210.02747, equation 23 with no noise at the end; X. Liu, C. Gong, Q. Liu, arXiv
    2209.03003, equation 1; optimal pairs: A. Tong et al., arXiv 2302.00482; A.-A. Pooladian et al., arXiv 2304.14772.

    Args:
        flow: the flow that is trained: its field, its times, its base.
        x: data, `(B, *shape)`.
        context: what the field is conditioned on, see `CNF`.
        coupling: "independent", or "optimal", which takes scipy and no context: pairs of whole batches would make the
            noise depend on what the flow is conditioned on.

    Returns:
        `(B,)`.

    Raises:
        TypeError: `flow` is no `CNF`, or data are not floating.
        ValueError: data have another shape or NaN, or there is a context with optimal pairs.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        >>> flow = ti.nn.CNF(net, 2, autonomous=True)
        >>> loss = ti.nn.flow_matching_loss(flow, torch.randn(8, 2)).mean()
        >>> loss.backward()
        >>> log_p = flow.log_prob(torch.randn(8, 2))
    """
    require_instance("flow", flow, CNF, "ti.nn.CNF(field, shape)")
    check_images("flow_matching_loss", x, flow.shape, None, finite=True)
    if coupling not in get_args(Coupling):
        raise ValueError(f"flow_matching_loss(coupling={coupling!r}): expected 'independent' or 'optimal'")
    if coupling == "optimal" and context is not None:
        raise ValueError(
            "flow_matching_loss(coupling='optimal'): got a context, whose samples pairs of the whole batch would give "
            "a noise of their own, expected none; try coupling='independent'"
        )
    z = flow.base_sample(len(x)).detach().to(x)
    if coupling == "optimal":
        z = z[optimal_pairs(x.detach(), z)]
    part = torch.rand(len(x), *(1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
    first, last = flow.ts[0].to(x), flow.ts[-1].to(x)
    field = given(flow.field, flow.autonomous, () if context is None else (context,))
    velocity = field(first + part * (last - first), torch.lerp(z, x, part))
    return (velocity - (x - z) / (last - first)).square().flatten(1).mean(1)
