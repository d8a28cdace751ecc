"""Irregular series as observations of a latent path that follows a neural differential equation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.latent.draws import Seed, seeds_of_draws
from torchimplicit.nn.latent.encoder import Encoder
from torchimplicit.nn.latent.latent_path import Bound, LatentPath, NormalPrior, check_bound
from torchimplicit.nn.latent.likelihood import GaussianLikelihood, Likelihood
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.times import outputs_of, start_of
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.parts.dropout import warn_of_dropout
from torchimplicit.nn.paths.layer import check_field, without_time
from torchimplicit.ode import Checkpointed, PathAdjoint, PathReport, PathSolver, Tsit5, odeint
from torchimplicit.ode.compiled.engine import check_compile
from torchimplicit.path.options import Options


class LatentODE(LatentPath):
    r"""A latent ordinary differential equation: $z(t_0) \sim q$, $\dot z = f(t, z)$, $x_i \sim p(x \mid z(t_i))$.

    An encoder reads a series and says where its path may start, at the series' first time; from there the path is
    certain, and a decoder reads observations off it at any time. It is trained by a bound of the evidence,

    $$\log p(x) \ge E_q \sum_i \log p(x_i \mid z(t_i)) - KL(q(z_0) \,\|\, p(z_0)).$$

    Every series has its own times and its own steps: observation times cost no steps, and no union of times is made.
    All that is known must be in the start: what happens later, and is not decided by it, such as an intervention,
    `LatentSDE` and `NeuralCDE` can follow.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907; the bound of several draws Y. Burda, R. Grosse,
    R. Salakhutdinov, arXiv 1509.00519.

    Args:
        encoder: `encoder(series)` is the distribution of the start: `GRUEncoder`, `ODERNNEncoder`, `TimeAttention`.
        field: `field(t, z) -> dz/dt` of states `(N, latent)`; see `NeuralODE`. Times are the series' own: scale them to
            about 1 before, where the field is a plain network.
        decoder: a module from states `(..., latent)` to what the likelihood takes, `(..., C)`.
        likelihood: of the observations.
        start: the distribution of the start before anything is observed; None is the standard normal one.
        solver: see `NeuralODE`. The tolerance is loose, as in the paper: far below what decoders resolve.
        adjoint: see `NeuralODE`.
        autonomous: whether the field does without the time, `field(z)`.
        compile: see `NeuralODE`.
        on_failure: "warn" (default), "raise" or "ignore" paths that do not reach the last time.

    Attributes:
        report: how the last paths were solved; of several draws, the first ones of all series come first.
        kl: the divergence of the last starts from their prior, `(B,)`, as the bound has it; None before `elbo`.
        starts: the last draws of the start, `(samples, B, latent)`, with their graph: for a classifier, for example.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> series = ti.nn.Series.of(
        ...     [(torch.rand(n).sort().values, torch.randn(n, 3)) for n in (5, 1)]
        ... )
        >>> field = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)
        ... )
        >>> encoder, decoder = ti.nn.GRUEncoder(channels=3, latent=4), torch.nn.Linear(4, 3)
        >>> model = ti.nn.LatentODE(
        ...     encoder, field, decoder, ti.nn.GaussianLikelihood(0.5), autonomous=True
        ... )
        >>> (-model.elbo(series, samples=3)).mean().backward()
        >>> model(series, torch.tensor([1.0, 2.0]), samples=3).shape
        torch.Size([3, 2, 2, 3])
    """

    report: PathReport | None

    def __init__(
        self,
        encoder: Encoder,
        field: Callable,
        decoder: Callable,
        likelihood: Likelihood | None = None,
        *,
        start: Callable | None = None,
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-4),
        adjoint: PathAdjoint = Checkpointed(),
        autonomous: bool = False,
        compile: Compile = False,
        on_failure: OnFailure = "warn",
    ):
        """Keeps parts and options; solves nothing."""
        likelihood = GaussianLikelihood(std=0.01) if likelihood is None else likelihood
        start = NormalPrior(encoder.latent) if start is None and isinstance(encoder, Encoder) else start
        super().__init__(encoder, decoder, likelihood, start)
        Options(name="LatentODE", solver=solver, adjoint=adjoint, on_failure=on_failure)  # refuses now
        check_compile(compile, solver, plain=True)
        check_field("LatentODE", field, autonomous)
        warn_of_dropout("LatentODE", "field", field)
        warn_of_batch_norm("LatentODE", "field", field, "paths")
        self.field, self.autonomous = field, autonomous
        self.solver, self.adjoint = solver, adjoint
        self.compiled: Compile = compile
        self.on_failure: OnFailure = on_failure

    @public
    def paths(self, series: Series, ts: Tensor, samples: int = 1, *, seed: Seed = None) -> Tensor:
        """The latent paths at times `ts`, `(samples, B, T, latent)`; see `LatentPath`."""
        check_bound("LatentODE", samples, "elbo")
        return self._paths(series, ts, samples, seed)[0]

    @public
    def elbo(
        self, series: Series, target: Series | None = None, samples: int = 1, *, kl_weight: float | Tensor = 1.0,
        bound: Bound = "elbo", seed: Seed = None,
    ) -> Tensor:  # fmt: skip
        """A bound of the evidence of the target's observations, `(B,)`; its mean is what to maximise.

        Args:
            series: what the encoder sees.
            target: what is to be explained; None for the same.
            samples: how many draws of the start.
            kl_weight: of the divergence; smaller at the beginning of a training, and a bound only from 1 on.
            bound: "elbo", whose divergence is exact; or "iwae", the tighter bound by the mean of several draws'
                weights.
            seed: see `forward`.
        """
        check_bound("LatentODE.elbo", samples, bound)
        target = series if target is None else target
        self.check_target(series, target)
        z, q = self._paths(series, target.times, samples, seed)
        return self.bounded(self.decoder(z), target, self.start_cost(q, bound), kl_weight, bound)

    def _paths(self, series: Series, ts: Tensor, samples: int, seed: Seed) -> tuple[Tensor, Any]:
        outputs = outputs_of("LatentODE", start_of("LatentODE", series), ts).repeated(samples)
        q = self.encoder(series)
        z = self.draw_starts(q, seeds_of_draws("LatentODE", seed, len(series), samples, q.mean.device), samples)
        field = partial(without_time, self.field) if self.autonomous else self.field
        options: dict[str, Any] = {
            "solver": self.solver, "adjoint": self.adjoint, "batched_args": (), "compile": self.compiled,
        }  # fmt: skip
        solution = self.solve(odeint, field, z, outputs.grid, **options)
        return outputs.pick(solution.value).unflatten(0, (samples, -1)), q

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"solver={self.solver}, adjoint={self.adjoint}, on_failure={self.on_failure!r}"
