"""Training by squared errors: maps, paths, slopes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from torchimplicit.ode import Tsit5, odeint
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class Regressor(EquilibriumModule):
    """Trains a network by the mean square of its errors; see `EquilibriumModule`. Logs `error`, the root of it.

    Args:
        network: `(B, ...)` to a prediction like the target.
        **options: see `EquilibriumModule`.
    """

    def __init__(self, network: nn.Module, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.measure(error=RootMean())

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """The mean square of the errors."""
        x, target = batch
        errors = (self(x) - target).square()
        per_sample = errors.detach().flatten(1).mean(1)
        self.count(stage, per_sample, torch.ones_like(per_sample))
        return errors.mean()

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Paths as they are and as they are predicted, where the target is a path in the plane."""
        from matplotlib.figure import Figure

        x, target = batch
        if target.dim() != 3 or target.shape[2] != 2:
            return {}
        with torch.no_grad():
            predicted = self(x).cpu()
        figure = Figure(figsize=(5, 5), layout="constrained")
        ax = figure.subplots()
        for i, (path, guess) in enumerate(zip(target.cpu()[:40], predicted[:40], strict=True)):
            ax.plot(*path.T, "k.", markersize=3, label=None if i else "data")
            ax.plot(*guess.T, color="C1", linewidth=1, label=None if i else "learned")
        ax.set_aspect("equal")
        ax.legend()
        return {"paths": figure}


class RootMean(MeanMetric):
    """The square root of a mean."""

    def compute(self) -> Tensor:
        """See the class."""
        return super().compute().sqrt()


class Mechanics(Regressor):
    """Trains the slopes of a mechanical system, then lets it run: does it keep its energy? See `Regressor`.

    The test starts paths at `starts` test samples and follows them for `duration` by the learned slopes, with a solver
    that is far more accurate than they are. It logs `test/drift`, the root mean square of how far the true energy (the
    data's `height`) strays from that at the start, and `test/distance`, of how far the states stray from the true path.

    Args:
        network: states `(B, n)` to slopes `(B, n)`.
        duration: of a path.
        starts: how many paths.
        **options: see `EquilibriumModule`.
    """

    def __init__(self, network: nn.Module, duration: float = 20.0, starts: int = 32, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.duration, self.starts = duration, starts

    def on_test_epoch_end(self) -> None:
        """Lets the paths run."""
        super().on_test_epoch_end()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        start = data.splits.test.tensors[0][: self.starts].to(self.device)
        learned, true = self.follow(start), self.follow(start, data.field)
        height = data.height(learned)
        self.log("test/drift", (height - height[0]).square().mean().sqrt())
        self.log("test/distance", (learned - true).square().sum(-1).mean().sqrt())

    def follow(self, start: Tensor, field: Any = None, times: int = 200) -> Tensor:
        """Paths `(times, B, n)` from `(B, n)` along the learned slopes, or along a field that is given."""
        ts = torch.linspace(0, self.duration, times, device=start.device)
        solver = Tsit5(rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            if field is not None:
                return odeint(field, start, ts, solver=solver).value
            return odeint(lambda t, y: self.network(y), start, ts, solver=solver).value

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Phase portrait of the learned slopes."""
        from matplotlib.figure import Figure

        paths = self.follow(batch[0][:12].to(self.device)).cpu()
        figure = Figure(figsize=(5, 5), layout="constrained")
        ax = figure.subplots()
        ax.plot(paths[..., 0], paths[..., 1], linewidth=0.8)
        ax.set(xlabel="angle", ylabel="momentum", title=f"twelve paths of length {self.duration:g}")
        return {"paths": figure}
