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
Targets = Literal["own", "batch"]


def flow_matching_loss(
    flow: CNF, x: Tensor, context: Any = None, *, coupling: Coupling = "independent", targets: Targets = "own"
) -> Tensor:
    r"""The flow-matching loss of every sample, $|f(t, z_t) - (x - z) / (t_1 - t_0)|^2$ by dimension, `(B,)`.

    With $z$ from the flow's base, $t$ uniform between its times and $z_t$ on the straight line from $z$ to $x$. The
    field of least loss is the mean velocity of the lines through a point; its flow leads the base to the data, so that
    `flow.log_prob` and `flow.sample` are those of the data's law. No path is solved: a step costs an evaluation.
    Noise and times are torch's generator's.

    With coupling "optimal" the noise of a batch is assigned to its samples such that the lines are shortest, which
    makes the paths straighter and solving them cheaper, and the law is the same. With targets "batch" a point is not
    compared with its own line but with the mean of all lines of the batch through it, each weighed by its density
    there: gradients of the same mean, which vary less, and a loss of less than the lines cross. It is worth it where
    data are dense, as in a few dimensions; elsewhere a point sees its own line alone.

    Not for the last digit of a likelihood, which the loss does not bound: that is trained by `-flow.log_prob(x)`, at a
    solve a step.

    Source: Y. Lipman et al., arXiv 2210.02747, equation 23 with no noise at the end; X. Liu, C. Gong, Q. Liu, arXiv
    2209.03003, equation 1; optimal pairs: A. Tong et al., arXiv 2302.00482; A.-A. Pooladian et al., arXiv 2304.14772;
    targets of the batch: Y. Xu, S. Tong, T. Jaakkola, arXiv 2302.00670, for the score, with references of their own.

    Args:
        flow: the flow that is trained: its field, its times, its base.
        x: data, `(B, *shape)`.
        context: what the field is conditioned on, see `CNF`.
        coupling: "independent", or "optimal", which takes scipy and no context: pairs of whole batches would make the
            noise depend on what the flow is conditioned on.
        targets: "own", or "batch", for independent pairs without context; takes `B * B` points in memory.

    Returns:
        `(B,)`.

    Raises:
        TypeError: `flow` is no `CNF`, or data are not floating.
        ValueError: data have another shape or NaN, or there is a context with optimal pairs or targets of the batch, or
            both of these.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        ... )
        >>> flow = ti.nn.CNF(net, 2, autonomous=True)
        >>> loss = ti.nn.flow_matching_loss(flow, torch.randn(8, 2)).mean()
        >>> loss.backward()
        >>> log_p = flow.log_prob(torch.randn(8, 2))
    """
    require_instance("flow", flow, CNF, "ti.nn.CNF(field, shape)")
    check_images("flow_matching_loss", x, flow.shape, None, finite=True, like=flow)
    _check_words(coupling, targets, context)
    z = flow.base_sample(len(x)).detach().to(x)
    if coupling == "optimal":
        z = z[optimal_pairs(x.detach(), z)]
    part = torch.rand(len(x), *(1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
    first, last = flow.ts[0].to(x), flow.ts[-1].to(x)
    field = given(flow.field, flow.autonomous, () if context is None else (context,))
    velocity = field(first + part * (last - first), torch.lerp(z, x, part))
    way = x - z if targets == "own" else _mean_way(flow, x, z, part)
    return (velocity - way / (last - first)).square().flatten(1).mean(1)


@torch.no_grad()
def _mean_way(flow: CNF, x: Tensor, z: Tensor, part: Tensor) -> Tensor:
    """The mean way, like `x`, of the lines to all of `x` through the points that lie a part of the way from `z`."""
    odds = part / (1 - part)
    starts = z.unsqueeze(1) + odds.unsqueeze(1) * (x.unsqueeze(1) - x)  # of the line to each `x` through each point
    weight = flow.base_log_prob(starts.flatten(0, 1)).view(len(x), len(x)).softmax(1)
    end = (weight @ x.flatten(1)).view_as(x)
    return end - z - odds * (x - end)


def _check_words(coupling: str, targets: str, context: Any) -> None:
    """Refuses other words, and those that do not go together.

    Raises:
        ValueError: either.
    """
    for name, got, words in (("coupling", coupling, get_args(Coupling)), ("targets", targets, get_args(Targets))):
        if got not in words:
            raise ValueError(f"flow_matching_loss({name}={got!r}): expected {words[0]!r} or {words[1]!r}")
    if coupling == "optimal" and context is not None:
        raise ValueError(
            "flow_matching_loss(coupling='optimal'): got a context, whose samples pairs of the whole batch would give "
            "a noise of their own, expected none; try coupling='independent'"
        )
    if targets == "batch" and (coupling == "optimal" or context is not None):
        got = "coupling='optimal'" if coupling == "optimal" else "a context"
        raise ValueError(
            f"flow_matching_loss(targets='batch'): got {got}, with which the lines through a point are not those of "
            "the whole batch, expected independent pairs without context; try targets='own'"
        )
