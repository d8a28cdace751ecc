"""Continuous normalising flows: densities moved along a vector field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log, pi
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.core.options import require_dtype
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.parts.dropout import warn_of_dropout
from torchimplicit.nn.paths.layer import PathLayer, check_field, given, keep_times, shape_of, without_time
from torchimplicit.nn.paths.penalties import Moment, Noise, PathPenalty, beside, check_penalties, draw_probe, noise_of
from torchimplicit.ode import Checkpointed, PathAdjoint, Tsit5
from torchimplicit.path.options import Options
from torchimplicit.path.solver import PathSolver

Trace = Literal["exact", "hutchinson"]


class CNF(PathLayer):
    r"""A continuous normalising flow: a density that is moved along $\dot z = \mathrm{field}(t, z)$ from a simple one.

    A path carries its density along, $\frac{d}{dt} \log p(z(t)) = -\operatorname{tr} \partial f / \partial z$. At the
    first time the density is the base's, at the last one it is that of the data:
    $\log p(x) = \log p_0(z(t_0)) - \int_{t_0}^{t_1} \operatorname{tr} \frac{\partial f}{\partial z} dt$. The
    log-density is part of the state that the solver's tolerance is for: a density integrates to 1 to about that.

    The exact trace costs a vector-Jacobian product for every dimension, and is what to measure with. Hutchinson's
    estimate $\epsilon^\top (\partial f / \partial z)\, \epsilon$ costs one; with one probe for a whole solve it is an
    unbiased estimate of the log-density, for training; under `torch.vmap` that needs `randomness=`. Not for data on a
    lower-dimensional set, whose density does not exist: add noise. `flow_matching_loss` trains it without a solve.

    Source: R. T. Q. Chen et al., arXiv 1806.07366, theorem 1; the estimate W. Grathwohl et al. (FFJORD), arXiv
    1810.01367.

    Args:
        field: `field(t, z) -> dz/dt`, or `field(t, z, context)`; a module, once differentiable (tanh, softplus, not
            ReLU); `t` is `(B, 1, ...)`.
        shape: of one sample, `2` or `(1, 28, 28)`.
        ts: start and end, where the base's density is and where that of the data is.
        trace: "exact" or "hutchinson".
        probe: what Hutchinson's probe is drawn from, "gaussian" or "rademacher" (of the smaller variance).
        base: the density at the start, with `log_prob(z) -> (B,)` and `sample((B,)) -> z`, or `rsample`; as a
            distribution of torch or a module, whose parameters are then learned. None is the standard normal one.
        solver: see `NeuralODE`.
        adjoint: see `NeuralODE`.
        autonomous: see `NeuralODE`.
        penalties: of the paths in `log_prob`, see `NeuralODE`. `JacobianFrobenius` needs no product of its own
            beside Hutchinson's trace.
        on_failure: see `NeuralODE`.

    Attributes:
        report: how the last paths were integrated; None before the first.
        penalties: the integrals along the paths of the last `log_prob`, `(B,)` each, with their graphs.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        ... )
        >>> flow = ti.nn.CNF(net, 2, autonomous=True)
        >>> flow.log_prob(torch.randn(8, 2)).shape, flow.sample(5).shape
        (torch.Size([8]), torch.Size([5, 2]))
    """

    ts: Tensor

    def __init__(
        self,
        field: Callable,
        shape: int | Sequence[int],
        ts: Tensor | Sequence[float] = (0.0, 1.0),
        *,
        trace: Trace = "exact",
        probe: Noise = "rademacher",
        base: Any = None,
        solver: PathSolver = Tsit5(),
        adjoint: PathAdjoint = Checkpointed(),
        autonomous: bool = False,
        penalties: Sequence[PathPenalty] = (),
        on_failure: OnFailure = "warn",
    ):
        """Keeps the field and the options; solves nothing."""
        super().__init__()
        Options(name="CNF", solver=solver, adjoint=adjoint, on_failure=on_failure)  # refuses impossible ones now
        check_field("CNF", field, autonomous)
        warn_of_dropout("CNF", "field", field)
        warn_of_batch_norm("CNF", "field", field, "densities")
        self.field, self.autonomous = field, autonomous
        self.shape = shape_of("CNF", shape)
        for name, got, words in (
            ("trace", trace, ("exact", "hutchinson")),
            ("probe", probe, ("gaussian", "rademacher")),
        ):
            if got not in words:
                raise ValueError(f"CNF({name}={got!r}): expected {words[0]!r} or {words[1]!r}")
        self.trace: Trace = trace
        self.base = _check_base(base, self.shape)
        self.solver, self.adjoint = solver, adjoint
        self.on_failure: OnFailure = on_failure
        self.wanted = check_penalties("CNF", penalties)
        noise = noise_of(self.wanted)
        if trace == "hutchinson" and noise not in (None, probe):
            raise ValueError(f"CNF(penalties=...): got probes that are {noise}, expected {probe}, as the flow's own")
        keep_times(self, ts)
        self.noise: Noise | None = probe if trace == "hutchinson" else noise

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """`log_prob`."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        r"""$\log p(x)$, `(B,)`, differentiable by `x`, `context` and all parameters.

        Args:
            x: samples, `(B, *shape)`.
            context: what the density is conditioned on, `(B, ...)` or a nest of such; handed to the field.
        """
        z, change = self._pull_back(x, context)
        return self.base_log_prob(z) - change

    def _pull_back(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Where samples come from, like `x`, and the integral of the trace on the way, `(B,)`."""
        self._check(x)
        volume, costs = x.new_zeros(len(x), 1), x.new_zeros(len(x), len(self.wanted))
        state = (x, volume, costs) if self.wanted else (x, volume)
        solver = beside(self.solver, state, (x, volume), 1) if self.wanted else self.solver
        probe = None if self.noise is None else draw_probe(self.noise, x)
        field = partial(_with_density, self.field, self.autonomous, self.trace, self.wanted)
        args = (probe, *_some(context))
        z, volume, *rest = self.integrate(field, state, self.ts.flip(0), args, solver, tuple(range(len(args))))
        if self.wanted:  # integrals against the time
            self.penalties = (rest[0][-1] * torch.sign(self.ts[0] - self.ts[-1]).to(x.dtype)).unbind(1)
        return z[-1], -volume[-1, :, 0]

    def sample(self, count: int, context: Any = None) -> Tensor:
        """Samples, `(count, *shape)`, differentiable by the parameters and `context`.

        Args:
            count: how many.
            context: see `log_prob`; `(count, ...)`.
        """
        return self.transport(self.base_sample(count), self.ts, context)[-1]

    def base_sample(self, count: int) -> Tensor:
        """Samples of the base, where the flow starts, `(count, *shape)`."""
        if self.base is None:
            like = next((p for p in self.parameters() if p.is_floating_point()), self.ts)
            return torch.randn(count, *self.shape, dtype=like.dtype, device=like.device)
        draw = self.base.rsample if getattr(self.base, "has_rsample", False) else self.base.sample
        return draw((count,))

    def base_log_prob(self, z: Tensor) -> Tensor:
        """The log-density of the base, `(B,)`, of points `(B, *shape)` where the flow starts."""
        if self.base is not None:
            return self.base.log_prob(z)
        return -0.5 * (z.square().flatten(1).sum(1) + self.shape.numel() * log(2 * pi))

    def transport(self, z: Tensor, ts: Tensor, context: Any = None) -> Tensor:
        """Moves points along the flow: `(T, B, *shape)`, at the times `ts`, the first one theirs, either way.

        Args:
            z: points, `(B, *shape)`.
            ts: times, `(T,)`; `flow.ts` from the base to the data, `flow.ts.flip(0)` back.
            context: see `log_prob`.
        """
        self._check(z)
        field = partial(without_time, self.field) if self.autonomous else self.field
        args = _some(context)
        return self.integrate(field, z, ts, args, self.solver, tuple(range(len(args))))

    def _check(self, x: Any) -> None:
        if not isinstance(x, Tensor) or x.shape[1:] != self.shape or x.dim() == 0:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"CNF: got {got}, expected samples of shape (B, {', '.join(map(str, self.shape))})")
        require_dtype("CNF", x, self)

    def extra_repr(self) -> str:
        """The options, for `print(flow)`."""
        options = f"solver={self.solver}, adjoint={self.adjoint}, on_failure={self.on_failure!r}"
        return f"shape={tuple(self.shape)}, ts={self.ts.tolist()}, trace={self.trace!r}, {options}"


