"""Irregular series as observations of a latent path that follows a neural stochastic differential equation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.options import require_count
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.latent.draws import Seed, along_paths, normals, seeds_of_draws
from torchimplicit.nn.latent.encoder import Encoder
from torchimplicit.nn.latent.latent_path import Bound, LatentPath, NormalPrior, check_bound
from torchimplicit.nn.latent.likelihood import GaussianLikelihood, Likelihood
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.sums import neighbours_first
from torchimplicit.nn.latent.times import Outputs, folded, outputs_of, start_of
from torchimplicit.nn.latent.turned import Ahead, plain, turned
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.parts.dropout import warn_of_dropout
from torchimplicit.nn.paths.layer import check_field
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.options import Options
from torchimplicit.sde import Brownian, Checkpointed, EulerMaruyama, SDESolver, StochasticReport, sdeint
from torchimplicit.sde.compiled.engine import check_compile
from torchimplicit.sde.diffusion import NoiseKind
from torchimplicit.sde.relative import Divergence
from torchimplicit.sde.sdeint import check_words
from torchimplicit.sde.solver import Calculus


class Spread(NamedTuple):
    """How wide the paths of a posterior are, as variances `(B, C)`, means over times.

    Attributes:
        total: of what is expected, over paths.
        diffusion: the part of it between paths from the same start, that is by the noise along them. Near zero the
            diffusion has collapsed: the model is an ordinary differential equation with a random start.
        data: of the observations, over times.
    """

    total: Tensor
    diffusion: Tensor
    data: Tensor


class LatentSDE(LatentPath):
    r"""A latent stochastic differential equation, and what turns it towards the observations of a series.

    Before anything is observed, $dz = f(t, z)\,dt + g(t, z)\,dW$ from a learned distribution of the start. The
    posterior of a series is sought among the processes with the same noise, that a control turns,

    $$dz = \big(f + g\,u(t, z, c(t))\big)\,dt + g\,dW, \qquad
    KL = KL(q(z_0) \,\|\, p(z_0)) + E \tfrac12 \int |u|^2 dt,$$

    where $c(t)$ is what an encoder has read of what lies ahead of $t$. So the divergence is finite whatever the
    networks say, and the exact posterior has this form, $u = g^\top \nabla \log p(\text{what lies ahead} \mid z)$.
    Behind the last observation there is no control: a forecast is the equation's own.

    The diffusion may collapse, the more the smaller the likelihood's deviation is: look at `spread`, anneal
    `kl_weight`, learn the deviation. Steps are given, and end at every output: many outputs cost steps.

    Source: X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, arXiv 2001.01328, section 5; the control is that of A.
    Boue, P. Dupuis, The Annals of Probability 26, 1998.

    Args:
        encoder: gives the distribution of the start, and the context; one that reads backward (`reverse=True`): what is
            known at a time must be what lies ahead.
        drift: `drift(t, z) -> f`, of states `(N, latent)`; see `NeuralSDE`.
        diffusion: `diffusion(t, z) -> g`, of the shape that `noise` says.
        control: `control(t, z, context) -> u`, `(N, latent)`, or one number for each Brownian motion where they are
            `m`, `(N, m)`. Contexts are `(N, encoder.width + 1)`: what was read of the next time and those behind it,
            and how far ahead that time is.
        decoder: a module from states `(..., latent)` to what the likelihood takes, `(..., C)`.
        likelihood: of the observations.
        start: the distribution of the start before anything is observed; None learns a normal one.
        solver: the method and its steps, see `sdeint`.
        adjoint: how to differentiate.
        noise: what drives, see `sdeint`.
        calculus: "ito" or "stratonovich", see `sdeint`.
        kl: how the divergence along the path is estimated, see `sdeint`; "pathwise" for `bound="iwae"`, and for what
            is to be measured: at a good control it varies less.
        autonomous: whether all three functions do without the time: `drift(z)`, `control(z, context)`.
        compile: False, True or "auto": make steps by `torch.compile`, see `sdeint`; for times that all series share,
            others being refused with True. Anew for another number of observation times.
        on_failure: "warn" (default), "raise" or "ignore" paths that do not reach the last time.

    Attributes:
        report: how the last paths were solved; of several draws, the first ones of all series come first.
        kl: the divergence of the last posterior from the prior, `(B,)`; None before `elbo`.
        kl_path: the part of it along the path, the rest being the start's.
        starts: the last draws of the start, `(samples, B, latent)`, with their graph.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Control(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(2 + 17, 2)
        ...
        ...     def forward(self, z, context):
        ...         return self.net(torch.cat((z, context), 1))
        >>> drift, sizes = (
        ...     torch.nn.Linear(2, 2),
        ...     torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sigmoid()),
        ... )
        >>> encoder, decoder = ti.nn.GRUEncoder(3, latent=2, width=16), torch.nn.Linear(2, 3)
        >>> model = ti.nn.LatentSDE(
        ...     encoder,
        ...     drift,
        ...     sizes,
        ...     Control(),
        ...     decoder,
        ...     ti.nn.GaussianLikelihood(0.5, learned=True),
        ...     autonomous=True,
        ... )
        >>> series = ti.nn.Series.of(
        ...     [(torch.rand(n).sort().values, torch.randn(n, 3)) for n in (5, 1)]
        ... )
        >>> (-model.elbo(series, samples=3)).mean().backward()
        >>> ts = torch.tensor([1.0, 2.0])
        >>> model(series, ts, samples=3).shape, model.prior(4, ts).shape
        (torch.Size([3, 2, 2, 3]), torch.Size([4, 2, 3]))
    """

    report: StochasticReport | None

    def __init__(
        self,
        encoder: Encoder,
        drift: Callable,
        diffusion: Callable,
        control: Callable,
        decoder: Callable,
        likelihood: Likelihood | None = None,
        *,
        start: Callable | None = None,
        solver: SDESolver = EulerMaruyama(dt=0.05),
        adjoint: PathAdjoint = Checkpointed(),
        noise: NoiseKind = "diagonal",
        calculus: Calculus = "ito",
        kl: Divergence = "quadratic",
        autonomous: bool = False,
        compile: Compile = False,
        on_failure: OnFailure = "warn",
    ):
        """Keeps parts and options; solves nothing."""
        likelihood = GaussianLikelihood(std=0.1, learned=True) if likelihood is None else likelihood
        start = NormalPrior(encoder.latent, learned=True) if start is None and isinstance(encoder, Encoder) else start
        super().__init__(encoder, decoder, likelihood, start)
        Options(name="LatentSDE", solver=solver, adjoint=adjoint, on_failure=on_failure)  # refuses now
        check_words(solver, noise, calculus, adjoint, kl)
        check_compile(compile, solver, Brownian(seed=0), None, plain=True)
        if getattr(encoder, "reverse", True) is not True:
            raise ValueError(
                "LatentSDE(encoder=...): got reverse=False, expected an encoder that reads what lies ahead"
            )
        for word, part in (("drift", drift), ("diffusion", diffusion), ("control", control)):
            check_field("LatentSDE", part, autonomous, word)
            warn_of_dropout("LatentSDE", word, part)
            warn_of_batch_norm("LatentSDE", word, part, "paths")
        self.drift, self.diffusion, self.control, self.autonomous = drift, diffusion, control, autonomous
        self.solver, self.adjoint = solver, adjoint
        self.noise: NoiseKind = noise
        self.calculus: Calculus = calculus
        self.divergence: Divergence = kl
        self.compiled: Compile = compile
        self.on_failure: OnFailure = on_failure
        self.kl_path: Tensor | None = None

    @public
    def paths(self, series: Series, ts: Tensor, samples: int = 1, *, seed: Seed = None) -> Tensor:
        """Latent paths of the posterior at times `ts`, `(samples, B, T, latent)`; see `LatentPath`."""
        check_bound("LatentSDE", samples, "elbo")
        q, outputs, ahead = self._read(series, ts, samples)
        seeds = seeds_of_draws("LatentSDE", seed, len(series), samples, q.mean.device)
        return self._solve(self.draw_starts(q, seeds, samples), outputs, along_paths(seeds), ahead, samples)[0]

    @public
    def elbo(
        self, series: Series, target: Series | None = None, samples: int = 1, *, kl_weight: float | Tensor = 1.0,
        bound: Bound = "elbo", seed: Seed = None,
    ) -> Tensor:  # fmt: skip
        """A bound of the evidence of the target's observations, `(B,)`; its mean is what to maximise.

        Args:
            series: what the encoder sees.
            target: what is to be explained; None for the same. What lies behind the series a forecast explains.
            samples: how many paths.
            kl_weight: of the divergence; smaller at the beginning of a training, and a bound only from 1 on.
            bound: "elbo"; or "iwae", the tighter bound by the mean of several paths' weights, for `kl="pathwise"` and
                `EulerMaruyama`, whose steps have exactly that density.
            seed: see `forward`.
        """
        check_bound("LatentSDE.elbo", samples, bound)
        if bound == "iwae" and not (self.divergence == "pathwise" and isinstance(self.solver, EulerMaruyama)):
            raise ValueError(
                f"LatentSDE.elbo(bound='iwae'): got kl={self.divergence!r} and {type(self.solver).__name__}, expected "
                "the density of the steps that were taken; try kl='pathwise' and EulerMaruyama"
            )
        target = series if target is None else target
        self.check_target(series, target)
        q, outputs, ahead = self._read(series, target.times, samples)
        seeds = seeds_of_draws("LatentSDE", seed, len(series), samples, q.mean.device)
        z, kl = self._solve(self.draw_starts(q, seeds, samples), outputs, along_paths(seeds), ahead, samples)
        self.kl_path = kl.mean(0)
        return self.bounded(self.decoder(z), target, self.start_cost(q, bound) + kl, kl_weight, bound)

    @public
    def prior(self, count: int, ts: Tensor, *, seed: int | None = None) -> Tensor:
        """What to expect before anything is observed, `(count, T, C)`, along paths from the first time of `(T,)`."""
        check_bound("LatentSDE.prior", count, "elbo")
        like = next((p for p in self.parameters() if p.is_floating_point()), ts)
        seeds = seeds_of_draws("LatentSDE", seed, count, 1, like.device)
        p = self.start(like)
        z = p.mean + p.stddev * normals(seeds, like.new_empty(count, p.mean.shape[-1]))
        options = self._options | {"brownian": along_paths(seeds), "batched_args": ()}
        path = self.solve(sdeint, self._plain(self.drift), self._plain(self.diffusion), z, ts, **options).value
        return self.likelihood.mean(self.decoder(path.transpose(0, 1)))

    @public
    @torch.no_grad()
    def spread(self, series: Series, ts: Tensor | None = None, samples: int = 32, *, seed: Seed = None) -> Spread:
        """How wide the posterior is beside the data, and how much of that is the diffusion's: see `Spread`.

        Args:
            series: what is known.
            ts: see `forward`; None for the series' own times.
            samples: how many starts, 2 at least; from each there are two paths.
            seed: see `forward`.
        """
        require_count("LatentSDE.spread", least=2, samples=samples)
        ts = series.times if ts is None else ts
        q, outputs, ahead = self._read(series, ts, 2 * samples)
        seeds = seeds_of_draws("LatentSDE", seed, len(series), samples, q.mean.device)
        z = self.draw_starts(q, seeds, samples).repeat(2, 1)
        noises = torch.cat((along_paths(seeds), along_paths(along_paths(seeds))))
        x = self.likelihood.mean(self.decoder(self._solve(z, outputs, noises, ahead, 2 * samples)[0]))
        one, other = x.unflatten(0, (2, samples)).unbind()
        there = (~ts.isnan()).expand(len(series), -1).unsqueeze(2)
        return Spread(_mean(one.var(0), there), _mean((one - other).square().mean(0) / 2, there), _variance(series))

    def _read(self, series: Series, ts: Tensor, samples: int) -> tuple[Any, Outputs, Ahead]:
        """The distribution of the start, when to look, and what lies ahead, for so many paths of each series."""
        outputs = outputs_of("LatentSDE", start_of("LatentSDE", series), ts).repeated(samples)
        context = self.encoder.context(series)
        return self.encoder.start(context), outputs, folded(Ahead.of(context, series), samples)

    def _solve(
        self, z: Tensor, outputs: Outputs, seeds: Tensor, ahead: Ahead, samples: int
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Paths `(samples, B, T, latent)` of the posterior, and how far each is from the prior, `(samples, B)`."""
        drift = partial(turned, self.drift, self.diffusion, self.control, self.autonomous)
        options = self._options | {"prior": self._plain(self.drift), "kl": self.divergence, "brownian": seeds}
        options["batched_args"] = tuple(range(len(ahead)))
        solution = self.solve(sdeint, drift, self._plain(self.diffusion), z, outputs.shared, *ahead, **options)
        return outputs.pick(solution.value).unflatten(0, (samples, -1)), solution.kl[-1].unflatten(0, (samples, -1))

    def _plain(self, function: Callable) -> Callable:
        return partial(plain, function, self.autonomous)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "solver": self.solver, "adjoint": self.adjoint, "noise": self.noise, "calculus": self.calculus,
            "compile": self.compiled,
        }  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """See `LatentPath`."""
        return {**super().__getstate__(), "kl_path": None if self.kl_path is None else self.kl_path.detach()}

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        words = f"noise={self.noise!r}, calculus={self.calculus!r}, kl={self.divergence!r}"
        return f"solver={self.solver}, adjoint={self.adjoint}, {words}, on_failure={self.on_failure!r}"


def _mean(x: Tensor, there: Tensor) -> Tensor:
    """The means `(B, C)` over the times that are there, `(B, T, 1)`, of `(B, T, C)`."""
    count = neighbours_first(there.to(x.dtype).transpose(1, 2))
    return neighbours_first(torch.where(there, x, 0.0).transpose(1, 2)) / count


def _variance(series: Series) -> Tensor:
    """The variance of each variable over the times at which it was observed, `(B, C)`; NaN where it never was."""
    mean = _mean(series.values, series.mask)
    return _mean((series.values - mean.unsqueeze(1)).square(), series.mask)
