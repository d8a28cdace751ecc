"""The model of score-based generation: a network as a denoiser on a Gaussian path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from torchimplicit.core.options import check_on_failure, is_count, is_number, require_count, require_instance
from torchimplicit.core.status import OnFailure, Solution, react
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.nn.paths.layer import check_field
from torchimplicit.nn.score.conditioned import OfClass
from torchimplicit.nn.score.exploding import EDM
from torchimplicit.nn.score.images import check_images, label_of, times_of
from torchimplicit.nn.score.loss import Weighting, check_weighting, denoising_errors
from torchimplicit.nn.score.noise import Normals
from torchimplicit.nn.score.prediction import Prediction, coefficients
from torchimplicit.nn.score.samplers.base import Sampler, Task
from torchimplicit.nn.score.samplers.dpm_solver import DPMSolverMultistep
from torchimplicit.nn.score.samplers.report import SamplingReport
from torchimplicit.nn.score.schedule import Schedule
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
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))
        ...
        ...     def forward(self, t, x):
        ...         return self.layers(torch.cat([x, t], 1))
        >>> model = ti.nn.Denoiser(Network(), shape=2, interval=None)
        >>> model.loss(torch.randn(8, 2)).mean().backward()
        >>> model.sample(5, seed=1).shape
        torch.Size([5, 2])
    """

    report: SamplingReport | Any
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
        check_on_failure(on_failure)
        check_field("Denoiser", network, False, "network")
        warn_of_batch_norm("Denoiser", "network", network, "samples")
        require_instance("schedule", schedule, Schedule, "ti.nn.EDM()")
        self.shape = torch.Size((shape,) if isinstance(shape, int) else shape)
        if len(self.shape) == 0 or not all(is_count(size) for size in self.shape):
            raise ValueError(f"Denoiser(shape={shape!r}): expected the shape of one sample, such as 2 or (1, 28, 28)")
        if prediction not in get_args(Prediction):
            expected = ", ".join(map(repr, get_args(Prediction)))
            raise ValueError(f"Denoiser(prediction={prediction!r}): expected one of {expected}")
        if not (is_number(std) and 0 < std < math.inf):
            raise ValueError(f"Denoiser(std={std!r}): expected the data's standard deviation, above 0")
        if not (is_number(label_dropout) and 0 <= label_dropout <= 1):
            raise ValueError(f"Denoiser(label_dropout={label_dropout!r}): expected a share from 0 to 1")
        if classes is not None:
            require_count("Denoiser", classes=classes)
        if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
            raise ValueError(f"Denoiser(interval={interval!r}): expected (least, largest) of the data, or None")
        self.network, self.schedule, self.std = network, schedule, float(std)
        self.prediction: Prediction = prediction
        self.classes, self.label_dropout = classes, label_dropout
        self.interval = None if interval is None else (float(interval[0]), float(interval[1]))
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
        """
        check_images("Denoiser", x, self.shape, None)
        times = times_of("Denoiser", t, x)
        label = label_of("Denoiser", label, self.classes, len(x), x.device)
        return self.denoise(x / self.schedule.alpha(times), self.schedule.level(times), label)

    def score(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        r"""$\nabla \log p_t(x)$; see `denoised`."""
        found, times = self.denoised(x, t, label), times_of("Denoiser", t, x)
        return (self.schedule.alpha(times) * found - x) / self.schedule.sigma(times).square()

    def velocity(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        r"""$dx/dt = f x - \frac12 g^2 \nabla \log p_t(x)$ of the probability flow; see `denoised`."""
        times = times_of("Denoiser", t, x)
        change = 0.5 * self.schedule.diffusion(times).square() * self.score(x, t, label)
        return self.schedule.drift(times) * x - change

    def loss(self, x: Tensor, label: Any = None, weighting: Weighting | None = None, levels: Any = None) -> Tensor:
        r"""The loss of every sample, $w(s)\, |D(x + s\, \varepsilon, s) - x|^2$ by dimension, at a noise of its own.

        Its cases are weights: that of a prediction, $1 / c_{out}^2$, is the mean squared error of a network of that
        kind against its target, whichever kind this one is; "eps" is DDPM's simple loss, "flow" flow matching.
        "likelihood" is $1 / s^2$, divided by the density of $\log s$: an unbiased estimate of the bound on the negative
        log-likelihood by dimension in nats, but for a constant. Noise is torch's generator's.

        Source: T. Karras et al., arXiv 2206.00364, equation 8; likelihood: D. Kingma et al., arXiv 2107.00630, equation
        15, Y. Song et al., arXiv 2101.09258.

        Args:
            x: data, `(B, *shape)`, grey levels spread out.
            label: class, an int or `(B,)`; None for no class.
            weighting: see above; None for that of the prediction.
            levels: how noise levels are drawn, a distribution of $\log s$ such as `Normal(-1.2, 1.2)`, EDM's; None for
                all of the schedule's alike.

        Returns:
            `(B,)`.

        Raises:
            TypeError: data or classes are not of a kind that can be.
            ValueError: data have another shape or values outside of `interval`, or there is no such class.
        """
        check_images("Denoiser.loss", x, self.shape, self.interval)
        weighting = check_weighting(weighting, self.prediction, levels)
        label = label_of("Denoiser.loss", label, self.classes, len(x), x.device)
        if label is not None and self.training and self.label_dropout:
            hidden = torch.rand(len(x), device=x.device) < self.label_dropout
            label = torch.where(hidden, self.no_label(label), label)
        return denoising_errors(self, x, label, weighting, levels)

    def sample(
        self,
        count: int,
        sampler: Sampler = DPMSolverMultistep(),
        *,
        seed: Seed = None,
        label: Any = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Samples, `(count, *shape)`: each a function of its seed and its class, and of nothing else.

        Args:
            count: how many.
            sampler: the way from noise to samples.
            seed: of the noise: an int for all, `(count,)` for one each; None draws one from torch's generator, another
                one in every process of `torch.distributed`, which `report.seed` tells.
            label: class, an int or `(count,)`; None for no class.
            guidance: how much of the class, 1 for what it is, see `OfClass`.

        Raises:
            ConvergenceError: some were not drawn to the end (with `on_failure="raise"`).
        """
        require_count("Denoiser.sample", least=0, count=count)
        require_instance("sampler", sampler, Sampler, "ti.nn.DPMSolverMultistep()")
        if not is_number(guidance) or (self.classes is None and guidance != 1):
            raise ValueError(f"Denoiser.sample(guidance={guidance!r}): expected a number, and 1 without classes")
        like = next((p for p in self.parameters() if p.is_floating_point()), self.like)
        noise = Normals(seed, count, self.shape, like.detach())
        label = label_of("Denoiser.sample", label, self.classes, count, like.device)
        least, most = self.schedule.levels
        start = math.hypot(most, self.std) * noise.draw(0)
        return self.solve(_drawn, sampler, Task(OfClass(self, label, guidance), start, least, most, noise)).value

    def no_label(self, like: Tensor) -> Tensor:
        """The class of samples without one."""
        return torch.full_like(like, self.classes or 0)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return (
            f"shape={tuple(self.shape)}, schedule={self.schedule}, prediction={self.prediction!r}, std={self.std}, "
            f"classes={self.classes}, interval={self.interval}, on_failure={self.on_failure!r}"
        )


def _drawn(sampler: Sampler, task: Task, *, on_failure: OnFailure) -> Solution:
    """A sampler's samples, those that failed being told of."""
    solution = sampler.draw(task)
    react(solution.report, on_failure, solution)
    return solution
