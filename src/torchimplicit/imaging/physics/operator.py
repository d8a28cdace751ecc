r"""A linear operator of images: what it measures, its adjoint, and what follows from the two.

A subclass says `A` and `A_adjoint`, and what it has in closed form; the rest follows. Least squares and proximal maps
are fixed points of $x = b - M x$ with $M$ a multiple of $A^H A$, by conjugate gradients and an implicit gradient.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from torchimplicit.core import OnFailure
from torchimplicit.imaging.physics.check import check_damping, check_positive
from torchimplicit.imaging.physics.normal import added, gram, is_operator, largest_singular_value, normal_equations
from torchimplicit.linear import CG

SOLVER = CG(rtol=1e-5, max_steps=200)


class Operator(nn.Module):
    r"""Base of the linear operators $A$ of images, batched, real or complex.

    It is made of buffers, or of parameters where it was given `nn.Parameter`s, and differentiable in them. Operators
    compose: `P @ Q` is $x \mapsto P(Q x)$, `P + Q`, `c * P`, `P.H` the adjoint, `Stack(P, Q)` both measurements.
    Anything else with `A` and `A_adjoint`, as the physics of deepinv, is accepted by what takes an operator.

    Attributes:
        coisometry: $c$ where $A A^H = c I$; None where it is not so, or not known.
        per_sample: names of those of its own tensors that carry the batch in dimension 0.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Mean(ti.imaging.Operator):
        ...     def A(self, x):
        ...         return x.mean(-1, keepdim=True)
        ...
        ...     def A_adjoint(self, y):
        ...         return y.expand(*y.shape[:-1], 4) / 4
        >>> x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
        >>> Mean().A_dagger(Mean().A(x)), Mean().norm(x)
        (tensor([[3., 3., 3., 3.]]), tensor([0.5000]))
    """

    coisometry: float | None = None
    per_sample: tuple[str, ...] = ()

    def A(self, x: Tensor) -> Tensor:
        """What is measured of images, `(B, ...)` of `(B, ...)`."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method A(x)")

    def A_adjoint(self, y: Tensor) -> Tensor:
        r"""$A^H y$, where $\langle A x, y \rangle = \langle x, A^H y \rangle$; images `(B, ...)` of measurements."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method A_adjoint(y)")

    def gram(self, x: Tensor) -> Tensor:
        """$A^H A x$, `(B, ...)`."""
        return self.A_adjoint(self.A(x))

    def A_dagger(
        self, y: Tensor, damping: float | Tensor = 0.0, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        r"""Least squares, $\arg\min_x \frac12 |A x - y|^2 + \frac{\delta}{2} |x|^2$; without damping the smallest.

        Gradients want a damping where $A$ has a null space, for the backward solve has no solution there, and says so.

        Args:
            y: measurements, `(B, ...)`.
            damping: $\delta \ge 0$, a number; or > 0, one per sample, `(B,)`.
            solver: how far: the residual is relative to that of `x = 0`.
            on_failure: of samples that are not solved: "raise", "warn" or "ignore".

        Returns:
            Images `(B, ...)`.
        """
        shift = check_damping(type(self).__name__, damping, b := self.A_adjoint(y))
        return normal_equations(self, b, shift, 1.0, solver, on_failure).value

    def prox(
        self, z: Tensor, y: Tensor, step: float | Tensor, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        r"""$\arg\min_x \frac12 |A x - y|^2 + \frac{1}{2 \tau} |x - z|^2$, differentiable in all of them.

        Args:
            z: images, `(B, ...)`.
            y: measurements, `(B, ...)`.
            step: $\tau > 0$, a number or one per sample, `(B,)`.
            solver: see `A_dagger`; of no use where there is a closed form, as is `on_failure`.
            on_failure: see `A_dagger`.

        Returns:
            Images `(B, ...)`.
        """
        step = check_positive(type(self).__name__, "step", step, z)
        return normal_equations(self, z + step * self.A_adjoint(y), 1.0, step, solver, on_failure).value

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """The largest singular value of every sample's operator, `(B,)`; `(1,)` where all have one. It has no gradient.

        Exact where it is known, otherwise by Lanczos steps, from below, with a warning where these are too few.

        Args:
            like: images, of which shape, dtype and device count; None where the operator knows them.
            rtol: how far the square may be off, relative to it, by the bound on the Ritz value's own error.
            max_steps: products with the Gram operator, at most.
        """
        if like is None:
            raise ValueError(f"{type(self).__name__}.norm(like=None): expected images (B, ...); try norm(x), of any x")
        return largest_singular_value(self, like, rtol, max_steps)

    def norm_bound(self, like: Tensor | None = None) -> Tensor:
        """What `norm` is at most, `(B,)` or `(1,)`: without a product where that is known, else the norm itself."""
        return self.norm(like)

    def spectrum(self, like: Tensor) -> Tensor | None:
        r"""What a cyclic convolution near $A^H A$ multiplies the Fourier transform by, for preconditioning.

        Args:
            like: images `(B, ..., H, W)`, of which shape, dtype and device count.

        Returns:
            Real, >= 0, that broadcasts to the transform, as `torch.fft.fft2` has it; None where none is near.
        """
        return None

    def guess(self, y: Tensor) -> Tensor | None:
        """Images `(B, ...)` to start from; None where nothing is better than the scaled adjoint."""
        return None

    def take(self, rows: Tensor) -> Self:
        """The same operator of some of the samples: the tensors that carry the batch are narrowed to them.

        Args:
            rows: which samples, indices or bool.
        """
        other = object.__new__(type(self))
        tensors = {**self._parameters, **self._buffers}
        for name in self.per_sample:
            tensors[name] = tensors[name][rows]
        children = {key: part.take(rows) if isinstance(part, Operator) else part for key, part in self._modules.items()}
        other.__dict__ = {**self.__dict__, "_parameters": {}, "_buffers": tensors, "_modules": children}
        return other

    def keep(self, name: str, tensor: Tensor) -> None:
        """Keeps a tensor: a parameter as a parameter, another one as a buffer that no checkpoint holds."""
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor, persistent=False)

    @property
    def H(self) -> Operator:
        """The adjoint as an operator of measurements."""
        return Adjoint(self)

    def __matmul__(self, inner: Any) -> Operator:
        return Compose(self, inner) if is_operator(inner) else NotImplemented

    def __add__(self, other: Any) -> Operator:
        return Sum(self, other) if is_operator(other) else NotImplemented

    def __mul__(self, factor: Any) -> Operator:
        return Scaled(self, factor) if isinstance(factor, int | float | complex | Tensor) else NotImplemented

    __rmul__ = __mul__


class Adjoint(Operator):
    """$A^H$ as an operator, `(B, ...)` measurements to images.

    Args:
        operator: $A$.
    """

    def __init__(self, operator: Operator):
        super().__init__()
        self.operator = operator

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        return self.operator.A_adjoint(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        return self.operator.A(y)

    @property
    def H(self) -> Operator:
        """The operator itself."""
        return self.operator


class Compose(Operator):
    r"""$x \mapsto P(Q x)$: `P @ Q`.

    Args:
        outer: $P$.
        inner: $Q$.
    """

    def __init__(self, outer: Any, inner: Any):
        super().__init__()
        self.outer, self.inner = outer, inner
        known = getattr(outer, "coisometry", None), getattr(inner, "coisometry", None)
        self.coisometry = None if None in known else known[0] * known[1]  # type: ignore[operator]

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        return self.inner.A_adjoint(gram(self.outer, self.inner.A(x)))


class Several(Operator):
    """Operators of the same images; what `Sum` and `Stack` have in common."""

    def __init__(self, *operators: Any):
        super().__init__()
        if not operators or not all(map(is_operator, operators)):
            got = ", ".join(type(each).__name__ for each in operators) or "nothing"
            raise TypeError(f"{type(self).__name__}(...): got {got}, expected operators, with A and A_adjoint each")
        self.count = len(operators)
        for i, operator in enumerate(operators):
            setattr(self, f"operator{i}", operator)

    @property
    def operators(self) -> list[Any]:
        """What it was given."""
        return [getattr(self, f"operator{i}") for i in range(self.count)]

    def measure(self, x: Tensor) -> list[Tensor]:
        """What each measures, of one shape."""
        found = [operator.A(x) for operator in self.operators]
        if any(y.shape != found[0].shape for y in found):
            got = ", ".join(str(tuple(y.shape)) for y in found)
            raise ValueError(f"{type(self).__name__}: got measurements {got}, expected one shape for all")
        return found


class Sum(Several):
    r"""$x \mapsto P x + Q x$: `P + Q`.

    Args:
        *operators: of measurements of one shape.
    """

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        return added(self.measure(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        return added([operator.A_adjoint(y) for operator in self.operators])


class Scaled(Operator):
    """$c A$: `c * A`.

    Args:
        operator: $A$.
        factor: $c$, a number or a tensor of one.
    """

    factor: Any

    def __init__(self, operator: Any, factor: complex | Tensor):
        super().__init__()
        if isinstance(factor, Tensor) and factor.dim():
            raise ValueError(f"c * A: got a tensor {tuple(factor.shape)}, expected a number or a tensor of one, ()")
        self.operator = operator
        if isinstance(factor, Tensor):
            self.keep("factor", factor)
        else:
            self.factor = factor
            known = getattr(operator, "coisometry", None)
            self.coisometry = None if known is None else known * abs(factor) ** 2

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        return self.factor * self.operator.A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        factor = self.factor.conj() if isinstance(self.factor, Tensor) else self.factor.conjugate()
        return factor * self.operator.A_adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        return abs(self.factor) ** 2 * gram(self.operator, x)

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """See `Operator.norm`."""
        own = self.operator.norm(like, rtol, max_steps) if isinstance(self.operator, Operator) else None
        return super().norm(like, rtol, max_steps) if own is None else float(abs(self.factor)) * own
