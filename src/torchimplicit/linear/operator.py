"""Square linear operators on a batch of vectors `(B, n)`, known by what they do to a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
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
        # As a row: with a column MKL rounds those of a batch of one otherwise, and takes up to eight times as long.
        return torch.bmm(v.unsqueeze(1), self.matrix.mT).squeeze(1)

    def rmatvec(self, v: Tensor) -> Tensor:
        """`A^T v`."""
        return torch.bmm(v.unsqueeze(1), self.matrix).squeeze(1)

    def dense(self, like: Tensor) -> Tensor:
        """The matrices themselves."""
        return self.matrix


_ONCE = (
    "the function can be differentiated once only, and not in forward mode, so there is no product J v: it holds fused "
    "attention, a compiled cell, or an autograd.Function without a second derivative. Try "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around attention, the cell before torch.compile, or what takes no "
    "J v: Anderson() or Broyden() for the solve, LU() for small states"
)


class Jacobian(LinearOperator):
    """The Jacobian of a function at a point, one evaluation however many products follow.

    `rmatvec` is a vector-Jacobian product through the recorded graph. `matvec` is the derivative of that product by its
    vector (the double-vjp trick), so that functions without a forward derivative work; where the function has no second
    derivative (fused kernels, compiled cells) it is one evaluation in forward mode each.
    While grad is enabled the products are themselves differentiable.

    Args:
        function: maps `(B, n)` to `(B, n)`, samples independently.
        z: the point, `(B, n)`.
        differences: where neither a second nor a forward derivative exists, take central differences for `J v` rather
            than refuse: good to about the root of rounding, for diagnostics.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], z: Tensor, differences: bool = False):
        """Evaluates the function once, recording its graph."""
        self.function, self.differences = function, differences
        self.differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            self.z = z if self.differentiable and z.requires_grad else z.detach().requires_grad_()
            self.value = function(self.z)
        self._linear: tuple[Tensor, Tensor] | None = None
        self._dense: Tensor | None = None
        self._once = False  # whether it is known that there is no second derivative

    def rmatvec(self, v: Tensor) -> Tensor:
        """`J^T v`."""
        return self._derivative(self.value, self.z, v)

    def matvec(self, v: Tensor) -> Tensor:
        """`J v`.

        Raises:
            NotImplementedError: the function has neither a second nor a forward derivative.
        """
        self.record(v)
        return self._forward(v) if self._once else self._derivative(*self._linear, v)  # type: ignore[misc]

    def record(self, like: Tensor) -> None:
        """Records what all products `J v` share, once; `like` is any `(B, n)` tensor of the right dtype and device."""
        if self._linear is None and not self._once:
            dummy = torch.zeros_like(self.value, requires_grad=True)
            linear = self._derivative(self.value, self.z, dummy, create_graph=True)
            self._once = not _is_differentiable(linear, dummy, like)
            self._linear = linear, dummy

    def dense(self, like: Tensor) -> Tensor:
        """The Jacobians `(B, n, n)`, by `n` vector-Jacobian products, in one vectorised call where that works."""
        if self.differentiable:
            return self._rows(like)
        self._dense = self._rows(like) if self._dense is None else self._dense
        return self._dense

    def _rows(self, like: Tensor) -> Tensor:
        basis = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        try:
            return transforms.for_rows(lambda row: self.rmatvec(row.expand(like.shape)), basis, 1)
        except RuntimeError:  # sparse and compiled functions do not vectorise
            return torch.stack([self.rmatvec(row.expand(like.shape)) for row in basis], dim=1)

    def _forward(self, v: Tensor) -> Tensor:
        """`J v` where there is no second derivative."""
        z = self.z.detach()
        try:
            with torch.no_grad():
                return torch.func.jvp(self.function, (z,), (v,))[1]
        except RuntimeError as error:
            if not self.differences:
                raise NotImplementedError(_ONCE) from error
        with torch.no_grad():
            length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            size = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1.0)
            step = torch.finfo(z.dtype).eps ** (1 / 3) * size / torch.where(length > 0, length, 1.0)
            return (self.function(z + step * v) - self.function(z - step * v)) / (2 * step)

    def _derivative(self, value: Tensor, by: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
        if not value.requires_grad:  # the value does not depend on the point
            return torch.zeros_like(v)
        return transforms.vjp_of_graph(value, by, v, create_graph or self.differentiable)


def _is_differentiable(linear: Tensor, by: Tensor, v: Tensor) -> bool:
    """Whether a vector-Jacobian product has a derivative by its vector.

    Where a function is marked `once_differentiable` its part would be missing without a word: the graph ends in an
    error there, which is not reached.
    """
    if any(node.name() == "torch::autograd::Error" for node in nodes_behind([linear])):
        return False
    try:
        torch.autograd.grad(linear, by, v, retain_graph=True, allow_unused=True) if linear.requires_grad else None
    except RuntimeError:
        return False
    return True


def nodes_behind(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """Every node of the graph that tensors were computed by, once."""
    todo, seen = [tensor.grad_fn for tensor in tensors], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(following for following, _ in node.next_functions)


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
