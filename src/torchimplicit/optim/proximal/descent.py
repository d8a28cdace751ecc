r"""Descent under constraints and with kinks, as maps whose fixed points are the minima.

$z = \mathrm{prox}_{\alpha g}(z - \alpha \nabla f(z))$ holds exactly where $0 \in \nabla f(z) + \partial g(z)$, for
every step $\alpha > 0$. So proximal gradient descent is a fixed-point iteration, and this is its map: `Picard` on it is
the classical method, `FISTA` gives it momentum, `Anderson` accelerates it, and every adjoint differentiates it. It is
`ForwardBackward` splitting with an energy's gradient in the place of a cell's affine map, and steps of each sample.

Source: N. Parikh and S. Boyd, Proximal Algorithms (2014), sections 4.2 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.explicit import audited, check_captures
from torchimplicit.core.options import is_count, is_number, require_count
from torchimplicit.core.public import public
from torchimplicit.core.stand_in import alone
from torchimplicit.core.stationary import Stationary, no_slope, slope
from torchimplicit.linear import Jacobian, eigenvalue_range, probe
from torchimplicit.solve import PreparedMap

PRODUCTS = 20  # with the Hessian, for its largest eigenvalue


class ProximalGradient(PreparedMap):
    r"""Proximal gradient descent as a map: $z \mapsto \mathrm{prox}_{\alpha g}(z - \alpha \nabla f(z))$.

    Its fixed points are the minima of $f + g$, for convex $f$ and $g$. Where the gradient of $f$ is Lipschitz by $L$,
    the iteration descends for $\alpha < 2 / L$, and contracts by $1 - m / L$ at $\alpha = 1 / L$ where $f$ is also
    strongly convex by $m$. A solve's residual is the length of a step, which does not depend on how the energy is
    scaled; the minimum may be $L / m$ times as far.

    `prox` gets no gradient of what it captures: what $g$ depends on is passed as an argument, see `prox_args`. The
    iterates of `Anderson` and `FISTA` are combinations: where the solution must lie in a set to the last bit, or have
    exact zeros, take one more step, `split(solution.value, *args)`. Not for a smooth energy without constraints
    (`argmin` needs fewer steps), nor for quadratic programs (`qp` is exact). The state is one real tensor.

    Args:
        energy: $f$, `energy(z, *args)`, one number per sample, `(B,)`; with second derivatives. A module's parameters
            are differentiated.
        prox: $\mathrm{prox}_{\alpha g}$, `prox(v, step)`, like those of `torchimplicit.optim.prox`; the step is a
            number, or `(B,)`.
        step: $\alpha$, a number > 0; None takes $1 / L$ of each sample, $L$ being the Hessian's largest eigenvalue at
            the start of each solve, by 20 products. Where the energy bends more elsewhere, that is too long: the
            failing solve says so. None does not work within `torch.func` transforms.
        prox_args: positions of those arguments that go to `prox`, after the step, and not to `energy`.

    Raises:
        TypeError: `energy` or `prox` is not callable.
        ValueError: the step is not a number > 0, or `prox_args` no positions.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.optim import ProximalGradient, prox
        >>> y, weight = (
        ...     torch.tensor([[3.0, -0.2, 1.0]]),
        ...     torch.tensor(0.5, requires_grad=True),
        ... )
        >>> def energy(z, y):
        ...     return 0.5 * (z - y).square().sum(1)
        >>> lasso = ProximalGradient(
        ...     energy, lambda v, step, weight: prox.l1(v, step * weight), prox_args=(1,)
        ... )
        >>> solution = ti.fixed_point(lasso, torch.zeros(1, 3), y, weight)
        >>> [round(z, 3) for z in solution.value[0].tolist()]
        [2.5, 0.0, 0.5]
        >>> solution.value.sum().backward()
        >>> round(weight.grad.item(), 3)
        -2.0
    """

    safe_step: Tensor | None
    _word: ClassVar[str] = "prox"

    def __init__(self, energy: Callable, prox: Callable, step: float | None = None, *, prox_args: Sequence[int] = ()):
        super().__init__()
        name = type(self).__name__
        for word, got in (("energy", energy), (self._word, prox)):
            if not callable(got):
                raise TypeError(f"{name}({word}=...): got a {type(got).__name__}, expected a callable")
        if step is not None and not (is_number(step) and 0 < step < math.inf):
            raise ValueError(f"{name}(step={step!r}): expected a finite number > 0, or None to choose one")
        positions = isinstance(prox_args, list | tuple) and all(is_count(i, 0) for i in prox_args)
        if not positions:
            raise ValueError(f"{name}({self._word}_args={prox_args!r}): expected positions of arguments, such as (1,)")
        self.energy, self.prox, self.step, self.prox_args = energy, prox, step, tuple(prox_args)
        self.register_buffer("safe_step", None, persistent=False)

    def forward(self, z: Tensor, *args: Any) -> Tensor:
        """The map, at a state `(B, ...)`."""
        smooth, others = self._parts(args)
        gradient = self._slope(z, smooth)
        if self.step is not None:
            return self._proximal(z - self.step * gradient, self.step, others)
        if self.safe_step is None:
            raise RuntimeError(
                f"{type(self).__name__}(step=None) chooses its step when a solve begins; call it within fixed_point, "
                "or give a step"
            )
        column = self.safe_step.reshape(*self.safe_step.shape, *(1,) * (z.dim() - self.safe_step.dim()))
        return self._proximal(z - column * gradient, self.safe_step, others)

    def begin(self, z0: Any, args: tuple, batch_dims: int) -> PreparedMap:
        """Chooses the steps of a solve, where that is left to the map, for a copy of it; itself keeps the last ones."""
        if not isinstance(z0, Tensor) or not z0.is_floating_point():
            got = z0.dtype if isinstance(z0, Tensor) else f"a {type(z0).__name__}"
            raise TypeError(f"{type(self).__name__}: got a state of {got}, expected one real floating tensor")
        missing = [i for i in self.prox_args if i >= len(args)]
        if missing:
            raise ValueError(
                f"{type(self).__name__}({self._word}_args={self.prox_args}): got {len(args)} arguments beside the "
                f"state, expected one at position {missing[0]}"
            )
        if self.step is not None:
            return self
        if transforms.active():
            raise NotImplementedError(
                f"{type(self).__name__}(step=None) cannot choose a step within torch.func transforms; give one, such "
                "as 1 / optim.curvature_bound(energy, z0, *args).max()"
            )
        bound = curvature_bound(self.energy, z0, *self._parts(args)[0], batch_dims=batch_dims)
        safe_step = torch.where(bound > 0, 1 / bound, 1)
        own: Any = alone(self).copies[id(self)]
        own.safe_step = self.safe_step = safe_step if batch_dims else safe_step.reshape(())
        return own

    def advice(self, z: Tensor, args: tuple, batch_dims: int) -> str:
        """Whether the step is too long for how the energy bends at `z`, and for whom."""
        bound = curvature_bound(self.energy, z, *self._parts(args)[0], batch_dims=batch_dims)
        step = torch.full_like(bound, self.step) if self.step is not None else self.safe_step
        assert step is not None
        step = step.expand_as(bound)
        samples = torch.nonzero(step * bound > 2).flatten().tolist()
        if not samples:
            return ""
        first = ", ".join(
            f"sample {i}: {float(step[i]):.2g}, expected < {float(2 / bound[i]):.2g}" for i in samples[:5]
        )
        more = f" and {len(samples) - 5} more" if len(samples) > 5 else ""
        return f"The step is too large for how the energy bends where the solve ended ({first}{more})."

    def extra_repr(self) -> str:
        """The step, for `print`."""
        return "step chosen every solve" if self.step is None else f"step={self.step}"

    def _parts(self, args: tuple) -> tuple[tuple, tuple]:
        """The energy's arguments, and those of `prox`."""
        smooth = tuple(arg for i, arg in enumerate(args) if i not in self.prox_args)
        return smooth, tuple(args[i] for i in self.prox_args)

    def _proximal(self, v: Tensor, step: float | Tensor, others: tuple) -> Tensor:
        return self.prox(v, step, *others)

    def _slope(self, z: Tensor, args: tuple) -> Tensor:
        def total(z: Tensor) -> tuple[Tensor, Tensor]:
            energies = self.energy(z, *args)
            if not isinstance(energies, Tensor) or energies.shape not in ((), z.shape[:1]):
                got = (
                    f"shape {tuple(energies.shape)}" if isinstance(energies, Tensor) else f"a {type(energies).__name__}"
                )
                raise ValueError(
                    f"the energy returned {got}, expected ({len(z)},), one number per sample; try summing over every "
                    "dimension but that of the batch"
                )
            if not energies.requires_grad:
                raise no_slope()
            if explicit is not None:  # the graph is used up here
                check_captures(self.energy, energies, [z, *explicit])
            return energies.sum(), energies

        explicit = audited()
        wanted = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(args))
        wanted = wanted or any(parameter.requires_grad for parameter in self.parameters())
        if torch.is_grad_enabled() and not (wanted or z.requires_grad or explicit is not None):
            # A graph behind this gradient can only come from a captured tensor: it must not lead to the state, too.
            return torch.func.grad(total, has_aux=True)(z)[0]
        return slope(total, z, wanted)[0]


