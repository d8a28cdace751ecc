r"""Magnetic resonance: the k-space of coils, undersampled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.core import OnFailure
from torchimplicit.imaging.physics.check import (
    alike,
    can_look,
    check_batch,
    check_damping,
    check_finite,
    check_images,
    check_mask,
    check_positive,
    is_real_or_complex,
    kind,
)
from torchimplicit.imaging.physics.fourier import PLANE, fftc, ifftc, weighted
from torchimplicit.imaging.physics.lines import Lines, solved_by_lines
from torchimplicit.imaging.physics.operator import SOLVER, Operator
from torchimplicit.linear import CG


class Fourier(Operator):
    r"""The k-space of one coil, $y = M F x$: images `(B, ..., H, W)` to measurements of that shape.

    What is not sampled is zero in `y`. `gram` transforms along those axes alone on which the mask varies: a Cartesian
    mask of lines costs a little over half. `prox` has a closed form.

    Args:
        mask: what is sampled, bool, that broadcasts to the images: `(H, W)`, `(1, W)` for lines, `(B, H, W)` for masks
            of the samples' own, which their channels share. None samples all.
        dims: the axes that are transformed. One of them alone is hybrid space: k-space along the undersampled axis,
            image space along the other, whose pixels then are problems of their own, to be cut to slabs.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> op = ti.imaging.Fourier(ti.imaging.cartesian(8, 2, center_fraction=0.25))
        >>> x = torch.randn(1, 8, 8, dtype=torch.complex64)
        >>> op.A(x).shape, op.norm()
        (torch.Size([1, 8, 8]), tensor([1.]))
    """

    mask: Tensor

    def __init__(self, mask: Tensor | None = None, dims: Sequence[int] = PLANE):
        """Keeps the mask.

        Raises:
            TypeError: the mask is not bool.
            ValueError: the mask shows nothing, or the axes are none.
        """
        super().__init__()
        self.dims = _axes(type(self).__name__, dims)
        mask = torch.ones(1, 1, dtype=torch.bool, device="cpu") if mask is None else mask
        check_mask(type(self).__name__, mask)
        mask = mask.unsqueeze(0) if mask.dim() == 1 else mask
        if mask.dim() > 2 and len(mask) > 1:
            self.per_sample = ("mask",)
        self.sizes = [name if n == 1 else n for name, n in zip("HW", mask.shape[-2:], strict=True)]
        for axis in self.dims:  # what is the same all along an axis is kept once
            if can_look(mask) and mask.shape[axis] > 1 and bool((mask == mask.narrow(axis, 0, 1)).all()):
                mask = mask.narrow(axis, 0, 1)
        self.register_buffer("mask", mask.contiguous(), persistent=False)

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which the mask varies: in `gram` the transforms along others cancel."""
        return tuple(axis for axis in self.dims if self.mask.shape[axis] > 1)

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        self._check(x)
        return self._beside(x) * fftc(x, self.dims)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        self._check(y, "measurements")
        return ifftc(self._beside(y) * y, self.dims)

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        self._check(x)
        return weighted(x, self._beside(x), self.varying)

    def A_dagger(
        self, y: Tensor, damping: float | Tensor = 0.0, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        """See `Operator.A_dagger`; a closed form."""
        x = self.A_adjoint(y)
        return x / (1 + check_damping("Fourier", damping, x))

    def prox(
        self, z: Tensor, y: Tensor, step: float | Tensor, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        """See `Operator.prox`; a closed form."""
        step = check_positive("Fourier", "step", step, z)
        right = z + step * self.A_adjoint(y)
        return right - step / (1 + step) * self.gram(right)

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """See `Operator.norm`; 1."""
        return torch.ones(1, device=self.mask.device) if like is None else torch.ones_like(like.real.flatten(1)[:, 0])

    def _check(self, x: Tensor, name: str = "images") -> None:
        check_images(type(self).__name__, x, "...", *self.sizes, name=name)
        if self.mask.dim() > 2:
            check_batch("Fourier", x, len(self.mask), "masks")
            if self.mask.dim() > x.dim():
                got = f"{name} {tuple(x.shape)} and masks {tuple(self.mask.shape)}"
                raise ValueError(f"Fourier: got {got}, expected masks (B, H, W) at most; try mask[:, 0]")

    def _beside(self, x: Tensor) -> Tensor:
        """The mask, whose batch stands in front of whatever other dimensions images have."""
        mask = self.mask
        return mask if mask.dim() < 3 else mask.reshape(len(mask), *(1,) * (x.dim() - mask.dim()), *mask.shape[1:])


class Sense(Operator):
    r"""The k-space of several coils, $y_c = M F (S_c x)$: images `(B, H, W)` to measurements `(B, C, H, W)`.

    Differentiable in the maps. What is not sampled is zero in `y`. `gram` transforms along those axes alone on which
    the mask varies. Where all maps are zero, outside of the head, nothing is measured: $A$ has a null space there.

    Source: K. Pruessmann et al., Magn. Reson. Med. 42 (1999) 952.

    Args:
        maps: sensitivities, complex, `(C, H, W)`, or `(B, C, H, W)` for maps of the samples' own.
        mask: see `Fourier`; it broadcasts to `(B, H, W)`.
        dims: see `Fourier`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> maps = torch.randn(4, 8, 8, dtype=torch.complex64)
        >>> op = ti.imaging.Sense(maps, ti.imaging.cartesian(8, 2, center_fraction=0.25))
        >>> op.A(torch.randn(1, 8, 8, dtype=torch.complex64)).shape
        torch.Size([1, 4, 8, 8])
    """

    maps: Tensor

    def __init__(self, maps: Tensor, mask: Tensor | None = None, dims: Sequence[int] = PLANE):
        """Keeps maps and mask.

        Raises:
            TypeError: maps that are not floating or complex, a mask that is not bool.
            ValueError: of other shapes, maps of NaN or of zeros alone, a mask that shows nothing.
        """
        super().__init__()
        if not is_real_or_complex(maps):
            raise TypeError(f"Sense(maps=...): got {kind(maps)}, expected a complex one; try maps.to(torch.complex64)")
        if maps.dim() not in (3, 4):
            raise ValueError(
                f"Sense(maps=...): got shape {tuple(maps.shape)}, expected (C, H, W) or (B, C, H, W); try maps[None] "
                "for one coil"
            )
        check_finite("Sense", "maps", maps)
        self.keep("maps", maps)
        if mask is not None:
            check_mask("Sense", mask)
            _check_sizes(mask, maps)
        self.coil = Fourier(mask, dims)
        if maps.dim() == 4 and len(maps) > 1:
            self.per_sample = ("maps",)

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        return self._mask * fftc(self._coils(x), self.coil.dims)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        check_images("Sense", y, *self.maps.shape[-3:], name="measurements")
        self._check_batch(y)
        return self._together(ifftc(self._mask * y, self.coil.dims))

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        return self._together(weighted(self._coils(x), self._mask, self.coil.varying))

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """See `Operator.norm`."""
        if like is None:
            batch = max(len(self.maps) if self.maps.dim() == 4 else 1, len(self._mask) if self._mask.dim() == 4 else 1)
            like = self.maps.new_empty(batch, *self.maps.shape[-2:])
            like = like if like.is_complex() else like.to(like.dtype.to_complex())
        return super().norm(like, rtol, max_steps)

    def lines(self, shift: Tensor, like: Tensor) -> Lines | None:
        r"""$(A^H A + c I)^{-1}$ where whole lines are left out, and a matrix for each is not too large; else None.

        Args:
            shift: $c > 0$, a number.
            like: images, of which the dtype and the device count.
        """
        varying, mask = self.coil.varying, self.coil.mask
        if len(varying) != 1 or mask.shape[-3 - varying[0]] > 1:  # in hybrid space a mask may vary along both
            return None
        return solved_by_lines(alike(self.maps, like), mask, varying[0], shift)

    def norm_bound(self, like: Tensor | None = None) -> Tensor:
        r"""See `Operator.norm_bound`; the largest $(\sum_c |S_c|^2)^{1/2}$: transform and mask add nothing."""
        return self.maps.detach().abs().square().sum(-3).flatten(-2).amax(-1).sqrt().reshape(-1)

    @property
    def _mask(self) -> Tensor:
        mask = self.coil.mask
        return mask.unsqueeze(-3) if mask.dim() > 2 else mask

    def _coils(self, x: Tensor) -> Tensor:
        check_images("Sense", x, *self.maps.shape[-2:])
        self._check_batch(x)
        return alike(self.maps, x) * x.unsqueeze(-3)

    def _check_batch(self, x: Tensor) -> None:
        for tensor, base, of in ((self.maps, 3, "maps"), (self.coil.mask, 2, "masks")):
            if tensor.dim() > base:
                check_batch("Sense", x, len(tensor), of)

    def _together(self, coils: Tensor) -> Tensor:
        return (alike(self.maps, coils).conj() * coils).sum(-3)


def _axes(owner: str, dims: Sequence[int]) -> tuple[int, ...]:
    axes = tuple(dims)
    if not axes or not {*axes} <= {-2, -1} or len({*axes}) < len(axes):
        raise ValueError(f"{owner}(dims={dims!r}): expected (-2, -1), or one of the two alone, (-2,) or (-1,)")
    return axes


def _check_sizes(mask: Tensor, maps: Tensor) -> None:
    """Refuses masks that do not fit the maps."""
    shape = mask.shape[-2:]
    batch = len(mask) if mask.dim() == 3 else 1
    own = len(maps) if maps.dim() == 4 else 1
    fits = all(a in (1, b) for a, b in zip(shape[::-1], maps.shape[:-3:-1], strict=False))
    if not fits or mask.dim() > 3 or (1 not in (batch, own) and batch != own):
        raise ValueError(
            f"Sense(mask=...): got shape {tuple(mask.shape)} with maps {tuple(maps.shape)}, expected one that "
            f"broadcasts to (B, {', '.join(map(str, maps.shape[-2:]))})"
        )
