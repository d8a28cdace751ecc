"""What a diffusion returns: for which noise of which shape, how it becomes rows, and what it makes of an increment."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.tree import Layout

NoiseKind = Literal["diagonal", "scalar", "additive", "general"]
SHAPES = {
    "diagonal": "the shape of the state, a Brownian motion for every unknown",
    "scalar": "the shape of the state with one channel behind, (B, ..., 1)",
    "additive": "the shape of the state with m channels behind, (B, ..., m), or that of the state alone",
    "general": "the shape of the state with m channels behind, (B, ..., m)",
}


class Diffusion:
    """The diffusions of one solve, in flat form.

    Noise of its own for every unknown, or one for all, is `(B, n)`; a matrix of unknowns by channels is `(B, n, m)`.

    Args:
        noise: the word for it.
        layout: of the state.
    """

    def __init__(self, noise: NoiseKind, layout: Layout):
        self.noise: NoiseKind = noise
        self.layout = layout
        self.behind: tuple[int, ...] | None = None  # the dimension of channels; None before the first evaluation

    @property
    def channels(self) -> int | None:
        """How many Brownian motions drive a sample; None where the diffusion's shape says so."""
        return {"diagonal": self.layout.width, "scalar": 1}.get(self.noise)

    def of_batch(self, batch: int) -> Diffusion:
        """The same for another number of samples."""
        some = Diffusion(self.noise, self.layout.of_batch(batch))
        some.behind = self.behind
        return some

    def check(self, value: Any, cast: bool) -> None:
        """Refuses what does not fit the noise.

        Args:
            value: what the diffusion returned.
            cast: let a floating dtype pass, for autocast.

        Raises:
            ValueError: another structure, shape or device.
            TypeError: another dtype.
        """
        leaves, spec = pytree.tree_flatten(value)
        if spec != self.layout.spec:
            raise ValueError(f"diffusion: got the structure {spec}, expected that of the state, {self.layout.spec}")
        channels = set()
        for leaf, shape, dtype in zip(leaves, self.layout.shapes, self.layout.dtypes, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"diffusion: got a {type(leaf).__name__}, expected a tensor; try torch.full_like(y, g)")
            if leaf.device != self.layout.device:
                raise ValueError(
                    f"diffusion: got a tensor on {leaf.device}, expected {self.layout.device}, where the state is; try "
                    "torch.full_like(y, g), or .to(y.device)"
                )
            if leaf.dtype != dtype and not (cast and leaf.is_floating_point()):
                raise TypeError(f"diffusion: got {leaf.dtype}, expected the state's {dtype}; try y0 of that dtype")
            if not self._fits(leaf.shape, shape):
                raise ValueError(self._misfit(leaf.shape, shape))
            channels.add(leaf.shape[-1] if leaf.dim() > len(shape) else None)
        if self.noise != "diagonal" and len(channels) > 1:
            raise ValueError(
                f"diffusion: got leaves with {channels} channels behind, expected one number of channels, for the same "
                "Brownian motions drive all leaves; try zeros for channels that do not reach a leaf"
            )

    def _fits(self, got: torch.Size, state: torch.Size) -> bool:
        behind = got[: len(state)] == state and len(got) == len(state) + 1 and got[-1] > 0
        if self.noise == "diagonal":
            return got == state
        if self.noise == "scalar":
            return behind and got[-1] == 1
        return behind or (self.noise == "additive" and got == state)

    def _misfit(self, got: torch.Size, state: torch.Size) -> str:
        others = [noise for noise in get_args(NoiseKind) if Diffusion(noise, self.layout)._fits(got, state)]
        tried = f"noise={others[0]!r}" if others else "value.expand_as(y) for noise='diagonal'"
        if self.noise in ("scalar", "general") and len(got) == len(state):  # another process, if "diagonal" is meant
            whole = "value" if got == state else "value.expand_as(y)"
            tried = f"{whole}.unsqueeze(-1) for one channel" + (f", or {tried}" if others else "")
        return (
            f"diffusion: got shape {tuple(got)} for a state of shape {tuple(state)}, expected for noise={self.noise!r} "
            f"{SHAPES[self.noise]}; try {tried}"
        )

    def flatten(self, value: Any) -> Tensor:
        """What a diffusion returned, as rows `(B, n)` or matrices `(B, n, m)`.

        Raises:
            TypeError: see `check`.
            ValueError: likewise, at whichever evaluation, and for other channels than at the first one: another shape
                would broadcast, and be another noise.
        """
        layout = self.layout
        if self.noise == "diagonal":
            return layout.flatten(value)
        leaves = pytree.tree_leaves(value)
        fitting = (
            isinstance(leaf, Tensor) and self._fits(leaf.shape, shape)
            for leaf, shape in zip(leaves, layout.shapes, strict=False)
        )
        if len(leaves) != len(layout.shapes) or not all(fitting):
            self.check(value, cast=True)
        behind = {tuple(leaf.shape[len(shape) :]) for leaf, shape in zip(leaves, layout.shapes, strict=True)}
        if self.behind is None:
            self.behind = min(behind)
        if behind != {self.behind}:
            raise ValueError(
                f"diffusion: got channels of shapes {behind} behind the state's, expected {self.behind} of all leaves, "
                "as at the first evaluation: they are the same Brownian motions throughout; try zeros for channels "
                "that do not act"
            )
        if leaves[0].dim() == len(layout.shapes[0]):
            return layout.flatten(value)
        found = []
        for leaf, size in zip(leaves, layout.sizes, strict=True):
            real = torch.view_as_real(leaf.resolve_conj()).movedim(-1, -2) if leaf.is_complex() else leaf
            found.append(real.reshape(layout.batch, size, leaf.shape[-1]).to(layout.dtype))
        whole = found[0] if len(found) == 1 else torch.cat(found, 1)
        return whole.squeeze(2) if self.noise == "scalar" else whole


def driven(y: Tensor, g: Tensor, w: Tensor, part: float = 1.0) -> Tensor:
    """`y + part g w`.

    Args:
        y: states, `(B, n)`.
        g: a diffusion, `(B, n)` or `(B, n, m)`.
        w: increments, `(B, m)`; `(B, n)` or `(B, 1)` for rows.
        part: of them.
    """
    if g.dim() == 2:
        return torch.addcmul(y, g, w, value=part)
    # As rows: with columns MKL rounds those of a batch of one otherwise, and takes up to eight times as long.
    return torch.baddbmm(y.unsqueeze(1), w.unsqueeze(1), g.mT, alpha=part).squeeze(1)


def integral(y: Tensor, g: Tensor, g_there: Tensor, w: Tensor, mean: Tensor) -> Tensor:
    r"""`y` and the integral of a diffusion that changes with time alone, as a line does, over a step.

    $\int g\,dW = g_0 W + (g_1 - g_0) (W - \bar W)$, for $\int \frac{s - t}{h}\,dW_s = W - \bar W$.

    Args:
        y: states, `(B, n)`.
        g: the diffusion at the start of the step.
        g_there: at its end.
        w: increments.
        mean: of the path over the step, from zero at its start.
    """
    return driven(driven(y, g, mean), g_there, w - mean)