class ProjectedGradient(ProximalGradient):
    r"""Projected gradient descent as a map: $z \mapsto P(z - \alpha \nabla f(z))$, $P$ the projection onto a set.

    `ProximalGradient` for minima of $f$ within a convex set; see there. It contracts, and is differentiable, also where
    the solution lies on the set's boundary: the derivative is that along it. At a corner that is about to be left the
    derivative is one-sided.

    Args:
        energy: see `ProximalGradient`.
        project: `project(v)`, like those of `torchimplicit.optim.projection`.
        step: see `ProximalGradient`.
        project_args: positions of those arguments that go to `project`, after the point, and not to `energy`.

    Raises:
        TypeError: see `ProximalGradient`.
        ValueError: see `ProximalGradient`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> from torchimplicit.optim import ProjectedGradient, projection
        >>> def energy(z, cost):
        ...     return (cost * z).sum(1) + 0.5 * z.square().sum(1)
        >>> split = ProjectedGradient(energy, projection.simplex)
        >>> cost = torch.tensor([[0.0, 0.5, 2.0]])
        >>> [
        ...     round(z, 3)
        ...     for z in ti.fixed_point(split, torch.zeros(1, 3), cost).value[0].tolist()
        ... ]
        [0.75, 0.25, 0.0]
    """

    _word: ClassVar[str] = "project"

    def __init__(
        self, energy: Callable, project: Callable, step: float | None = None, *, project_args: Sequence[int] = ()
    ):
        super().__init__(energy, project, step, prox_args=project_args)

    def _proximal(self, v: Tensor, step: float | Tensor, others: tuple) -> Tensor:
        return self.prox(v, *others)


