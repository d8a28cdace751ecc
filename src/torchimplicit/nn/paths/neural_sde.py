"""The layer of a neural stochastic differential equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.parts.dropout import warn_of_dropout
from torchimplicit.nn.paths.layer import check_field, keep_times, without_time
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.options import Options
from torchimplicit.sde import Brownian, Checkpointed, EulerMaruyama, SDESolver, StochasticReport, sdeint
from torchimplicit.sde.compiled.engine import check_compile
from torchimplicit.sde.diffusion import NoiseKind
from torchimplicit.sde.relative import Divergence
from torchimplicit.sde.sdeint import check_words
from torchimplicit.sde.solver import Calculus


class NeuralSDE(ImplicitLayer):
    r"""A neural stochastic differential equation: $dy = f(t, y, x)\,dt + g(t, y, x)\,dW$ from $y(t_0)$ to $y(t_1)$.

    Its output is a draw. Every call has fresh noise from torch's generator, in `eval()` as in training: here noise is
    the model, not a means to train it. `layer(y0, brownian=seed)` repeats, and `report.seed` is the seed to repeat the
    last call. Processes of `torch.distributed` draw differently though they are seeded alike; seeds that you give are
    taken as they are. Dropout and batch normalisation have no place in drift or diffusion, see `NeuralODE`.

    With a `prior` it is the posterior of a latent equation: `kl` after every call is the divergence from it.

    Source: B. Tzen, M. Raginsky, arXiv 1905.09883; X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, arXiv 2001.01328.

    Args:
        drift: `drift(t, y, ...) -> f`, a module, or a plain function of its arguments alone; `t` is `(B, 1, ...)`.
        diffusion: `diffusion(t, y, ...) -> g`, of the shape that `noise` says.
        ts: the times, start and end, or more where they are wanted; a tensor, a parameter where they are learned.
        solver: the method and its steps.
        adjoint: how to differentiate.
        noise: what drives, see `sdeint`. A network that returns `(B, n)` sees all unknowns at each of its outputs:
            "diagonal" noise that is solved rightly, at strong order 1/2, as `report` says.
        calculus: "ito" or "stratonovich", see `sdeint`.
        prior: `prior(t, y, ...)`, another drift for the same diffusion, see `sdeint`; None for none.
        kl: how the divergence from it is estimated, see `sdeint`.
        autonomous: whether all functions do without the time: `drift(y, ...)`, an `nn.Sequential` for one.
        output: "last" returns the state at the last time, `(B, ...)`; "all" those at all times, `(T, B, ...)`.
        batched_args: positions of those inputs beside the state that carry the batch in dimension 0; None for `()`
            where there are no such inputs.
        compile: False, True or "auto": make steps by `torch.compile`, see `sdeint`.
        on_failure: "warn" (default), "raise" or "ignore" samples that do not reach the end.

    Attributes:
        report: how the last path was solved; None before the first.
        kl: the divergence of the last paths from the prior, `(B,)`, or `(T, B)` with all outputs, with its graph;
            None without prior.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> drift = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        ... )
        >>> diffusion = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sigmoid())
        >>> layer = ti.nn.NeuralSDE(drift, diffusion, autonomous=True)
        >>> y0 = torch.randn(8, 2)
        >>> one, other = layer(y0), layer(y0)
        >>> (
        ...     torch.equal(one, other),
        ...     torch.equal(other, layer(y0, brownian=layer.report.seed)),
        ... )
        (False, True)
    """

    ts: Tensor
    report: StochasticReport | None

    def __init__(
        self,
        drift: Callable,
        diffusion: Callable,
        ts: Tensor | Sequence[float] = (0.0, 1.0),
        solver: SDESolver = EulerMaruyama(dt=0.05),
        adjoint: PathAdjoint = Checkpointed(),
        *,
        noise: NoiseKind = "diagonal",
        calculus: Calculus = "ito",
        prior: Callable | None = None,
        kl: Divergence = "quadratic",
        autonomous: bool = False,
        output: Literal["last", "all"] = "last",
        batched_args: Sequence[int] | None = None,
        compile: Compile = False,
        on_failure: OnFailure = "warn",
    ):
        """Keeps the functions and the options; solves nothing."""
        super().__init__()
        name = type(self).__name__
        Options(name=name, solver=solver, adjoint=adjoint, on_failure=on_failure)  # refuses now
        check_words(solver, noise, calculus, adjoint, kl)
        check_compile(compile, solver, Brownian(seed=0), ts, plain=True)
        parts = {"drift": drift, "diffusion": diffusion} | ({} if prior is None else {"prior": prior})
        for word, part in parts.items():
            check_field(name, part, autonomous, word)
            warn_of_dropout(name, word, part)
            warn_of_batch_norm(name, word, part, "paths")
        if output not in ("last", "all"):
            raise ValueError(f"{name}(output={output!r}): expected 'last' or 'all'")
        self.drift, self.diffusion, self.prior, self.autonomous = drift, diffusion, prior, autonomous
        self.solver, self.adjoint = solver, adjoint
        self.noise: NoiseKind = noise
        self.calculus: Calculus = calculus
        self.divergence: Divergence = kl
        self.output, self.batched_args = output, batched_args
        self.compiled: Compile = compile
        self.on_failure: OnFailure = on_failure
        self.kl: Tensor | None = None
        keep_times(self, ts)
        if bool(self.ts.detach()[0] > self.ts.detach()[-1]):
            raise ValueError(
                f"{name}(ts={ts}): got decreasing times, expected strictly increasing ones: noise is not undone by "
                "going back; try ts.flip(0)"
            )

    def forward(
        self, y0: Any, *args: Any, ts: Tensor | None = None, brownian: int | Tensor | Brownian | None = None
    ) -> Any:
        """A state at the last time, or at all of them.

        Args:
            y0: start, `(B, ...)`, or a nest of such.
            *args: further arguments of all functions.
            ts: times in place of the layer's own, `(T,)` or `(T, B)`.
            brownian: the noise, see `sdeint`; None for fresh noise.
        """
        prior = None if self.prior is None else self._timed(self.prior)
        batched = () if self.batched_args is None and not args else self.batched_args
        options: dict[str, Any] = {
            "solver": self.solver, "adjoint": self.adjoint, "noise": self.noise, "calculus": self.calculus,
            "prior": prior, "kl": self.divergence, "brownian": brownian, "batched_args": batched,
            "compile": self.compiled,
        }  # fmt: skip
        drift, diffusion, times = self._timed(self.drift), self._timed(self.diffusion), self.ts if ts is None else ts
        solution = self.solve(sdeint, drift, diffusion, y0, times, *args, **options)
        every = self.output == "all"
        self.kl = solution.kl if every or solution.kl is None else solution.kl[-1]
        return solution.value if every else pytree.tree_map(lambda leaf: leaf[-1], solution.value)

    def _timed(self, function: Callable) -> Callable:
        return partial(without_time, function) if self.autonomous else function

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the graph of the last divergence, which can be neither."""
        return {**self.__dict__, "kl": None if self.kl is None else self.kl.detach()}

    def extra_repr(self) -> str:
        """The options, for `print(layer)`."""
        words = f"noise={self.noise!r}, calculus={self.calculus!r}, output={self.output!r}"
        options = f"{words}, on_failure={self.on_failure!r}"
        return f"ts={self.ts.tolist()}, solver={self.solver}, adjoint={self.adjoint}, {options}"
