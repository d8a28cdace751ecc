r"""Reconstruction of what has moved between two acquisitions, each of which judges the other: no ground truth.

An object is measured twice, $y_i = A_i x_i + n_i$, undersampled in two ways and in two positions. What one
reconstruction $\hat x_j = R(y_j, A_j)$ predicts of the other measurement is compared where it was measured, after it
has been brought into place:

$$ L_i = \frac{|A_i (\hat x_j \circ (\mathrm{id} + u_i)) - y_i|^2}{|y_i|^2} + w \frac{|A_i \hat x_i - y_i|^2}{|y_i|^2} ,
   \qquad u_i = \mathrm{register}(|\hat x_i|, |\hat x_j|) . $$

As the noise of $y_i$ is independent of $\hat x_j$, the first term is, in expectation over noise and masks, a distance
to the true image and a constant, as long as $u_i$ is the true motion; without $u_i$ motion is taken for noise, and
images are learned that are blurred by it. Registration needs good images and reconstruction good registrations: both
are equilibria here, of the same images, and improve with each other. The gradient is of $R$ at $u_i$ held fixed, which
is one side of an alternation whose other side is solved to the end; or of both, through the registration's equilibrium.

Source: W. Gan, Y. Sun, C. Eldeniz, J. Liu, H. An, U. Kamilov, Deformation-compensated learning for image reconstruction
without ground truth, IEEE Trans. Med. Imaging 41 (2022) 2371, arXiv 2107.05533, equations 6 to 9, there with networks
that register; without $u_i$: J. Lehtinen and others, Noise2Noise, ICML 2018, of artefacts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.core.status import Report, Status
from torchimplicit.imaging.register import LNCC, Demons, align, folds, warp
from torchimplicit.imaging.register.kind import Kind

# From coarse to fine, to a smooth field: what is left of artefacts is no smooth motion.
LEVELS = ((4, 1.5, 1.0), (2, 2.0, 2.0), (1, 4.0, 2.0))
MOTION = Demons("displacement", LNCC(window=7, eps=1e-3), LEVELS)


class Joint(NamedTuple):
    """What a joint loss has found.

    Attributes:
        loss: of every acquisition, `(B,)`; zero where it was left out.
        image: the reconstructions.
        displacement: $u_i$, `(B, 2, H, W)` in voxels, zero where it was left out; None where nothing was registered.
        used: whose loss counts, bool `(B,)`: neither acquisition empty, both
            reconstructions finite, the registration converged and without folds.
        report: of the registration; None without one.
    """

    loss: Tensor
    image: Tensor
    displacement: Tensor | None
    used: Tensor
    report: Report | None


def partner_of(count: int, device: torch.device | None = None) -> Tensor:
    """Which sample of a batch is the other acquisition of each: 1, 0, 3, 2, and so on."""
    return torch.arange(count, device=device) ^ 1


def joint_loss(
    reconstruct: Callable[[Tensor, Any], Tensor],
    y: Tensor,
    op: Any,
    motion: Kind | Tensor | None = MOTION,
    *,
    weight: float = 0.2,
    differentiate: bool = False,
) -> Joint:
    """What each of two acquisitions of an object that moved says of the other's reconstruction; see the module.

    Samples `2 i` and `2 i + 1` of a batch are two acquisitions of one object, with masks and noise of their own.
    Take the mean of `loss[used]`. A pair that fails is left out, and disturbs no other.

    Not for objects of which something appears or vanishes between the acquisitions, and not where one acquisition says
    enough: at low acceleration `split_loss` needs no second one. Phase and brightness have to move with the object.

    Args:
        reconstruct: $R$, `reconstruct(y, op) -> x`, images `(B, H, W)`, complex, or `(B, C, H, W)`.
        y: measurements, `(B, ...)`, an even number.
        op: $A$, with `A`, of every sample its own.
        motion: how to register, such as `Demons()` or `Rigid()`, magnitudes with magnitudes; or the displacements $u_i$
            where they are known, `(B, 2, H, W)` in voxels; None takes nothing to have moved (Artifact2Artifact).
        weight: $w$ of each reconstruction's distance to its own measurement, >= 0.
        differentiate: whether the gradient goes through the registration, too, which has to be solved much closer for
            that: see `Demons`.

    Returns:
        A `Joint`.

    Raises:
        TypeError: `motion` is none of these.
        ValueError: an odd number of samples, a negative weight, displacements of another shape.

    Examples:
        >>> import torch
        >>> from torchimplicit import imaging
        >>> x = torch.nn.functional.pad(torch.rand(1, 12, 12), (2, 2, 2, 2)).cfloat()
        >>> u = torch.zeros(2, 2, 16, 16)
        >>> u[:, 1] = torch.tensor([1.0, -1.0]).view(2, 1, 1)  # to the right, and back
        >>> op = imaging.Fourier()
        >>> y = op.A(torch.cat((x, x.roll(1, -1))))
        >>> loss = lambda u: imaging.joint_loss(lambda y, op: op.A_adjoint(y), y, op, u).loss
        >>> bool((loss(u) < 1e-6).all()), bool((loss(None) > 0.1).all())
        (True, True)
    """
    _check(y, motion, weight)
    partner = partner_of(len(y), y.device)
    image = reconstruct(y, op)
    sound = image.detach().isfinite().flatten(1).all(1) & (y != 0).flatten(1).any(1)
    used = sound & sound[partner]
    known = torch.where(_over(used, image), image, 0)
    seen, displacement, report = known[partner], None, None
    if motion is not None and len(y):
        fixed = known if differentiate else known.detach()
        with nullcontext() if differentiate else torch.no_grad():
            displacement, good, report = _displacement(fixed, partner, motion)
        used = used & good
        displacement = torch.where(_over(used, displacement), displacement, 0)
        seen = warp(_channels(seen), displacement.to(known.real), interpolation="cubic").reshape(known.shape)
    loss = missed(seen, y, op)
    if weight:
        loss = loss + weight * missed(known, y, op)
    return Joint(torch.where(used, loss, 0), image, displacement, used, report)


def missed(image: Tensor, y: Tensor, op: Any) -> Tensor:
    r"""$|A x - y|^2 / |y|^2$ of every sample, `(B,)`.

    Args:
        image: $x$, `(B, ...)`.
        y: measurements, `(B, ...)`.
        op: $A$.
    """
    size = y.abs().square().flatten(1).sum(1)
    return (op.A(image) - y).abs().square().flatten(1).sum(1) / torch.where(size > 0, size, 1.0)


def _displacement(image: Tensor, partner: Tensor, motion: Kind | Tensor) -> tuple[Tensor, Tensor, Report | None]:
    """From every image into its partner, in voxels; of which samples it can be relied on; how the search went."""
    if isinstance(motion, Tensor):
        if motion.dim() != 4 or motion.shape[:2] != (len(image), 2) or motion.shape[2:] != image.shape[-2:]:
            got, expected = tuple(motion.shape), (len(image), 2, *image.shape[-2:])
            raise ValueError(f"joint_loss(motion): got displacements {got}, expected {expected}")
        return motion, motion.detach().isfinite().flatten(1).all(1), None
    size = _channels(image)
    size = size.abs() if size.is_complex() else size
    found = align(size, size[partner], motion, on_failure="ignore")
    displacement = found.displacement().to(size)
    good = (found.report.status == Status.CONVERGED) & (folds(displacement.detach()) == 0)
    return displacement, good.to(image.device), found.report


def _channels(image: Tensor) -> Tensor:
    return image if image.dim() == 4 else image.unsqueeze(1)


def _over(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.dim() - 1))


def _check(y: Tensor, motion: Any, weight: float) -> None:
    if len(y) % 2:
        raise ValueError(
            f"joint_loss(y): got {len(y)} samples, expected an even number: two acquisitions of every object, one "
            "after the other; try torch.stack((first, second), 1).flatten(0, 1)"
        )
    if motion is not None and not isinstance(motion, Kind | Tensor):
        raise TypeError(
            f"joint_loss(motion): got a {type(motion).__name__}, expected how to register, such as register.Demons(), "
            "displacements (B, 2, H, W), or None"
        )
    if not (is_number(weight) and weight >= 0):
        raise ValueError(f"joint_loss(weight={weight!r}): expected a number >= 0")
