"""The control of one stage within its bounds: small quadratic programs over boxes, by projected Newton steps."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.linear.batched import times
from torchimplicit.optim.control.riccati import Choice, only, regular

STEPS, HALVINGS = 20, 8  # projected Newton steps of a stage, and how often each is halved
ARMIJO = 0.1  # the part of the promised decrease that a step must bring


def boxed(lower: Tensor, upper: Tensor, damping: Tensor | None = None) -> Choice:
    """The minimum of a stage over controls within bounds; those at a bound do not react to the state.

    Y. Tassa, N. Mansard, E. Todorov, Control-limited differential dynamic programming (ICRA 2014), section III.

    Args:
        lower: of the change of the controls, `(B, T, nu)`; with `upper` it holds zero.
        upper: of the change.
        damping: added to the diagonal of the curvature, `(B,)`.
    """
    lows, highs = lower.unbind(1), upper.unbind(1)
    bounded = bool((lower.isfinite() | upper.isfinite()).any())

    def choose(t: int, quu: Tensor, qux: Tensor, qu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if damping is not None:
            quu = quu + torch.diag_embed(damping[:, None].expand(qu.shape))
        K, k, sound = regular(quu, qux, qu)
        inside = (k >= lows[t]) & (k <= highs[t])
        if not bounded or bool((inside.all(1) | ~sound).all()):
            return K, k, sound
        if k.shape[1] == 1:
            return torch.where(inside.unsqueeze(2), K, 0), k.clamp(lows[t], highs[t]), sound
        eye = torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
        definite = torch.where(sound[:, None, None], quu, eye)  # or the others would wait for a minimum that is not
        k, free = minimise(definite, qu, lows[t], highs[t], k)
        K, _, _ = regular(*only(free, definite, qux, qu))
        return K, k, sound

    return choose


def minimise(Q: Tensor, q: Tensor, lower: Tensor, upper: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum `(B, n)` of `u'qu / 2 + q'u` for `lower <= u <= upper`, and which coordinates are free there.

    Each step is Newton's over the coordinates that no bound holds, projected, and halved until the cost falls by enough
    (D. Bertsekas, SIAM J. Control Optim. 20 (1982) 221). Ends after a few steps, exactly; not meant for more than some
    ten controls, nor for `Q` that is not positive definite.
    """
    u, rounding = start.clamp(lower, upper), 10 * torch.finfo(q.dtype).eps
    for _ in range(STEPS):
        slope = times(Q, u) + q
        free = ~(((u <= lower) & (slope > 0)) | ((u >= upper) & (slope < 0)))
        _, step, _ = regular(*only(free, Q, torch.zeros_like(Q[..., :0]), slope))
        going = (step.abs() > rounding * (u.abs() + 1)).any(1)
        if not bool(going.any()):
            break
        # Those that have arrived stay as they are, to the bit, however long the others take.
        u = torch.where(going.unsqueeze(1), _halve(Q, q, lower, upper, u, step), u)
    return u, free


def _halve(Q: Tensor, q: Tensor, lower: Tensor, upper: Tensor, u: Tensor, step: Tensor) -> Tensor:
    size = 0.5 ** torch.arange(HALVINGS, dtype=u.dtype, device=u.device)
    candidates = (u + size[:, None, None] * step).clamp(lower, upper)  # (halvings, B, n)
    move = candidates - u
    slope = times(Q, u) + q
    linear = (move * slope).sum(-1)
    falls = linear + 0.5 * (move * times(Q, move)).sum(-1) <= ARMIJO * linear
    first = falls.to(torch.uint8).argmax(0)
    chosen = candidates.gather(0, first[None, :, None].expand(1, *u.shape))[0]
    return torch.where(falls.any(0).unsqueeze(-1), chosen, u)
