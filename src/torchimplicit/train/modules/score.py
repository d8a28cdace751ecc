"""Training a score model of images."""

from __future__ import annotations

from math import e, log, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from torchimplicit.core.options import require, require_count
from torchimplicit.nn import Denoiser, DPMSolverMultistep
from torchimplicit.nn.paths.cnf import Trace
from torchimplicit.nn.score.loss import Weighting
from torchimplicit.ode import PathSolver, Tsit5, odeint
from torchimplicit.train.modules.equilibrium import Stage
from torchimplicit.train.modules.generative import Batch, GenerativeModule
from torchimplicit.train.quality import Quality, Reference, Verdict
from torchimplicit.train.quality.inpainting import inpaint, inpainting_figures, upper_half
from torchimplicit.train.quality.pictures import strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Score(GenerativeModule):
    r"""Trains a `torchimplicit.nn.Denoiser` by denoising; see `GenerativeModule` for what a test measures.

    In validation and test it also logs `bound`, an estimate of the bound on the negative log-likelihood in bits for
    each number of an image, $\frac12 \log 2 \pi e s^2 + \int |D - x|^2 / s^2 \, d \log s$ from the least level `s` on.
    It takes no path; given the class, where there are classes. With `inpaintings` the test also hides the lower half of
    so many test images and draws it in two ways, as often as `draws` says, and logs `quality.inpainting_figures` of
    them, such as `test/inpainting_psnr/guidance`.

    Source: D. Kingma et al., arXiv 2107.00630, equation 15.

    Args:
        network: what is trained.
        weighting: see `Denoiser.loss`; None for that of the network's prediction.
        mean: of the logarithm of the noise levels that training draws; None draws all levels alike.
        spread: its standard deviation.
        guidance: of the classes when samples are judged, see `Denoiser.sample`.
        trace: of likelihoods, "hutchinson", one probe for an image, or "exact".
        solver: of likelihoods.
        inpaintings: how many test images are inpainted.
        **options: see `GenerativeModule`.
    """

    def __init__(
        self,
        network: Denoiser,
        weighting: Weighting | None = None,
        mean: float | None = None,
        spread: float = 1.2,
        guidance: float = 1.0,
        trace: Trace = "hutchinson",
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-3),
        inpaintings: int = 0,
        **options: Any,
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.weighting, self.mean, self.spread, self.guidance = weighting, mean, spread, guidance
        self.trace: Trace = trace
        self.solver, self.inpaintings = solver, inpaintings
        require_count(self, "inpaintings", least=0)
        require(self, "spread", spread > 0, "a number above 0")
        self.measure(bound=MeanMetric())
        self.metrics["train_metrics"] = MetricCollection({})

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """The denoising loss."""
        images, labels = batch
        x, label = self.scaling(images, self._known_levels()), labels if self.classes else None
        drawn = None if self.mean is None else torch.distributions.Normal(self.mean, self.spread)
        loss = self.network.loss(x, label, self.weighting, drawn).mean()
        if stage != "train":
            least, _ = self.network.schedule.levels
            nats = self.network.loss(x, label, "likelihood") + 0.5 * log(2 * pi * e * least**2)
            bits = (nats - self.scaling.log_det(images, self._known_levels()) / x[0].numel()) / log(2)
            self.count(stage, bits, torch.ones_like(bits))
        return loss

    def draw(self, count: int, sampler: Any, seed: int, label: Tensor | None) -> tuple[Tensor, int]:
        """See `GenerativeModule.draw`."""
        guidance = self.guidance if label is not None else 1.0
        with torch.no_grad():
            options = {"seed": seed, "label": label, "guidance": guidance}
            drawn = self.network.sample(count, sampler or DPMSolverMultistep(), **options)
        return drawn, self.network.report.nfev

    def log_prob(self, x: Tensor, label: Tensor | None) -> Tensor:
        """See `GenerativeModule.log_prob`; by the probability flow."""
        return self.network.log_prob(x, label, trace=self.trace, solver=self.solver)

    def judge(self, splits: Any, reference: Reference) -> tuple[list[Quality], Verdict]:
        """That of `GenerativeModule`; logs what inpainting reaches."""
        if self.inpaintings:
            images, labels = splits.test.__getitems__(list(range(min(self.inpaintings, len(splits.test)))))
            drawn = [self.inpaint(images, seed) for seed in range(self.draws)]
            found = inpainting_figures(drawn, self.unit(images), labels, reference.features)
            self.log_dict({f"test/inpainting_{name}": value for name, value in found.items()})
        return super().judge(splits, reference)

    def inpaint(self, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """Images in [-1, 1], their lower half drawn by either way of `quality.inpaint`; of numbers in [0, levels)."""
        found = inpaint(self.network, self.scaling(images, self._known_levels()).to(self.device), seed=seed)
        return {name: self.unit(self._shown(each.images)).cpu() for name, each in found.items()}

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Those of `GenerativeModule`, and how noise becomes images."""
        labels = batch[1][:8]
        path = self.trajectory(len(labels), label=labels)
        shown = self.unit(self._shown(path)).flatten(3)
        figures = {"from noise to images": strips(shown, ("the noisy image", "the image behind it"))}
        if self.inpaintings:
            images = batch[0][:12]
            half = self.unit(images) * upper_half(images.shape[1:]) - 1.0 * ~upper_half(images.shape[1:])
            rows = {"seen": half} | self.inpaint(images) | {"true": self.unit(images)}
            wall = torch.stack([each.flatten(1) for each in rows.values()], 1)
            figures["the lower half drawn"] = strips(wall[None], names=tuple(rows))
        return super().pictures(batch) | figures

    def trajectory(self, count: int, times: int = 12, seed: int = 0, label: Tensor | None = None) -> Tensor:
        """What the probability flow makes of noise on its way, and what it takes to be the image behind it.

        Args:
            count: how many samples.
            times: at how many noise levels, from the most to the least, even in their logarithm.
            seed: of the noise.
            label: classes `(count,)`, for a network with classes.

        Returns:
            `(2, times, count, ...)`: the noisy images, scaled to the data's size, and the denoised ones.
        """
        model: Denoiser = self.network
        least, most = model.schedule.levels
        taus = -torch.linspace(log(most), log(least), times)
        generator = torch.Generator().manual_seed(seed)
        start = (most**2 + model.std**2) ** 0.5 * torch.randn(count, *model.shape, generator=generator)
        known = None if self.classes is None else label

        def denoised(tau: Tensor, u: Tensor) -> Tensor:
            return model.denoise(u, torch.exp(-tau).expand(len(u), *(1,) * (u.dim() - 1)), known)

        with torch.no_grad():
            path = odeint(lambda tau, u: denoised(tau, u) - u, start, taus, solver=Tsit5(rtol=1e-5, atol=1e-5)).value
            clean = torch.stack([denoised(tau, u) for tau, u in zip(taus, path, strict=True)])
            sizes = (torch.exp(-2 * taus) + model.std**2).sqrt().view(-1, *(1,) * start.dim())
        return torch.stack((path / sizes * model.std, clean))
