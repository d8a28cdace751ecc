r"""The same process in the other calculus: a drift with a correction.

The Ito equation with drift $f$ and the Stratonovich equation with drift $f - c$ have the same solutions, where
$c_i = \frac12 \sum_{j,k} \partial_k g_{ij}\, g_{kj}$: half the derivative of every column of the diffusion along
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchimplicit.adjoint.products import jvp
from torchimplicit.core import transforms
from torchimplicit.core.explicit import modules_behind
from torchimplicit.core.independence import noise as normals
from torchimplicit.core.tree import Layout
from torchimplicit.sde.diffusion import Diffusion, NoiseKind


def to_stratonovich(drift: Callable, diffusion: Callable, noise: NoiseKind = "diagonal") -> Converted:
    """The drift of the Stratonovich equation whose solutions are those of an Ito equation.

    Args:
        drift: of the Ito equation, `drift(t, y, *args)`.
        diffusion: of both equations, `diffusion(t, y, *args)`.
        noise: of which kind it is, see `sdeint`.

    Returns:
        A module whose parameters are those of both functions. It costs an evaluation of both, and a product with the
        diffusion's Jacobian for every channel; one for diagonal noise, and none for additive noise.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> drift, diffusion = lambda t, y: 0.3 * y, lambda t, y: 0.6 * y
        >>> ti.sde.to_stratonovich(drift, diffusion)(
        ...     torch.zeros(1, 1), torch.ones(1, 1)
        ... ).item() < 0.3
        True
    """
    return Converted(drift, diffusion, noise, -1.0)


def to_ito(drift: Callable, diffusion: Callable, noise: NoiseKind = "diagonal") -> Converted:
    """The drift of the Ito equation whose solutions are those of a Stratonovich equation; see `to_stratonovich`.

    Args:
        drift: of the Stratonovich equation.
        diffusion: of both.
        noise: of which kind it is.
    """
    return Converted(drift, diffusion, noise, 1.0)


class Converted(nn.Module):
    """A drift with a part of the correction; `to_stratonovich` and `to_ito` make it.

    Args:
        drift: of the equation.
        diffusion: of the equation.
        noise: of which kind it is.
        sign: of the correction.

    Raises:
        TypeError: one of them cannot be called.
        ValueError: another word for the noise.
    """

    def __init__(self, drift: Callable, diffusion: Callable, noise: NoiseKind, sign: float):
        super().__init__()
        for name, part in (("drift", drift), ("diffusion", diffusion)):
            if not callable(part):
                raise TypeError(f"{name}: got a {type(part).__name__}, expected a callable {name}(t, y, *args)")
        if noise not in get_args(NoiseKind):
            words = ", ".join(map(repr, get_args(NoiseKind)))
            raise ValueError(f"noise: got {noise!r}, expected one of {words}")
        self.drift, self.diffusion, self.sign = drift, diffusion, sign
        self.noise: NoiseKind = noise
        self.owners = nn.ModuleList(module for part in (drift, diffusion) for module in modules_behind(part))
        self.looked = False

    def forward(self, t: Any, y: Any, *args: Any) -> Any:
        """The drift.

        Raises:
            ValueError: the noise is diagonal, but a coefficient depends on another unknown than its own.
        """
        f = self.drift(t, y, *args)
        if self.noise == "additive":
            return f
        layout = Layout(y)
        shape = Diffusion(self.noise, layout)
        rows = layout.flatten(y)

        def g(rows: Tensor) -> Tensor:
            return shape.flatten(self.diffusion(t, layout.unflatten(rows), *args))

        correction = 0.5 * self.sign * self._along_itself(g, rows)
        parts = pytree.tree_leaves(layout.unflatten(correction))
        leaves, spec = pytree.tree_flatten(f)
        return pytree.tree_unflatten([a + b for a, b in zip(leaves, parts, strict=True)], spec)

    def _along_itself(self, g: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """The sum of the derivatives of every column along itself, `(B, n)`."""
        value = g(rows)
        if value.dim() == 2:
            if self.noise == "diagonal" and not self.looked and not transforms.active():
                self._look(g, rows)
                self.looked = True
            return jvp(g, (rows,), (value,))
        columns = value.unbind(2)
        return torch.stack([jvp(g, (rows,), (v,))[:, :, j] for j, v in enumerate(columns)]).sum(0)

    def _look(self, g: Callable[[Tensor], Tensor], rows: Tensor) -> None:
        """Refuses coefficients that depend on other unknowns: the derivative along all of them is not that by one."""
        probe = normals(rows)
        along, each = jvp(g, (rows,), (probe,)), probe * jvp(g, (rows,), (torch.ones_like(rows),))
        if bool(((along - each).abs() > 1e-4 * (along.abs() + each.abs() + 1e-4)).any()):
            raise ValueError(
                "noise: got 'diagonal' with a coefficient that depends on another unknown than its own, expected "
                "g_i(y_i); try noise='general' with torch.diag_embed(g)"
            )
