"""Training networks that predict irregular series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torchmetrics import MetricCollection

from torchimplicit.core.options import require, require_count
from torchimplicit.nn import Series
from torchimplicit.train.data.series import SeriesBatch
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage
from torchimplicit.train.modules.errors_of_series import errors
from torchimplicit.train.modules.pictures_of_series import draw_series
from torchimplicit.train.networks.series.last_values import last_values, straight_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SeriesModule(EquilibriumModule):
    """Base of the modules that train networks of irregular series; see `EquilibriumModule`.

    Args:
        network: see `networks.SeriesNetwork`.
        kl_wait_epochs: the first epochs, in which the divergence from the prior costs nothing.
        kl_rate: in the epochs after these, 1, 2, ..., its weight is `kl_most * (1 - kl_rate**epoch)`.
        kl_most: see `kl_rate`; the weight in validation and test.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the network is made for another number of variables (once there are data).
    """

    def __init__(
        self, network: nn.Module, kl_wait_epochs: int = 10, kl_rate: float = 0.99, kl_most: float = 1.0, **options: Any
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.kl_wait_epochs, self.kl_rate, self.kl_most = kl_wait_epochs, kl_rate, kl_most
        require_count(self, "kl_wait_epochs", least=0)
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
        epoch = max(self.current_epoch + 1 - self.kl_wait_epochs, 0)
        return self.kl_most * (1 - self.kl_rate**epoch) if stage == "train" else self.kl_most

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
    last observation (its mean over the training series where there is none), and `test/mean_...`, this mean. Where
    some of what is to be predicted is seen, as in interpolation, it also logs `test/linear_...`, straight lines between
    what is seen, and the errors at the times that are not: of the network `test/hidden_as_latent_ode` and
    `test/hidden_over_observations`, and of the baselines `test/hidden_last_...`, `test/hidden_mean_...` and
    `test/hidden_linear_...`.

    Args:
        network: see `networks.SeriesNetwork`.
        **options: see `SeriesModule`.
    """

    def __init__(self, network: nn.Module, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.measure(**errors())
        self.hidden = hidden_errors("")

    def evaluate(self, stage: Stage, batch: SeriesBatch) -> Tensor:
        """What the network makes small, a mean over the series."""
        seen, target, _ = batch
        if stage != "train":
            found = self.network.predict(seen, target.times)
            self.count(stage, found, target)  # type: ignore[arg-type]
            if stage == "test":
                self.hidden.update(found, unseen(seen, target))
        return self.network.cost(seen, target, self.kl_weight(stage)).series.mean()

    def on_test_epoch_end(self) -> None:
        """Logs the solves of the test, and the baselines."""
        super().on_test_epoch_end()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        partly = getattr(data, "task", None) == "interpolation" and data.seen < 1
        kinds = ("last_value", "mean", *(("linear",) if partly else ()))
        metrics = {kind: MetricCollection(errors(), prefix=f"test/{kind}_") for kind in kinds}
        hidden = {kind: hidden_errors(f"{kind.removesuffix('_value')}_") for kind in (kinds if partly else ())}
        mean = self.network.units.mean.cpu()
        for seen, target, _ in data.test_dataloader():
            found = {"last_value": last_values(seen, target.times, mean), "mean": mean.expand_as(target.values)}
            if partly:
                found["linear"] = straight_lines(seen, target.times, mean)
            for kind, prediction in found.items():
                metrics[kind].update(prediction, target)
                if partly:
                    hidden[kind].update(prediction, unseen(seen, target))
        for each in (*metrics.values(), *hidden.values(), *((self.hidden,) if partly else ())):
            self.log_dict(each.compute())
        self.hidden.reset()


def hidden_errors(whose: str) -> MetricCollection:
    """The errors at times that are not seen; short names, which a table of 80 columns shows."""
    named = {name.removeprefix("mse_"): error for name, error in errors().items()}
    return MetricCollection(named, prefix=f"test/hidden_{whose}")


def unseen(seen: Series, target: Series) -> Series:
    """What is to be predicted at times that are not seen."""
    shown = (target.times.unsqueeze(2) == seen.times.unsqueeze(1)).any(2, keepdim=True)
    return Series(target.times, target.values, target.mask & ~shown)
