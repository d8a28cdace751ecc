"""Square linear operators on a batch of vectors `(B, n)`, known by what they do to a vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.core.independence import noise


class LinearOperator:
    """A linear map of every sample's vector, `(B, n) -> (B, n)`, and its transpose.

    Subclasses give `matvec` and `rmatvec`; both must treat samples independently.
    """

    def matvec(self, v: Tensor) -> Tensor:
        """`A v` for every sample, `(B, n)`."""
        raise NotImplementedError

    def rmatvec(self, v: Tensor) -> Tensor:
        """`A^T v` for every sample, `(B, n)`."""
        raise NotImplementedError

    def dense(self, like: Tensor) -> Tensor:
        """The matrices `(B, n, n)`, from `n` products; `like` is any `(B, n)` tensor of the right dtype and device."""
        basis = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        return torch.stack([self.matvec(row.expand_as(like)) for row in basis], dim=2)

    def check_adjoint(self, like: Tensor) -> Tensor:
        """Relative mismatch of `<A u, v>` and `<u, A^T v>` for random vectors, `(B,)`; rounding error when right.

        Args:
            like: any `(B, n)` tensor of the right dtype and device.
        """
        u, v = noise(torch.stack((like, like)))
        forward, backward = self.matvec(u), self.rmatvec(v)
        gap = (forward * v).sum(1) - (u * backward).sum(1)
        return gap.abs() / (forward.norm(dim=1) * v.norm(dim=1) + u.norm(dim=1) * backward.norm(dim=1))


class Matrix(LinearOperator):
    """A batch of matrices `(B, n, n)` as an operator."""

    def __init__(self, matrix: Tensor):
        """Keeps the matrices.

        Raises:
            ValueError: not `(B, n, n)`.
        """
        if matrix.dim() != 3 or matrix.shape[1] != matrix.shape[2]:
            raise ValueError(f"Matrix: got shape {tuple(matrix.shape)}, expected (B, n, n)")
        self.matrix = matrix

    def matvec(self, v: Tensor) -> Tensor:
        """`A v`."""
        return torch.bmm(self.matrix, v.unsqueeze(2)).squeeze(2)

    def rmatvec(self, v: Tensor) -> Tensor:
        """`A^T v`."""
        return torch.bmm(v.unsqueeze(1), self.matrix).squeeze(1)

    def dense(self, like: Tensor) -> Tensor:
        """The matrices themselves."""
        return self.matrix


class Jacobian(LinearOperator):
    """The Jacobian of a function at a point, one evaluation however many products follow.

    `rmatvec` is a vector-Jacobian product through the recorded graph. `matvec` is the derivative of that product by its
    vector (the double-vjp trick), so forward mode is not needed and functions without a forward derivative work.
    While grad is enabled the products are themselves differentiable.

    Args:
        function: maps `(B, n)` to `(B, n)`, samples independently.
        z: the point, `(B, n)`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], z: Tensor):
        """Evaluates the function once, recording its graph."""
        self.differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            self.z = z if self.differentiable and z.requires_grad else z.detach().requires_grad_()
            self.value = function(self.z)
        self._linear: tuple[Tensor, Tensor] | None = None

    def rmatvec(self, v: Tensor) -> Tensor:
        """`J^T v`."""
        return self._derivative(self.value, self.z, v)

    def matvec(self, v: Tensor) -> Tensor:
        """`J v`."""
        if self._linear is None:
            dummy = torch.zeros_like(self.value, requires_grad=True)
            self._linear = self._derivative(self.value, self.z, dummy, create_graph=True), dummy
        return self._derivative(*self._linear, v)

    def dense(self, like: Tensor) -> Tensor:
        """The Jacobians `(B, n, n)`, by `n` vector-Jacobian products in one vectorised call."""
        basis = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        return torch.vmap(lambda row: self.rmatvec(row.expand(like.shape)), out_dims=1)(basis)

    def _derivative(self, value: Tensor, by: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
        if not value.requires_grad:  # the value does not depend on the point
            return torch.zeros_like(v)
        create_graph = create_graph or self.differentiable
        return torch.autograd.grad(value, by, v, retain_graph=True, create_graph=create_graph, materialize_grads=True)[
            0
        ]


class IdentityMinus(LinearOperator):
    """`I - A`; of the Jacobian of a fixed-point residual it is the Jacobian of the map itself."""

    def __init__(self, operator: LinearOperator):
        """Wraps an operator."""
        self.operator = operator

    def matvec(self, v: Tensor) -> Tensor:
        """`v - A v`."""
        return v - self.operator.matvec(v)

    def rmatvec(self, v: Tensor) -> Tensor:
        """`v - A^T v`."""
        return v - self.operator.rmatvec(v)


class LowRank(LinearOperator):
    r"""`I + U^T V` per sample: the identity and a few outer products, what a quasi-Newton method knows of an inverse.

    Args:
        u: left factors, `(B, m, n)`.
        v: right factors, `(B, m, n)`.
    """

    def __init__(self, u: Tensor, v: Tensor):
        """Keeps the factors.

        Raises:
            ValueError: not two tensors `(B, m, n)` of one shape.
        """
        if u.dim() != 3 or u.shape != v.shape:
            raise ValueError(f"LowRank: got shapes {tuple(u.shape)} and {tuple(v.shape)}, expected (B, m, n) twice")
        self.u, self.v = u, v

    def matvec(self, v: Tensor) -> Tensor:
        """`x + U^T (V x)`."""
        return self._apply(self.u, self.v, v)

    def rmatvec(self, v: Tensor) -> Tensor:
        """`x + V^T (U x)`."""
        return self._apply(self.v, self.u, v)

    def repeated(self, batch: int) -> LowRank:
        """The same for `batch` samples, a multiple of its own, copies one after another."""
        times = batch // len(self.u)
        return self if times == 1 else LowRank(self.u.repeat(times, 1, 1), self.v.repeat(times, 1, 1))

    @staticmethod
    def _apply(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        row = x.unsqueeze(1)
        return torch.baddbmm(row, torch.bmm(row, right.mT), left).squeeze(1)
