"""The layer of a neural ordinary differential equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.options import require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.parts.dropout import warn_of_dropout
from torchimplicit.nn.paths.layer import PathLayer, check_field, given, keep_times, only_tensor, without_time
from torchimplicit.nn.paths.penalties import Moment, PathPenalty, beside, check_penalties, draw_probe, noise_of
from torchimplicit.ode import Checkpointed, Euler, PathAdjoint, Tsit5
from torchimplicit.ode.compiled.engine import check_compile
from torchimplicit.path.options import Options, Stepping
from torchimplicit.path.solver import PathSolver


class NeuralODE(PathLayer):
    r"""A neural ordinary differential equation: from $y(t_0)$ to $y(t_1)$ along $\dot y = \mathrm{field}(t, y, x)$.

    A residual network of continuous depth, whose number of evaluations follows from the tolerance. The map is a
    homeomorphism: paths of distinct starts never meet, so it cannot fold or tear (see `AugmentedNeuralODE`). The
    field must treat samples independently (no batch normalisation), be smooth and be the same at every evaluation of a
    solve (no plain dropout; `VariationalDropout`). Not where a few fixed layers do: every evaluation is one.

    Source: R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, arXiv 1806.07366.

    Args:
        field: `field(t, y, ...) -> dy/dt`, a module, or a plain function of its arguments alone; `t` is `(B, 1, ...)`.
        ts: the times, start and end, or more where they are wanted; a tensor, a parameter where they are learned.
        solver: how to integrate: `Tsit5()`, `RK4(dt=0.1)`, ...
        adjoint: how to differentiate.
        autonomous: whether the field does without the time: `field(y, ...)`, an `nn.Sequential` for one.
        output: "last" returns the state at the last time, `(B, ...)`; "all" those at all times, `(T, B, ...)`.
        penalties: of the path, `(KineticEnergy(), JacobianFrobenius(), TaylorDerivative(order=3))` for example; their
            integrals are found in `penalties` after every call, to be added to a loss. They are solved along with the
            path and do not steer its steps: these are the same as without.
        stepping: see `odeint`.
        batched_args: positions of those inputs beside the state that carry the batch in dimension 0, so that a large
            batch goes on without the samples that have arrived; None for `()` where there are no such inputs.
        compile: False, True or "auto": make steps by `torch.compile`, see `odeint`; not with penalties.
        on_failure: "warn" (default), "raise" or "ignore" samples that do not reach the end.

    Attributes:
        report: how the last path was integrated; None before the first.
        penalties: the integrals of the last path, `(B,)` each, with their graphs.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> field = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        ... )
        >>> layer = ti.nn.NeuralODE(
        ...     field, autonomous=True, penalties=(ti.nn.KineticEnergy(),)
        ... )
        >>> layer(torch.randn(8, 2)).shape, layer.report.converged, layer.penalties[0].shape
        (torch.Size([8, 2]), True, torch.Size([8]))
    """

    ts: Tensor

    def __init__(
        self,
        field: Callable,
        ts: Tensor | Sequence[float] = (0.0, 1.0),
        solver: PathSolver = Tsit5(),
        adjoint: PathAdjoint = Checkpointed(),
        *,
        autonomous: bool = False,
        output: Literal["last", "all"] = "last",
        penalties: Sequence[PathPenalty] = (),
        stepping: Stepping = "per-sample",
        batched_args: Sequence[int] | None = None,
        compile: Compile = False,
        on_failure: OnFailure = "warn",
    ):
        """Keeps the field and the options; solves nothing."""
        super().__init__()
        name = type(self).__name__
        Options(name=name, solver=solver, adjoint=adjoint, stepping=stepping, on_failure=on_failure)  # refuses now
        check_field(name, field, autonomous)
        warn_of_dropout(name, "field", field)
        if stepping == "per-sample":  # else the batch is one system
            warn_of_batch_norm(name, "field", field, "paths")
        if output not in ("last", "all"):
            raise ValueError(f"{name}(output={output!r}): expected 'last' or 'all'")
        check_compile(compile, solver, plain=True)
        if compile is True and len(penalties):
            raise ValueError(f"{name}(compile=True): got penalties, expected the path alone; try compile=False")
        self.field, self.autonomous = field, autonomous
        self.solver, self.adjoint = solver, adjoint
        self.compiled: Compile = compile
        self.stepping: Stepping = stepping
        self.output, self.batched_args = output, batched_args
        self.on_failure: OnFailure = on_failure
        self.wanted = check_penalties(name, penalties)
        keep_times(self, ts)

    @classmethod
    def from_residual(cls, block: Callable, depth: int, **options: Any) -> NeuralODE:
        """The residual network `x <- x + block(x)` of so many layers that share their weights, as steps of Euler's.

        Args:
            block: `block(y, ...)`, shapes as `y`.
            depth: how many layers, an integer >= 1.
            **options: see the class; another `solver` makes the depth continuous.
        """
        require_count(f"{cls.__name__}.from_residual", depth=depth)
        options.setdefault("solver", Euler(dt=1.0, max_steps=depth))
        return cls(block, ts=(0.0, float(depth)), autonomous=True, **options)

    def forward(self, y0: Any, *args: Any, ts: Tensor | None = None) -> Any:
        """The state at the last time, or at all of them.

        Args:
            y0: start, `(B, ...)`, or a nest of such.
            *args: further arguments of the field.
            ts: times in place of the layer's own, `(T,)` or `(T, B)`.
        """
        field = partial(without_time, self.field) if self.autonomous else self.field
        state, more, solver = y0, args, self.solver
        batched = () if self.batched_args is None and not args else self.batched_args
        if self.wanted:
            noise = noise_of(self.wanted)
            probe = None if noise is None else draw_probe(noise, only_tensor(y0))
            first = pytree.tree_leaves(y0)[0]
            costs = first.new_zeros(len(first), len(self.wanted), dtype=first.dtype.to_real())
            field = partial(_with_penalties, self.field, self.autonomous, self.wanted)
            state, more = (y0, costs), (probe, *args)
            solver = beside(solver, state, y0, 1 if self.stepping == "per-sample" else 0)
            batched = None if batched is None else (*([0] if probe is not None else []), *(i + 1 for i in batched))
        batched = None if self.stepping == "joint" else batched
        times = self.ts if ts is None else ts
        value = self.integrate(field, state, times, more, solver, batched, self.stepping, self.compiled)
        if self.wanted:
            value, costs = value
            self.penalties = costs[-1].unbind(1)
        return value if self.output == "all" else pytree.tree_map(lambda leaf: leaf[-1], value)

    def extra_repr(self) -> str:
        """The options, for `print(layer)`."""
        options = f"output={self.output!r}, on_failure={self.on_failure!r}"
        return f"ts={self.ts.tolist()}, solver={self.solver}, adjoint={self.adjoint}, {options}"


class AugmentedNeuralODE(NeuralODE):
    r"""A neural ordinary differential equation with room to pass by: extra dimensions, zero at the start.

    Paths cannot cross, so a `NeuralODE` cannot learn $x \mapsto x^2$, nor part points that enclose others. In more
    dimensions they go around each other. The flows become simpler, too, so that fewer evaluations do.

    Source: E. Dupont, A. Doucet, Y. W. Teh, arXiv 1904.01681.

    Args:
        field: as for `NeuralODE`, of states with `extra` more entries in dimension `dim`.
        extra: how many, an integer >= 1.
        dim: where: features of `(B, n)` or channels of `(B, C, ...)` are 1.
        strip: return the state without them; the default leaves them to a layer that follows.
        **options: see `NeuralODE`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> layer = ti.nn.AugmentedNeuralODE(torch.nn.Linear(3, 3), extra=1, autonomous=True)
        >>> layer(torch.randn(8, 2)).shape
        torch.Size([8, 3])
    """

    def __init__(self, field: Callable, extra: int = 1, dim: int = 1, strip: bool = False, **options: Any):
        """Keeps the field and the options; solves nothing."""
        super().__init__(field, **options)
        if not isinstance(extra, int) or extra < 1:
            raise ValueError(f"AugmentedNeuralODE(extra={extra!r}): expected an integer >= 1; 0 is NeuralODE")
        if not isinstance(dim, int) or dim == 0:
            raise ValueError(f"AugmentedNeuralODE(dim={dim!r}): expected another dimension than 0, which is the batch")
        self.extra, self.dim, self.strip = extra, dim, strip

    def forward(self, y0: Tensor, *args: Any, ts: Tensor | None = None) -> Tensor:
        """See `NeuralODE.forward`; for a state of one tensor."""
        y0 = only_tensor(y0)
        shape = list(y0.shape)
        shape[self.dim] = self.extra
        value = super().forward(torch.cat((y0, y0.new_zeros(shape)), dim=self.dim), *args, ts=ts)
        if not self.strip:
            return value
        dim = self.dim if self.dim < 0 or self.output == "last" else self.dim + 1
        return value.narrow(dim, 0, y0.shape[self.dim])

    def extra_repr(self) -> str:
        """The options, for `print(layer)`."""
        return f"extra={self.extra}, dim={self.dim}, strip={self.strip}, {super().extra_repr()}"


def _with_penalties(
    field: Callable,
    autonomous: bool,
    penalties: Sequence[PathPenalty],
    t: Tensor,
    state: Any,
    probe: Tensor | None,
    *args: Any,
) -> Any:
    """The field of a state and the integrals beside it."""
    moment = Moment(given(field, autonomous, args), t, state[0], probe, plain=probe is None)
    densities = [penalty.density(moment) for penalty in penalties]
    return moment.slope, torch.stack(densities, dim=1)