@torch.no_grad()
@public
@transforms.outside_inference_mode
def curvature_bound(energy: Callable, z: Any, *args: Any, products: int = PRODUCTS, batch_dims: int = 1) -> Tensor:
    r"""How strongly an energy bends at a state: the largest modulus of an eigenvalue of its Hessian.

    By a Lanczos process, from below, plus how far its Ritz pair is from an eigenpair: at `1 / curvature_bound(...)` a
    step of gradient descent is safe near `z`, and for a quadratic energy everywhere. Not differentiable.

    Args:
        energy: `energy(z, *args)`, one number per sample, `(B,)`.
        z: the state, `(B, ...)` or nested.
        *args: further arguments.
        products: with the Hessian, >= 1; exact for as many unknowns as that.
        batch_dims: see `fixed_point`.

    Returns:
        The bounds, `(B,)`; zero where the energy does not bend, or not to a finite degree.

    Raises:
        ValueError: `products` is less than 1, or the energy is wrong; see `argmin`.
        TypeError: see `argmin`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> z = torch.zeros(1, 2, dtype=torch.float64)
        >>> bound = ti.optim.curvature_bound(lambda z: z[:, 0] ** 2 + 4 * z[:, 1] ** 2, z)
        >>> round(bound.item(), 6)
        8.0
    """
    require_count("curvature_bound", products=products)
    problem = Stationary(energy, z, args, batch_dims, begins=False)
    tensors = [tensor.detach() for tensor in problem.explicit.take_tensors()]
    with problem.bind(tensors) as residual:
        flat = problem.layout.flatten(pytree.tree_map(torch.detach, z))
        lowest, highest, play = eigenvalue_range(Jacobian(residual, flat).rmatvec, probe(flat), products)
    return torch.maximum(highest + play, -lowest)
