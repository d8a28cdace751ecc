"""The path inside a step: a polynomial of its stages, Hermite's cubic, or nothing but the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import perm
from typing import Protocol

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.span import Span


class Interpolant(Protocol):
    """The path inside a step."""

    def at(self, theta: Tensor, samples: Tensor) -> Tensor:
        """States `(M, n)` of these samples `(M,)` at these parts of the step, from 0 to 1, `(M,)`."""
        ...

    def series(self, theta: Tensor, samples: Tensor, order: int) -> Tensor:
        """States and their first derivatives by time up to this order, side by side, `(M, (1 + order) n)`.

        Smooth in `theta` at the end of the step too, where `at` gives the very state that the step has found.
        """
        ...


class EndOnly:
    """No path inside a step, but the state at its end: of methods whose steps end at every output.

    Args:
        end: that state, `(B, n)`.
    """

    def __init__(self, end: Tensor):
        self.end = end

    def at(self, theta: Tensor, samples: Tensor) -> Tensor:
        """See `Interpolant.at`: `theta` is 1."""
        return self.end[samples]

    def series(self, theta: Tensor, samples: Tensor, order: int) -> Tensor:
        """See `Interpolant.series`: events and dense output refuse such methods."""
        raise NotImplementedError("the path inside a step is not known")


class _Polynomial(ABC):
    """A polynomial of the part `theta` of a step.

    Args:
        h: size of the step in the state's dtype, `(B, 1)`.
        y: the state at its start, `(B, n)`.
        end: the state at its end, `(B, n)`.
    """

    def __init__(self, h: Tensor, y: Tensor, end: Tensor):
        self.h, self.y, self.end = h, y, end

    def at(self, theta: Tensor, samples: Tensor) -> Tensor:
        """See `Interpolant.at`."""
        end = self.end[samples]
        if not transforms.active() and bool((theta == 1).all()):
            return end
        return torch.where((theta == 1).unsqueeze(1), end, self._value(theta, samples))

    def series(self, theta: Tensor, samples: Tensor, order: int) -> Tensor:
        """See `Interpolant.series`."""
        found = [self._value(theta, samples)]
        if not order:
            return found[0]
        size = self.h[samples]
        size = torch.where(size == 0, 1.0, size)  # of samples that stand still
        terms, theta = self._terms(samples), theta.unsqueeze(1).to(size.dtype)
        for i in range(1, order + 1):
            slope = torch.zeros_like(found[0])
            for degree in range(len(terms), i - 1, -1):
                slope = slope * theta + perm(degree, i) * terms[degree - 1]
            found.append(slope / size**i)
        return torch.cat(found, dim=1)

    @abstractmethod
    def _value(self, theta: Tensor, samples: Tensor) -> Tensor:
        """States `(M, n)`, but for rounding those of `at`."""

    @abstractmethod
    def _terms(self, samples: Tensor) -> Sequence[Tensor]:
        """What the powers of `theta`, from the first on, are multiplied with in `_value`, `(M, n)` each."""


class Increments(Protocol):
    """The increments `h k_i` of a step's stages."""

    def of(self, samples: Tensor) -> Tensor:
        """Those of some samples, `(s, M, n)`."""
        ...


class Rows:
    """Increments ready made.

    Args:
        rows: one for each stage, `(B, n)`.
    """

    def __init__(self, rows: Sequence[Tensor]):
        self.rows = rows

    def of(self, samples: Tensor) -> Tensor:
        """See `Increments.of`."""
        return torch.stack(list(self.rows))[:, samples]


class PolynomialInterpolant(_Polynomial):
    r"""A method's own interpolant, $y + h \sum_i k_i \sum_d P_{id} \theta^{d+1}$.

    Args:
        matrix: `P`, `(s, d)`.
        increments: $h k_i$, looked at once somebody asks.
        h: size of the step in the state's dtype, `(B, 1)`.
        y: the state at its start, `(B, n)`.
        end: the state at its end, `(B, n)`.
    """

    def __init__(self, matrix: Tensor, increments: Increments, h: Tensor, y: Tensor, end: Tensor):
        super().__init__(h, y, end)
        self.matrix, self.increments = matrix, increments

    def _value(self, theta: Tensor, samples: Tensor) -> Tensor:
        y, theta = self.y[samples], theta.unsqueeze(1).to(self.y.dtype)
        # By Horner: products, for powers with a tensor of exponents have no second derivative at zero; and of every
        # sample alone, for a product of matrices may round one sample's by how many there are.
        *lower, highest = self.matrix.unbind(1)
        powers = theta * highest
        for row in reversed(lower):
            powers = (powers + row) * theta
        increments = self.increments.of(samples).permute(1, 2, 0)
        return torch.baddbmm(y.unsqueeze(2), increments, powers.unsqueeze(2)).squeeze(2)

    def _terms(self, samples: Tensor) -> Sequence[Tensor]:
        increments = self.increments.of(samples).transpose(0, 1)  # of every sample alone, as above
        return torch.bmm(self.matrix.T.expand(len(samples), -1, -1), increments).unbind(1)


class HermiteInterpolant(_Polynomial):
    """The cubic through states and slopes at both ends, whose slopes are found once somebody looks.

    Args:
        field: the vector field, for a slope that is not known.
        span: of the step.
        h: its size in the state's dtype, `(B, 1)`.
        y: the state at its start, `(B, n)`.
        end: the state at its end, `(B, n)`.
        first: the slope at its start times `h`, of as many numbers as `y`; None where that is not known.
        slope: the slope at its end; None where that is not known.
    """

    def __init__(
        self,
        field: Field,
        span: Span,
        h: Tensor,
        y: Tensor,
        end: Tensor,
        first: Tensor | None = None,
        slope: Tensor | None = None,
    ):
        super().__init__(h, y, end)
        self.field, self.span, self.first, self.slope = field, span, first, slope

    def _value(self, theta: Tensor, samples: Tensor) -> Tensor:
        y, end, theta = self.y[samples], self.end[samples], theta.unsqueeze(1).to(self.y.dtype)
        (first, last), rest = self._increments(samples), 1 - theta
        return rest * y + theta * end + theta * rest * (rest * (first - (end - y)) - theta * (last - (end - y)))

    def _terms(self, samples: Tensor) -> Sequence[Tensor]:
        first, last = self._increments(samples)
        chord = self.end[samples] - self.y[samples]
        return first, 3 * chord - 2 * first - last, first + last - 2 * chord

    def _increments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes at both ends times `h`, `(M, n)` each."""
        if self.first is None:
            self.first = self.field(self.span.start, self.y) * self.h
        if self.slope is None:
            self.slope = self.field(self.span.stop, self.end)
        return self.first.reshape(self.y.shape)[samples], (self.slope * self.h)[samples]
