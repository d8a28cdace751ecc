"""The model of score-based generation: a network as a denoiser on a Gaussian path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import require_count, require_instance
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.nn.paths.cnf import CNF, Trace
from torchimplicit.nn.paths.layer import shape_of
from torchimplicit.nn.score.conditioned import conditioned
from torchimplicit.nn.score.exploding import EDM
from torchimplicit.nn.score.guidance import Guidance
from torchimplicit.nn.score.images import check_images, label_of, times_of
from torchimplicit.nn.score.likelihood import LevelField, WideNormal, check_continuous, check_width, dequantised
from torchimplicit.nn.score.loss import Weighting, check_weighting, denoising_errors
from torchimplicit.nn.score.noise import Normals
from torchimplicit.nn.score.options import check_model, warn_of_training
from torchimplicit.nn.score.prediction import Prediction, coefficients
from torchimplicit.nn.score.samplers.base import Sampler, Task, drawn
from torchimplicit.nn.score.samplers.dpm_solver import DPMSolverMultistep
from torchimplicit.nn.score.schedule import Schedule
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.sde.seeds import Seed


class Denoiser(ImplicitLayer):
    r"""A score model: a network that is trained to see the image behind the noise, and so knows the data's score.

    On the path $x_t = \alpha x + \sigma \varepsilon$ of a schedule the best denoiser is $D = E[x \mid x_t]$, and
    $\nabla \log p_t(x_t) = (\alpha D - x_t) / \sigma^2$. What samplers and likelihoods follow is the probability flow:
    in $u = x_t / \alpha$ and $\tau = -\log s$ it is $du/d\tau = D - u$, which is of order one at every level.

    The network is asked for $F$ by `network(t, x)`, or `network(t, x, label)`, like a field of `nn.CNF`: `t` is
    $\log s / 4$, `(B, 1, ...)`, for $s = \sigma / \alpha$; `x` is the noisy image, scaled to standard deviation 1. What
    $F$ is says `prediction`. Not for data of few dimensions whose density is wanted to many digits: train a `nn.CNF`.

    Source: Y. Song et al., arXiv 2011.13456; T. Karras et al. (EDM), arXiv 2206.00364, whose scaling it is.

    Args:
        network: what is trained; a module, or a function of its arguments alone.
        schedule: the path: `EDM()`, `VP()`, `SubVP()`, `VE()`, `Straight()`.
        shape: of one sample, `2` or `(1, 28, 28)`.
        prediction: what the network gives: "edm", data and noise mixed such that it is always of size one; "eps", the
            noise; "x", the image; "v", `alpha eps - sigma x` of a path that keeps the variance; "flow", `eps - x`.
        std: the data's standard deviation.
        classes: how many classes a network with labels knows. It gets int64 `(B,)` from 0 to `classes`, of which the
            last one means no class, so that an embedding has `classes + 1` rows. None for a network without.
        label_dropout: the share of labels that a loss hides in training, which guidance needs.
        interval: what values of data lie in; None for data without bounds.
        on_failure: "warn" (default), "raise" or "ignore" samples that are not drawn to the end.

    Attributes:
        report: how the last samples were drawn or likelihoods found; None before the first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Network(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(3, 2)
        ...
        ...     def forward(self, t, x):
        ...         return self.layer(torch.cat([x, t], 1))
        >>> model = ti.nn.Denoiser(Network(), shape=2, interval=None)
        >>> model.loss(torch.randn(8, 2)).mean().backward()
        >>> model.sample(5, seed=1).shape
        torch.Size([5, 2])
    """

    like: Tensor

    def __init__(
        self,
        network: Callable,
        schedule: Schedule = EDM(),
        *,
        shape: int | Sequence[int],
        prediction: Prediction = "edm",
        std: float = 0.5,
        classes: int | None = None,
        label_dropout: float = 0.1,
        interval: tuple[float, float] | None = (-1.0, 1.0),
        on_failure: OnFailure = "warn",
    ):
        """Keeps the network and the options."""
        super().__init__()
        self.shape = shape_of("Denoiser", shape)
        check_model(network, schedule, prediction, std, classes, label_dropout, interval, on_failure)
        self.network, self.schedule, self.std = network, schedule, float(std)
        self.prediction: Prediction = prediction
        self.classes, self.label_dropout = classes, label_dropout
        self.interval = interval
        self.on_failure: OnFailure = on_failure
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        """`denoised`."""
        return self.denoised(x, t, label)

    def denoise(self, u: Tensor, s: Tensor, label: Tensor | None = None) -> Tensor:
        r"""$D(u, s)$, the mean of the images behind $u = x + s\, \varepsilon$: what all else is made of.

        Args:
            u: noisy samples, `(B, *shape)`.
            s: noise levels, `(B, 1, ...)`.
            label: int64 `(B,)`, with classes.
        """
        skip, out = coefficients(self.prediction, s, self.std)
        scaled = u / (s.square() + self.std**2).sqrt()
        found = self.network(s.log() / 4, scaled, *(() if self.classes is None else (label,)))
        if not isinstance(found, Tensor) or found.shape != u.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"Denoiser: the network returned {got}, expected {tuple(u.shape)}, the shape of its input")
        return skip * u + out * found

    def denoised(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        """The mean of the images behind `x`, the state of the schedule's path at `t`.

        Args:
            x: states, `(B, *shape)`.
            t: times of the schedule, one or `(B,)`.
            label: class, an int or `(B,)`; None for no class.

        Raises:
            ValueError: states of another shape, or times outside of `schedule.span`.
        """
        check_images("Denoiser", x, self.shape, None, like=self)
        times = times_of("Denoiser", t, x, self.schedule.span)
        label = label_of("Denoiser", label, self.classes, len(x), x.device)
        return self.denoise(x / self.schedule.alpha(times), self.schedule.level(times), label)

    def score(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        r"""$\nabla \log p_t(x)$; see `denoised`."""
        found, times = self.denoised(x, t, label), times_of("Denoiser", t, x, self.schedule.span)
        return (self.schedule.alpha(times) * found - x) / self.schedule.sigma(times).square()

    def velocity(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        r"""$dx/dt = f x - \frac12 g^2 \nabla \log p_t(x)$ of the probability flow; see `denoised`."""
        times = times_of("Denoiser", t, x, self.schedule.span)
        change = 0.5 * self.schedule.diffusion(times).square() * self.score(x, t, label)
        return self.schedule.drift(times) * x - change

    def loss(self, x: Tensor, label: Any = None, weighting: Weighting | None = None, levels: Any = None) -> Tensor:
        r"""The loss of every sample, $w(s)\, |D(x + s\, \varepsilon, s) - x|^2$ by dimension, at a noise of its own.

        Its cases are weights: that of a prediction, $1 / c_{out}^2$, is the mean squared error of a network of that
        kind against its target, whichever kind this one is; "eps" is DDPM's simple loss, "flow" flow matching.
        "likelihood" is $1 / s^2$, divided by the density of $\log s$: an unbiased estimate of the bound on the negative
        log-likelihood by dimension in nats, but for a constant. Noise is torch's generator's.

        Source: T. Karras et al., arXiv 2206.00364, equation 8; likelihood: D. Kingma et al., arXiv 2107.00630; Y. Song
        et al., arXiv 2101.09258.

        Args:
            x: data, `(B, *shape)`, grey levels spread out.
            label: class, an int or `(B,)`; None for no class.
            weighting: see above; None for that of the prediction.
            levels: how noise levels are drawn, a distribution of $\log s$ such as `Normal(-1.2, 1.2)`, EDM's; None for
                all of the schedule's alike.

        Returns:
            `(B,)`.

        Raises:
            TypeError, ValueError: see `log_prob`; or NaN, or there is no such class.
        """
        check_images("Denoiser.loss", x, self.shape, self.interval, finite=True, like=self)
        weighting = check_weighting(weighting, self.prediction, levels)
        label = label_of("Denoiser.loss", label, self.classes, len(x), x.device)
        if label is not None and self.training and self.label_dropout:
            label = label.masked_fill(torch.rand(len(x), device=x.device) < self.label_dropout, self.classes or 0)
        return denoising_errors(self, x, label, weighting, levels)

    def sample(
        self,
        count: int,
        sampler: Sampler = DPMSolverMultistep(),
        *,
        seed: Seed = None,
        label: Any = None,
        guidance: float = 1.0,
        condition: Guidance | None = None,
    ) -> Tensor:
        """Samples, `(count, *shape)`: each a function of its seed and its class, and of nothing else.

        Args:
            count: how many.
            sampler: the way from noise to samples.
            seed: of the noise: an int for all, `(count,)` for one each; None draws one from torch's generator, another
                one in every process of `torch.distributed`, which `report.seed` tells.
            label: class, an int or `(count,)`; None for no class.
            guidance: how much of the class, 1 for what it is, see `OfClass`.
            condition: what was measured of each sample.

        Raises:
            ConvergenceError: some were not drawn to the end (with `on_failure="raise"`).
        """
        require_count("Denoiser.sample", least=0, count=count)
        require_instance("sampler", sampler, Sampler, "ti.nn.DPMSolverMultistep()")
        warn_of_training("Denoiser.sample", self.network)
        like = self._like()
        noise = Normals(seed, count, self.shape, like)
        label = label_of("Denoiser.sample", label, self.classes, count, like.device)
        least, most = self.schedule.levels
        start = math.hypot(most, self.std) * noise.draw(0)
        denoise = conditioned(self, label, guidance, condition, start)
        return self.solve(drawn, sampler, Task(denoise, start, least, most, noise)).value

    def flow(self, trace: Trace = "exact", solver: PathSolver = Tsit5(), adjoint: PathAdjoint = Checkpointed()) -> CNF:
        r"""The probability flow as a `CNF` on the same weights, from the most noise to the least, in $-\log s$.

        Its base is normal with variance `s_max^2 + std^2`: a log-density is off by some `|mean| / s_max` for that, with
        either sign. Its context is the class, `(B,)`.

        Args:
            trace: "exact" or "hutchinson", see `CNF`.
            solver: see `odeint`.
            adjoint: see `odeint`.
        """
        like = self._like()
        least, most = self.schedule.levels
        ts = torch.tensor([-math.log(most), -math.log(least)], dtype=like.dtype, device=like.device)
        base = WideNormal(self.shape, math.hypot(most, self.std), like)
        options: dict[str, Any] = {"trace": trace, "solver": solver, "adjoint": adjoint, "on_failure": self.on_failure}
        return CNF(LevelField(self), self.shape, ts, base=base, **options)

    def log_prob(self, x: Tensor, label: Any = None, **options: Any) -> Tensor:
        r"""$\log p(x)$ of the probability flow, in nats, `(B,)`, differentiable by data and weights; see `flow`.

        It is the density of the data with noise of the least level, which must be far below all that matters in them.

        Source: Y. Song et al., arXiv 2011.13456, equation 39.

        Args:
            x: data with a density, `(B, *shape)`.
            label: class, an int or `(B,)`; None for no class.
            **options: of `flow`: `trace="hutchinson"`, whose probe is torch's generator's, `solver`, `adjoint`.

        Raises:
            TypeError, ValueError: integers, grey levels, values outside of `interval`, another shape.
        """
        check_images("Denoiser.log_prob", x, self.shape, self.interval, like=self)
        check_continuous("Denoiser.log_prob", x)
        label = label_of("Denoiser.log_prob", label, self.classes, len(x), x.device)
        flow = self.flow(**options)
        self.counted()  # names the owner of what fails
        flow.failures = self.failures
        try:
            return flow.log_prob(x, label)
        finally:
            self.report = flow.report

    def bits_per_dimension(
        self, images: Tensor, label: Any = None, *, levels: int = 256, seed: Seed = None, **options: Any
    ) -> Tensor:
        r"""The bits that an entry of each image takes, `(B,)`: a bound on its code, in the unit that papers compare.

        Level $k$ of $L$ is spread evenly over its width within `interval`, and $-\frac1n \log_2 p - \log_2 w$ with the
        width $w$ is in the mean an upper bound on $-\frac1n \log_2 P(k)$.

        Source: L. Theis, A. van den Oord, M. Bethge, arXiv 1511.01844, section 3.1.

        Args:
            images: grey levels, `(B, *shape)`, integers from 0 to `levels - 1`.
            label: see `log_prob`.
            levels: how many grey levels there are.
            seed: of where within its level each entry is, as in `sample`.
            **options: see `log_prob`.

        Raises:
            TypeError, ValueError: images are no integers, or of other levels or shape; or data have no interval.
        """
        require_count("Denoiser.bits_per_dimension", least=2, levels=levels)
        if self.interval is None:
            raise ValueError("Denoiser.bits_per_dimension: got interval=None, expected (least, largest) of the data")
        if not isinstance(images, Tensor) or images.shape[1:] != self.shape:
            check_images("Denoiser.bits_per_dimension", images, self.shape, None)
        width = (self.interval[1] - self.interval[0]) / levels
        part = torch.special.ndtr(Normals(seed, len(images), self.shape, self._like()).draw(0))
        x = dequantised("Denoiser.bits_per_dimension", images, levels, self.interval, part)
        check_width("Denoiser.bits_per_dimension", width, self.schedule.levels[0])
        return -self.log_prob(x, label, **options) / (self.shape.numel() * math.log(2)) - math.log2(width)

    def _like(self) -> Tensor:
        """A tensor of the dtype and device that samples have."""
        return next((p for p in self.parameters() if p.is_floating_point()), self.like).detach()

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return (
            f"shape={tuple(self.shape)}, schedule={self.schedule}, prediction={self.prediction!r}, std={self.std}, "
            f"classes={self.classes}, interval={self.interval}, on_failure={self.on_failure!r}"
        )
