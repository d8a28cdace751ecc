"""Stein's unbiased estimate of the risk, with the divergence from one product with the Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number
from torchimplicit.imaging.physics.check import is_real_or_complex, kind
from torchimplicit.imaging.physics.sense import Fourier, Sense
from torchimplicit.nn.score.noise import Normals
from torchimplicit.sde.seeds import Seed


@transforms.outside_inference_mode
def sure_loss(
    reconstruct: Callable[[Tensor, Any], Tensor],
    y: Tensor,
    op: Any,
    *,
    noise: float,
    seed: Seed = None,
) -> Tensor:
    r"""Stein's unbiased risk estimate: in expectation $|A R(y) - A x|^2 / m$, from measurements $y = A x + n$ alone.

    With $h(y) = A R(y)$ it is $|h(y) - y|^2 / m - \sigma^2 + 2 \sigma^2\,\mathrm{div}\,h(y) / m$, and the divergence is
    $\epsilon^\top J_h \epsilon$ with random signs $\epsilon$, exact where $J_h$ is diagonal: one product with the
    Jacobian, by differentiation and no finite difference, also through an equilibrium. It may be negative. Gradients by
    it are of second order. Only for white Gaussian noise of known size. It says nothing of an operator's null space:
    add `equivariant_loss` for that.

    Source: C. Stein, Annals of Statistics 9 (1981) 1135; S. Ramani, T. Blu, M. Unser, IEEE Trans. Image Processing 17
    (2008) 1540, for the probe.

    Args:
        reconstruct: $R$, `reconstruct(y, op) -> x`, differentiable in `y`, samples independent.
        y: measurements, `(B, ...)`. Of `Fourier` and `Sense` only those count that the mask samples.
        op: $A$, with `A` and `A_adjoint`.
        noise: $\sigma > 0$, the standard deviation; of complex noise $\sigma^2 = E |n|^2$, as `torch.randn` has it.
        seed: of the signs: an int, from which every sample has its own, or one per sample, `(B,)` int64; None draws one
            from torch's generator.

    Returns:
        An estimate per sample, `(B,)`, differentiable in the parameters of `reconstruct`.

    Raises:
        TypeError: measurements that are not floating or complex.
        ValueError: impossible noise, or a reconstruction that does not depend on the measurements.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> y = torch.randn(1, 1000)
        >>> shrink = lambda y, op: 0.5 * y
        >>> identity = ti.imaging.Inpainting(torch.ones(1000, dtype=torch.bool))
        >>> risk = ti.imaging.sure_loss(shrink, y, identity, noise=1.0)
        >>> bool((risk - 0.25).abs() < 0.2)
        True
    """
    if not is_real_or_complex(y):
        raise TypeError(f"sure_loss(y=...): got {kind(y)}, expected a floating or complex one; try y.float()")
    if not (is_number(noise) and noise > 0):
        raise ValueError(f"sure_loss(noise={noise!r}): expected the standard deviation, a number > 0")
    sampled = _sampled(op, y)
    probe = sampled * _signs(y, seed)
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = y if y.requires_grad and keep else y.detach().requires_grad_()
        found = op.A(reconstruct(leaf, op))
        if not found.requires_grad:
            raise ValueError(
                "sure_loss: the reconstruction has no gradient by its measurements; try it without detach()"
            )
        (product,) = torch.autograd.grad(found, leaf, probe, create_graph=keep, retain_graph=keep, allow_unused=True)
    if product is None:
        raise ValueError("sure_loss: the reconstruction does not depend on the measurements, expected one that does")
    size = sampled.expand_as(y).flatten(1).sum(1)
    misfit = (sampled * (found - leaf)).abs().square().flatten(1).sum(1)
    divergence = (product * probe.conj()).real.flatten(1).sum(1)
    # Of complex noise each of the two parts has half of the variance.
    risk = (misfit + (1 if y.is_complex() else 2) * noise**2 * divergence) / size - noise**2
    return risk if keep else risk.detach()


def _sampled(op: Any, y: Tensor) -> Tensor:
    """Where there are measurements, as numbers that broadcast to them."""
    coil = op.coil if isinstance(op, Sense) else op
    if not isinstance(coil, Fourier):
        return y.real.new_ones(())
    mask = coil.mask.to(y.real.dtype)
    return mask.unsqueeze(-3) if mask.dim() > 2 and isinstance(op, Sense) else mask


def _signs(y: Tensor, seed: Seed) -> Tensor:
    """Random signs like the measurements, in both parts of complex ones."""
    real = torch.view_as_real(y) if y.is_complex() else y
    signs = torch.where(Normals(seed, len(y), real.shape[1:], real.detach()).draw(0) < 0, -1.0, 1.0).to(real.dtype)
    return torch.view_as_complex(signs) if y.is_complex() else signs
