"""Training networks that predict irregular series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torchmetrics import MetricCollection

from torchimplicit.core.options import require
from torchimplicit.train.data.series import SeriesBatch
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage
from torchimplicit.train.modules.errors_of_series import errors
from torchimplicit.train.modules.pictures_of_series import draw_series
from torchimplicit.train.networks.series.last_values import last_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SeriesModule(EquilibriumModule):
    """Base of the modules that train networks of irregular series; see `EquilibriumModule`.

    Args:
        network: see `networks.SeriesNetwork`.
        kl_wait: epochs in which the divergence from the prior costs nothing.
        kl_rate: its weight is then `kl_most * (1 - kl_rate ** epochs)`.
        kl_most: see `kl_rate`; the weight in validation and test.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the network is made for another number of variables (once there are data).
    """

    def __init__(
        self, network: nn.Module, kl_wait: int = 10, kl_rate: float = 0.99, kl_most: float = 1.0, **options: Any
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.kl_wait, self.kl_rate, self.kl_most = kl_wait, kl_rate, kl_most
        require(self, "kl_wait", kl_wait >= 0, "a number >= 0")
        require(self, "kl_rate", 0 <= kl_rate <= 1, "a number from 0 to 1")
        require(self, "kl_most", kl_most >= 0, "a number >= 0")

    def setup(self, stage: str) -> None:
        """Compares the data with the network, and lets the network settle on it before it is trained.

        Raises:
            UsageError: they do not fit each other.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        data.setup()
        series = data.splits.train.series
        if series.channels != self.network.channels:
            raise UsageError(
                f"{type(self).__name__}: the data has {series.channels} variables, the network is made for "
                f"{self.network.channels}. Try --model.network.channels {series.channels}."
            )
        if stage == "fit":  # weights of a checkpoint come after it and replace what it found
            self.network.units.settle(series)

    def kl_weight(self, stage: Stage) -> float:
        """The weight of the divergence."""
        epochs = max(self.current_epoch - self.kl_wait, 0)
        return self.kl_most * (1 - self.kl_rate**epochs) if stage == "train" else self.kl_most

    def measure(self, **metrics: Any) -> None:
        """Says what validation and test log; a training step predicts nothing beside its cost."""
        super().measure(**metrics)
        self.metrics["train_metrics"] = MetricCollection({})

    def pictures(self, batch: SeriesBatch) -> dict[str, Figure]:
        """Observations, and what the network makes of them."""
        return draw_series(self.network, batch, self.names)

    @property
    def names(self) -> list[str]:
        """Those of the variables, where the data has some; numbers otherwise."""
        data: Any = getattr(self._trainer, "datamodule", None)
        return list(getattr(data, "variables", ())) or [f"variable {i}" for i in range(self.network.channels)]


class Forecaster(SeriesModule):
    """Trains a network that predicts irregular series; see `SeriesModule`.

    Logs in validation and test `mse_as_latent_ode` and `mse_over_observations`, the mean square error counted in two
    ways; see `ErrorAsLatentODE`. The test also logs what two baselines reach: `test/last_value_...`, each variable's
    last observation (its mean over the training series where there is none), and `test/mean_...`, this mean.

    Args:
        network: see `networks.SeriesNetwork`.
        **options: see `SeriesModule`.
    """

    def __init__(self, network: nn.Module, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.measure(**errors())

    def evaluate(self, stage: Stage, batch: SeriesBatch) -> Tensor:
        """What the network makes small, a mean over the series."""
        seen, target, _ = batch
        if stage != "train":
            self.count(stage, self.network.predict(seen, target.times), target)  # type: ignore[arg-type]
        return self.network.cost(seen, target, self.kl_weight(stage)).series.mean()

    def on_test_epoch_end(self) -> None:
        """Logs the solves of the test, and the baselines."""
        super().on_test_epoch_end()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        metrics = {name: MetricCollection(errors(), prefix=f"test/{name}_") for name in ("last_value", "mean")}
        mean = self.network.units.mean.cpu()
        for seen, target, _ in data.test_dataloader():
            metrics["last_value"].update(last_values(seen, target.times, mean), target)
            metrics["mean"].update(mean.expand_as(target.values), target)
        for each in metrics.values():
            self.log_dict(each.compute())
