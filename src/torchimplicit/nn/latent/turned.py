"""The functions of a stochastic equation that a control turns towards what lies ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.nn.latent.encoder import Context
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.series_checks import refuse


class Ahead(NamedTuple):
    """What lies ahead of a time, of every path.

    Attributes:
        times: of contexts, `(N, K)`, increasing, infinite as padding.
        values: what was read of all that lies there and later, `(N, K, width)`.
        last: the last observation's time, `(N,)`.
    """

    times: Tensor
    values: Tensor
    last: Tensor

    @classmethod
    def of(cls, context: Context, series: Series) -> Ahead:
        """What was read of series; in the dtype of the values, as the solver's times will be.

        Raises:
            ValueError: this dtype cannot tell the times apart.
        """
        dtype = context.values.dtype
        times = context.times.to(dtype).masked_fill(context.times.isnan(), torch.inf).contiguous()
        same = (times.diff(dim=1) == 0).any(1)  # infinities differ by NaN
        if bool(same.any()):
            got = f"times that are the same in {dtype}"
            refuse(int(same.nonzero()[0]), got, "times that it tells apart", "times - times[0], or values in float64")
        observed = series.times.masked_fill(~series.mask.any(2), -torch.inf)
        return cls(times, context.values, observed.amax(1).to(dtype))

    def at(self, t: Tensor) -> Tensor:
        """The context of the first time behind `t`, `(N, 1)`, and how far ahead that is: `(N, width + 1)`."""
        count = self.times.isfinite().sum(1, keepdim=True)
        place = torch.minimum(torch.searchsorted(self.times, t.contiguous(), right=True), count - 1)
        values = self.values.gather(1, place.unsqueeze(2).expand(-1, -1, self.values.shape[2])).squeeze(1)
        return torch.cat((values, self.times.gather(1, place) - t), 1)


def plain(function: Callable, autonomous: bool, t: Tensor, z: Tensor, *ahead: Tensor) -> Tensor:
    """A drift or diffusion that does not see what lies ahead."""
    return function(z) if autonomous else function(t, z)


def turned(
    drift: Callable, diffusion: Callable, control: Callable, autonomous: bool, t: Tensor, z: Tensor, *ahead: Tensor
) -> Tensor:  # fmt: skip
    """The drift of the posterior; the equation's own where nothing lies ahead."""
    known = Ahead(*ahead)
    context = known.at(t)
    u = control(z, context) if autonomous else control(t, z, context)
    g = plain(diffusion, autonomous, t, z)
    shape = g.shape if g.dim() == 2 else (len(g), g.shape[-1])
    if u.shape != shape:
        raise ValueError(
            f"control: got shape {tuple(u.shape)}, expected {tuple(shape)}, a number for each Brownian motion of a "
            f"diffusion {tuple(g.shape)}"
        )
    u = torch.where(t < known.last.unsqueeze(1), u, 0.0)
    turn = g * u if g.dim() == 2 else (g @ u.unsqueeze(2)).squeeze(2)
    return plain(drift, autonomous, t, z) + turn
