"""What every linear operator of images must keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.independence import noise
from torchimplicit.imaging import Operator
from torchimplicit.imaging.physics.normal import gram, is_operator, largest_singular_value, norm_of
from torchimplicit.linear import CG

STEP = 0.7  # of the proximal operator


def check_operator(operator: Any, x: Tensor) -> None:
    r"""Holds a linear operator to the contract: anything with `A(x)` and `A_adjoint(y)`.

    $A$ is linear, over complex numbers where images are complex; $\langle A x, y \rangle = \langle x, A^H y \rangle$;
    a sample does not notice its batch mates; dtypes stay. Of what the operator has beside: `gram` is $A^H A$, `norm`
    the largest singular value and `norm_bound` no less, `coisometry` the multiple of the identity that $A A^H$ is, and
    `prox` and `A_dagger` solve their equations.

    Args:
        operator: $A$.
        x: images, `(B, ...)`, float64 or complex128, of which shape and dtype count; two samples or more.

    Raises:
        TypeError: no operator.
        ValueError: images of other dtypes.
        AssertionError: something does not hold.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.testing import check_operator
        >>> x = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
        >>> check_operator(ti.imaging.Blur(torch.rand(3, 3)), x)
    """
    if not is_operator(operator):
        raise TypeError(f"operator: got a {type(operator).__name__}, expected something with A(x) and A_adjoint(y)")
    if x.dtype not in (torch.float64, torch.complex128) or len(x) < 2:
        raise ValueError(f"x: got {tuple(x.shape)} of {x.dtype}, expected two samples or more in double precision")
    x, z = noise(x), noise(torch.stack([x, x]))[1]
    y = operator.A(x)
    image = operator.A_adjoint(noise(y))
    assert image.shape == x.shape, f"A_adjoint: got {tuple(image.shape)}, expected {tuple(x.shape)}"
    _check_samples(operator, x, y)
    size = largest_singular_value(operator, x, rtol=1e-6, max_steps=100)
    assert bool((size > 0).all()), "A is zero"
    _check_products(operator, x, z, y, float(size.amax()))
    _check_more(operator, x, z, y, size)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).flatten(1).sum(1)


def _near(got: Tensor, expected: Tensor, size: float, what: str, rtol: float = 1e-11) -> None:
    """Asserts that two tensors are the same up to rounding of numbers of a size."""
    assert got.shape == expected.shape, f"{what}: got {tuple(got.shape)}, expected {tuple(expected.shape)}"
    off = float((got - expected).abs().max())
    assert off <= rtol * size, f"{what}: off by {off:.1e} of {size:.1e}"


def _check_products(operator: Any, x: Tensor, z: Tensor, y: Tensor, size: float) -> None:
    factor = 1.5 - 0.5j if x.is_complex() else 1.5
    length = float(norm_of(x).amax())
    _near(operator.A(factor * x + z), factor * y + operator.A(z), 10 * size * length, "A is not linear")
    back = noise(y)
    image = operator.A_adjoint(back)
    one, other = _dot(y, back), _dot(x, image)
    one, other = (one, other) if x.is_complex() or not y.is_complex() else (one.real, other.real)
    scale = size * length * float(norm_of(back).amax())
    _near(one, other, scale, "<A x, y> is not <x, A_adjoint y>: A_adjoint is no adjoint")
    _near(gram(operator, x), operator.A_adjoint(y), size**2 * length, "gram is not A_adjoint(A(x))")


def _check_samples(operator: Any, x: Tensor, y: Tensor) -> None:
    mate = x.clone()
    mate[1:] = -3 * mate[1:] + 1
    assert torch.equal(operator.A(mate)[0], y[0]), "A: samples depend on their batch mates"
    back = noise(y)
    other = back.clone()
    other[1:] = -3 * other[1:] + 1
    same = torch.equal(operator.A_adjoint(other)[0], operator.A_adjoint(back)[0])
    assert same, "A_adjoint: samples depend on their batch mates"
    single = torch.complex64 if x.is_complex() else torch.float32
    got = operator.A(x.to(single)).dtype
    assert got in (torch.float32, torch.complex64), f"A: got {got} of {single} images, expected single precision"


def _check_more(operator: Any, x: Tensor, z: Tensor, y: Tensor, size: Tensor) -> None:
    """Norm, coisometry, least squares and proximal operator, of operators that have them."""
    if not isinstance(operator, Operator):
        return
    _near(operator.norm(x).expand(len(x)), size, float(size.amax()), "norm is not the largest singular value", 1e-3)
    assert bool((operator.norm_bound(x).expand(len(x)) >= (1 - 1e-3) * size).all()), "norm_bound is less than the norm"
    if operator.coisometry is not None:
        image = operator.A(operator.A_adjoint(y))
        _near(
            image, operator.coisometry * y, float(size.amax() ** 2 * norm_of(y).amax()), "A A^H is not coisometry * I"
        )
    solver = CG(rtol=1e-10, max_steps=1000)
    found = operator.prox(z, y, STEP, solver=solver, on_failure="raise")
    slope = STEP * (gram(operator, found) - operator.A_adjoint(y)) + found - z
    scale = float((1 + STEP * size**2).amax() * (norm_of(z) + STEP * size * norm_of(y)).amax())
    _near(slope, torch.zeros_like(slope), scale, "prox does not solve its equations", 1e-8)
    found = operator.A_dagger(y, solver=solver, on_failure="raise")
    slope = gram(operator, found) - operator.A_adjoint(y)
    scale = float((size * norm_of(y)).amax())
    _near(slope, torch.zeros_like(slope), scale, "A_dagger does not solve the normal equations", 1e-8)
