"""Measuring what a layer's certificate says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core import Report, Status
from torchimplicit.core.problem import FixedPoint
from torchimplicit.core.tree import Layout, norm
from torchimplicit.diagnose.certificate import Certificate
from torchimplicit.diagnose.conditioning import Difference, conditioning, spectral_norm
from torchimplicit.diagnose.probe import (
    differentiated,
    linearised,
    relative_error,
    require_layer,
    requiring_grad,
    untouched,
)
from torchimplicit.equations import fixed_point
from torchimplicit.linear import GMRES, LU, Jacobian
from torchimplicit.nn import DEQ
from torchimplicit.solve import Newton, Solver

REFINE = 5  # Newton steps from the layer's answer to the reference
POWER = 10  # power iterations for the norm of the residual's derivative by all tensors together
REACH, APART = 10.0, 0.05  # two ends are one point within REACH error bounds, but never beyond APART of the spread


def certify(
    layer: DEQ,
    x: Any,
    *args: Any,
    cotangent: Any = None,
    starts: int = 4,
    tolerance: float = 1e-2,
    dense: int = 128,
    seed: int = 0,
) -> Certificate:
    r"""Measures in one call how far a layer's value and gradient can be trusted at an input.

    With the residual $r(z, a) = z - \mathrm{cell}(z, a)$, $B = \partial r / \partial z = I - J$, a cotangent $g$, and
    $u$ the solution of $B^\top u = g$ as the layer's own adjoint finds it, the layer's gradient is
    $G = -(\partial r / \partial a)^\top u$. Where the layer stopped, at $z$ and not at $z^*$, both solves leave an
    error. Subtracting the exact equation $B_*^\top u_* = g$, where $B_*$ belongs to $z^*$, gives

    $$ B_*^\top (u_* - u) = \underbrace{(g - B^\top u)}_{\text{backward residual}}
       + \underbrace{(B - B_*)^\top u}_{\text{error of the point}} \qquad\Rightarrow\qquad
       |u_* - u| \le \frac{\beta}{1 - h} \bigl( |g - B^\top u| + |(B - B_*)^\top u| \bigr), $$

    with $\beta = \|B^{-1}\| = 1 / \sigma_{\min}(B)$ and $h = \beta \|B_* - B\| < 1$ (Banach's lemma), since
    $\|B_*^{-1}\| \le \beta / (1 - h)$; relative to $|u|$ a backward residual is thus amplified by about the condition of
    $B$ at most. For the gradient by all tensors together, with $\partial_a r$ at $z^*$,

    $$ |G_* - G| \le \|\partial_a r\| \, |u_* - u| + |G + (\partial_a r)^\top u|. $$

    Certified bounds are these, of relative errors. What stands for $z^*$ is the point that a few Newton steps reach from
    $z$, so the change of $B$ is measured there, not bounded: to that extent a bound is an estimate. So is $\beta$
    beyond `dense` unknowns, and $\|\partial_a r\|$, by power iteration. The *estimated* errors are
    plain differences: of $u$ and $G$ to those found again at that point, by an accurate linear solve. With an `adjoint`
    other than `Implicit`, $u$ is what the layer's backward pass gives in its place: the gradient by an offset added to the
    cell's output. A bias by design shows in the backward residual and in the errors.

    A unique fixed point cannot be certified from one point: that takes a contraction everywhere. What is claimed is local:
    where $\sigma_{\min}(B)$ is above rounding and $h < 1/2$, no other fixed point is close by. Solves from random starts,
    of the spread `1 + rms(z)`, are evidence for more, and a proof of the contrary when they end elsewhere.

    Costs the layer's solve, its backward pass and `starts` solves more, a few Newton steps, and the singular values: up to
    `dense` unknowns the Jacobian's matrix, beyond a few hundred products and some 25 linear solves by GMRES. Not for
    every training step. Nothing is raised for samples that fail; the certificate says so.

    Args:
        layer: the layer; stays as it is.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.
        cotangent: the incoming gradient $g$, like the layer's output; None draws normal numbers.
        starts: random starts to solve from, >= 0.
        tolerance: relative error of the gradient up to which a sample is certified.
        dense: most unknowns per sample for which the matrices are built.
        seed: of the cotangent, the starts and random numbers in the cell.

    Returns:
        A `Certificate`: print it, its `table()`, take its `as_dict()`, or draw its `plot()`.

    Raises:
        TypeError: `layer` is no `DEQ`, or the state or the cotangent is no floating tensor.
        ValueError: an impossible option, an empty batch, a cotangent of another shape than the output's, or a cell that
            returns another shape than the state's.

    Example:
        >>> import torch
        >>> from torchimplicit import diagnose, nn
        >>> layer = nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x)
        >>> certificate = diagnose.certify(layer, torch.linspace(-1, 1, 12).reshape(4, 3))
        >>> certificate.ok, certificate.gradient_error <= certificate.gradient_bound
        (True, True)
    """
    layer = require_layer(layer, "certify")
    for name, value, least in (("starts", starts, 0), ("dense", dense, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"certify({name}={value!r}): expected an integer >= {least}")
    if not tolerance > 0:
        raise ValueError(f"certify(tolerance={tolerance!r}): expected a number > 0")
    with untouched(layer, (x, *args), seed):
        return _Bench(layer, x, args, cotangent, seed, dense).certificate(starts, tolerance)


class _Answer(NamedTuple):
    """What one forward and backward solve gave."""

    value: Any
    z: Tensor  # the same, (B, n)
    u: Tensor  # (B, n)
    gradient: list[Tensor]
    report: Report

    @property
    def sick(self) -> bool:
        return bool((self.report.status == Status.NON_FINITE).any())


class _Bench:
    """The layer, leaves to differentiate by, and a cotangent."""

    def __init__(self, layer: DEQ, x: Any, args: tuple, cotangent: Any, seed: int, dense: int):
        self.layer, self.seed, self.dense = layer, seed, dense
        self.x, self.args = pytree.tree_map(requiring_grad, (x, args))
        self.tensors = list(differentiated(layer, self.x, self.args).values())
        with self.repeatable(), torch.no_grad():
            self.z0 = pytree.tree_map(torch.detach, layer._start(self.x, self.args))
        self.layout = Layout(self.z0)
        self.generator = torch.Generator().manual_seed(seed)
        if cotangent is None:
            self.g = self.noise()
        else:
            self.layout.check(cotangent, subject="certify(cotangent=...) has")
            self.g = self.layout.flatten(cotangent).detach()

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """The same random numbers and the same buffers for every solve."""
        with untouched(self.layer, (self.x, *self.args), self.seed):
            yield

    def noise(self) -> Tensor:
        """Standard normal numbers `(B, n)`, the same on every device."""
        layout = self.layout
        noise = torch.randn(layout.batch, layout.width, generator=self.generator, dtype=torch.float64)
        return noise.to(layout.device, layout.dtype)

    def certificate(self, starts: int, tolerance: float) -> Certificate:
        """Everything that is measured, put together."""
        layer, eps = self.layer, self.layout.eps
        own = self.solve(self.z0, layer.solver, layer.adjoint)
        exact = LU() if self.layout.width <= self.dense else GMRES(rtol=max(1e-10, 50 * eps), restart=30, max_steps=300)
        newton = Newton(linear_solver=exact, rtol=10 * eps, atol=0, max_steps=REFINE)
        reference = self.solve(own.value, newton, Implicit(exact))
        known = _trusted(own, reference, eps)

        here, there = self.jacobian(own.value), self.jacobian(reference.value)
        measured = conditioning(here, own.z, self.dense)
        change = spectral_norm(Difference(there, here), own.z, self.dense)
        product = here.rmatvec(own.u)
        left, turned = norm(self.g - product), norm(there.rmatvec(own.u) - product)
        rounding = eps * (norm(self.g) + measured.largest * norm(own.u))
        h = change / measured.smallest
        inverse = torch.where(h < 1, 1 / (measured.smallest * (1 - h)), torch.inf)
        bound = torch.where(known, inverse * (left + turned + rounding), torch.inf)
        gradient_error, gradient_bound = self.gradient_errors(own, reference, bound, known)

        sound = measured.smallest > self.layout.width * eps * measured.largest
        regular = (own.report.status == Status.CONVERGED) & sound & (h < 0.5)
        arrived, elsewhere = self.compare_starts(starts, own, norm(here.value), inverse)
        return Certificate(
            report=own.report,
            residual=_relative(norm(here.value), norm(own.z)),
            backward=_relative(left, norm(self.g)),
            point_error=_unless(known, _relative(norm(reference.z - own.z), norm(reference.z))),
            adjoint_error=_unless(known, _relative(norm(reference.u - own.u), norm(reference.u))),
            adjoint_bound=_unless(known, _relative(bound, norm(reference.u))),
            shares=torch.stack([inverse * left, inverse * turned], dim=1),
            gradient_error=gradient_error,
            gradient_bound=gradient_bound,
            conditioning=measured,
            regular=regular,
            starts=starts,
            arrived=arrived,
            elsewhere=elsewhere,
            tolerance=tolerance,
            adjoint=layer.adjoint,
            solver=layer.solver,
        )

    def solve(self, start: Any, solver: Solver, adjoint: Adjoint) -> _Answer:
        """A forward solve and its backward pass.

        An offset of zero, added to what the cell returns, enters the residual with the derivative `-I`: its gradient is
        the `u` of whatever adjoint it is.
        """
        shift = pytree.tree_map(lambda leaf: torch.zeros_like(leaf, requires_grad=True), self.z0)
        shifts, spec = pytree.tree_flatten(shift)
        cell = partial(_shifted, self.layer.cell, **_owners(self.layer.cell))
        with self.repeatable(), torch.enable_grad():
            solution = fixed_point(
                cell, start, shift, self.x, *self.args, solver=solver, adjoint=adjoint, on_failure="ignore"
            )
            gradient = torch.autograd.grad(
                pytree.tree_leaves(solution.value),
                [*shifts, *self.tensors],
                pytree.tree_leaves(self.layout.unflatten(self.g)),
                materialize_grads=True,
            )
        value = pytree.tree_map(torch.detach, solution.value)
        u = self.layout.flatten(pytree.tree_unflatten(gradient[: len(shifts)], spec))
        return _Answer(value, self.layout.flatten(value), u, list(gradient[len(shifts) :]) or [u], solution.report)

    def jacobian(self, value: Any) -> Jacobian:
        """Of the residual at a state; its value is the residual there."""
        with self.repeatable(), linearised(self.layer, value, self.x, self.args) as (jacobian, _):
            return jacobian

    def gradient_errors(self, own: _Answer, reference: _Answer, bound: Tensor, known: Tensor) -> tuple[float, float]:
        """The relative error of the gradient by all tensors, as estimated and as bounded; infinite when unknown."""
        if own.sick or not bool(known.all()):
            return torch.inf, torch.inf
        estimate = relative_error(own.gradient, reference.gradient)
        if not self.tensors:
            return estimate, _quotient(float(norm(bound[None])), float(norm(reference.u.reshape(1, -1))))
        pulled, size = self.sensitivity(reference.value, own.u)
        rest = _size([a - b for a, b in zip(own.gradient, pulled, strict=True)])
        return estimate, _quotient(size * float(norm(bound[None])) + rest, _size(reference.gradient))

    def sensitivity(self, value: Any, u: Tensor) -> tuple[list[Tensor], float]:
        r"""$-(\partial_a r)^\top u$, and $\|\partial_a r\|$ by power iteration, for the whole batch."""
        with self.repeatable(), torch.enable_grad():
            problem = FixedPoint(self.layer.cell, value, (self.x, *self.args))
            with problem.bind(problem.explicit.take_tensors()) as residual:
                r = residual(self.layout.flatten(value))
            if not r.requires_grad:
                return [torch.zeros_like(tensor) for tensor in self.tensors], 0.0
            dummy = torch.zeros_like(r, requires_grad=True)
            linear = torch.autograd.grad(r, self.tensors, dummy, create_graph=True, materialize_grads=True)
            v, square = self.noise(), torch.zeros(())
            for _ in range(POWER):
                v = v / torch.linalg.vector_norm(v)
                pulled = torch.autograd.grad(r, self.tensors, v, retain_graph=True, materialize_grads=True)
                moving = [(a, b) for a, b in zip(linear, pulled, strict=True) if a.requires_grad]
                (v,) = torch.autograd.grad(*zip(*moving, strict=True)[:1], dummy, retain_graph=True)
                square = torch.linalg.vector_norm(v)
            pulled = torch.autograd.grad(r, self.tensors, -u, materialize_grads=True)
        return list(pulled), float(square) ** 0.5

    @torch.no_grad()
    def compare_starts(self, starts: int, own: _Answer, residual: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """From how many random starts each sample converged, and from how many to another point, `(B,)` each."""
        spread = 1 + norm(own.z) / self.layout.width**0.5
        arrived = torch.zeros_like(own.report.status)
        elsewhere = arrived.clone()
        for _ in range(starts):
            start = self.layout.unflatten(spread.unsqueeze(1) * self.noise())
            with self.repeatable():
                solution = fixed_point(
                    self.layer.cell, start, self.x, *self.args, solver=self.layer.solver, on_failure="ignore"
                )
            errors = inverse * (residual + solution.residual * self.layout.width**0.5)
            near = torch.minimum(REACH * errors, APART * spread * self.layout.width**0.5)
            near = near.nan_to_num(0) + 100 * self.layout.eps * norm(own.z)
            converged = solution.status == Status.CONVERGED
            arrived += converged
            far = norm(self.layout.flatten(solution.value) - own.z) > near
            elsewhere += converged & far & (own.report.status == Status.CONVERGED)
        return arrived, elsewhere


def _shifted(cell: Any, z: Any, shift: Any, *args: Any, **_owners: Any) -> Any:
    """The cell's value and an offset."""
    return pytree.tree_map(torch.add, cell(z, *args), shift)