def _some(context: Any) -> tuple:
    return () if context is None else (context,)


def _with_density(
    field: Callable,
    autonomous: bool,
    trace: Trace,
    penalties: Sequence[PathPenalty],
    t: Tensor,
    state: tuple[Tensor, ...],
    probe: Tensor | None,
    *args: Any,
) -> tuple[Tensor, ...]:
    """The field of points, the trace of its Jacobian, and the rates of penalties."""
    moment = Moment(given(field, autonomous, args), t, state[0], probe, plain=False)
    if trace == "exact":
        volume = moment.trace()
    else:
        assert probe is not None
        volume = (moment.pulled * probe).flatten(1).sum(1)
    found = (moment.slope, volume.unsqueeze(1))
    return (*found, torch.stack([penalty.density(moment) for penalty in penalties], dim=1)) if penalties else found


def _check_base(base: Any, shape: torch.Size) -> Any:
    if base is None:
        return None
    if not (callable(getattr(base, "log_prob", None)) and callable(getattr(base, "sample", None))):
        raise TypeError(
            f"CNF(base={base!r}): expected something with log_prob(z) and sample((count,)), such as a distribution of "
            "torch.distributions"
        )
    event = getattr(base, "event_shape", None)
    if event is not None and (torch.Size(event) != shape or len(base.batch_shape)):
        raise ValueError(
            f"CNF(base=...): got a distribution of batch shape {tuple(base.batch_shape)} and event shape {tuple(event)}"
            f", expected () and {tuple(shape)}; try torch.distributions.Independent"
        )
    return base
