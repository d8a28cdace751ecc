"""Training a continuous normalising flow, and pictures of what it has learned."""

from __future__ import annotations

from math import ceil, isqrt, log, sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, ...]


class Flow(EquilibriumModule):
    """Trains a flow by the mean negative log-likelihood of its data, in nats; see `EquilibriumModule`.

    Logs `nll`, and in validation and test also `bits`, the same in bits for each number of a sample; both in the units
    of the data. The test also logs `test/nll_gaussian` and `test/nll_kernel_density`, what a normal density and a
    kernel density estimate, both fit to the training samples, reach on the test samples: the least for a flow to do.

    Args:
        network: has `log_prob(x)`, `(B,)` for samples `(B, n)`, `sample(count)`, and for pictures `paths(count)`,
            `(times, count, n)`; may have `width`, the size of a sample, which is compared with the data, and
            `settle(samples)`, which sees the training samples `(N, n)` once, before training.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: data and network do not fit each other (once there are data, before any training).
    """

    def __init__(self, network: nn.Module, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.measure(nll=MeanMetric())
        self._numbers = 1

    def setup(self, stage: str) -> None:
        """Compares the data with the network, and lets the network settle on it before it is trained.

        Raises:
            UsageError: they do not fit each other.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        width = getattr(self.network, "width", None)
        if data is None:
            return
        data.setup()
        self._numbers = got = data.splits.train[0][0].numel()
        if width is not None and got != width:
            raise UsageError(
                f"Flow: the data has samples of {got} numbers, the network is made for {width}. Try "
                f"--model.network.width {got}."
            )
        settle = getattr(self.network, "settle", None)
        if stage == "fit" and callable(settle):  # weights of a checkpoint come after it and replace what it found
            settle(data.splits.train.tensors[0].flatten(1))

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """The mean negative log-likelihood."""
        x = batch[0]
        nll = -self.network.log_prob(x)
        self.count(stage, nll.detach(), torch.ones_like(nll.detach()))
        return nll.mean()

    def on_validation_epoch_end(self) -> None:
        """Logs the solves of the validation, and the likelihood in bits."""
        super().on_validation_epoch_end()
        self._log_bits("val")

    def on_test_epoch_end(self) -> None:
        """Logs the solves of the test, the likelihood in bits, and the two estimates to compare with."""
        super().on_test_epoch_end()
        self._log_bits("test")
        splits = self.trainer.datamodule.splits  # type: ignore[attr-defined]
        train, test = (getattr(splits, name).tensors[0].flatten(1) for name in ("train", "test"))
        self.log("test/nll_gaussian", gaussian_nll(train, test))
        self.log("test/nll_kernel_density", kernel_density_nll(train, test))

    def _log_bits(self, stage: Stage) -> None:
        nll = self.metrics[f"{stage}_metrics"].compute()[f"{stage}/nll"]
        self.log(f"{stage}/bits", nll / (log(2) * self._numbers))

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Samples of the data, samples of the flow, its density, and how samples get to their places, in the plane.

        Of vectors of 9, 16, 25, ... numbers, samples of the data and of the flow as square images; of others, nothing.
        """
        from matplotlib.figure import Figure

        x = batch[0]
        side = isqrt(x[0].numel())
        if side > 2 and side**2 == x[0].numel():
            with torch.no_grad():
                sampled = self.network.sample(30)
            return {"samples": square_images({"data": x[:30].flatten(1), "samples": sampled})}
        if x[0].numel() != 2:
            return {}
        reach = float(x.abs().max()) * 1.1
        line = torch.linspace(-reach, reach, 120, device=x.device)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
        with torch.no_grad():
            density = self.network.log_prob(grid).exp().reshape(120, 120).cpu()
            path = self.network.paths(256).cpu()
        figure = Figure(figsize=(13, 3.4), layout="constrained")
        axes = figure.subplots(1, 4)
        axes[0].scatter(*x[:2000].cpu().T, s=1)
        axes[1].scatter(*path[-1].T, s=2)
        axes[2].imshow(density, extent=[-reach, reach] * 2, origin="lower")
        axes[3].plot(path[:, :64, 0], path[:, :64, 1], linewidth=0.6, color="0.5")
        axes[3].scatter(*path[-1, :64].T, s=4)
        for ax, title in zip(axes, ("data", "samples", "density", "from the normal density"), strict=True):
            ax.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            ax.set_axis_off()
        return {"flow": figure}


def square_images(panels: dict[str, Tensor]) -> Figure:
    """A figure with a panel for each name, of `(count, side**2)` numbers as grey images, all on one scale.

    Args:
        panels: the first one's least and largest number are black and white.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    first = next(iter(panels.values()))
    low, high = float(first.min()), float(first.max())
    for ax, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        side = isqrt(rows.shape[1])
        across = ceil(sqrt(len(rows)))
        images = rows.new_full((across * ceil(len(rows) / across), side + 1, side + 1), high)  # a gap beside each
        images[: len(rows), :side, :side] = rows.reshape(-1, side, side)
        wall = images.reshape(-1, across, side + 1, side + 1).transpose(1, 2).flatten(2).flatten(0, 1)
        ax.imshow(wall.cpu().numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        ax.set_title(title)
        ax.set_axis_off()
    return figure


def gaussian_nll(train: Tensor, test: Tensor) -> float:
    """Mean negative log-likelihood, in nats, of a normal density with the training samples' mean and covariance."""
    covariance = torch.cov(train.double().T).reshape(train.shape[1], -1)
    covariance = covariance + 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance))
    normal = torch.distributions.MultivariateNormal(train.double().mean(0), covariance)
    return -float(normal.log_prob(test.double()).mean())


def kernel_density_nll(train: Tensor, test: Tensor, most: int = 5000) -> float:
    """Mean negative log-likelihood, in nats, of Gaussian kernels on the training samples.

    The width of the kernels is that of twelve which is best on a fifth of the training samples, left out.

    Args:
        train: `(N, n)`; the first `most` are used.
        test: `(M, n)`.
        most: how many kernels at most.
    """
    train = train[:most].double()
    held = len(train) // 5
    widths = torch.logspace(-1.5, 0.5, 12) * float(train.std(0).mean())
    scores = [_kernel_nll(train[held:], train[:held], float(width)) for width in widths]
    best = float(widths[min(range(len(scores)), key=scores.__getitem__)])
    return _kernel_nll(train, test.double(), best)


def _kernel_nll(centres: Tensor, points: Tensor, width: float) -> float:
    total = 0.0
    for part in points.split(1000):
        exponent = -torch.cdist(part, centres).square() / (2 * width**2)
        total -= float(torch.logsumexp(exponent, 1).sum())
    norm = torch.tensor(len(centres)).log() + points.shape[1] * torch.tensor(width * (2 * torch.pi) ** 0.5).log()
    return total / len(points) + float(norm)