def _owners(cell: Any) -> dict[str, Any]:
    """The modules behind a bound method or a partial, so that their tensors stay explicit; any keywords do."""
    found: list[Any] = []
    while isinstance(cell, partial):
        found += [*cell.args, *cell.keywords.values(), cell.func]
        cell = cell.func
    found.append(getattr(cell, "__self__", None))
    return {f"owner{i}": owner for i, owner in enumerate(found) if isinstance(owner, torch.nn.Module)}


def _trusted(own: _Answer, reference: _Answer, eps: float) -> Tensor:
    """For which samples the reference is one: far closer to a fixed point, or at rounding, and solved backward."""
    report, backward = reference.report, reference.report.backward
    assert backward is not None
    rounding = 1e3 * eps * norm(reference.z) / reference.z.shape[1] ** 0.5
    close = (report.residual <= 0.1 * own.report.residual) | (report.residual <= rounding)
    return close & (report.status != Status.NON_FINITE) & (backward.status == Status.CONVERGED)


def _relative(gap: Tensor, size: Tensor) -> Tensor:
    """A quotient `(B,)`, in double precision; zero where both are zero."""
    return torch.where(gap == 0, 0, gap.double() / size.double())


def _unless(known: Tensor, values: Tensor) -> Tensor:
    """Infinite where it is not known."""
    return torch.where(known, values, torch.inf)


def _quotient(gap: float, size: float) -> float:
    return gap / size if size > 0 else (0.0 if gap == 0 else torch.inf)


def _size(tensors: list[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return sum(float(tensor.abs().square().sum()) for tensor in tensors) ** 0.5
