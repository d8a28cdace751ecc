"""Training a continuous normalising flow, and pictures of what it has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from torchimplicit.train.catalogue import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, ...]


class Flow(EquilibriumModule):
    """Trains a flow by the mean negative log-likelihood of its data, in nats; see `EquilibriumModule`.

    Logs `nll`. The test also logs `test/nll_gaussian` and `test/nll_kernel_density`, what a normal density and a kernel
    density estimate, both fit to the training samples, reach on the test samples: the least that a flow must do.

    Args:
        network: has `log_prob(x)`, `(B,)` for samples `(B, n)`, `sample(count)`, and for pictures `paths(count)`,
            `(times, count, n)`; may have `width`, the size of a sample, which is compared with the data.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: data and network do not fit each other (once there are data, before any training).
    """

    def __init__(self, network: nn.Module, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.measure(nll=MeanMetric())

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: they do not fit each other.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        width = getattr(self.network, "width", None)
        if data is None or width is None:
            return
        data.setup()
        got = data.splits.train[0][0].numel()
        if got != width:
            raise UsageError(
                f"Flow: the data has samples of {got} numbers, the network is made for {width}. Try "
                f"--model.network.width {got}."
            )

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """The mean negative log-likelihood."""
        x = batch[0]
        nll = -self.network.log_prob(x)  # type: ignore[operator]
        self.count(stage, nll.detach(), torch.ones_like(nll.detach()))
        return nll.mean()

    def on_test_epoch_end(self) -> None:
        """Logs the solves of the test, and the two estimates to compare with."""
        super().on_test_epoch_end()
        splits = self.trainer.datamodule.splits  # type: ignore[attr-defined]
        train, test = (getattr(splits, name).tensors[0].flatten(1) for name in ("train", "test"))
        self.log("test/nll_gaussian", gaussian_nll(train, test))
        self.log("test/nll_kernel_density", kernel_density_nll(train, test))

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Samples of the data, samples of the flow, its density, and how samples get to their places, in the plane."""
        from matplotlib.figure import Figure

        x = batch[0]
        if x[0].numel() != 2:
            return {}
        reach = float(x.abs().max()) * 1.1
        side = torch.linspace(-reach, reach, 120, device=x.device)
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
        with torch.no_grad():
            density = self.network.log_prob(grid).exp().reshape(120, 120).cpu()  # type: ignore[operator]
            path = self.network.paths(256).cpu()  # type: ignore[operator]
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
