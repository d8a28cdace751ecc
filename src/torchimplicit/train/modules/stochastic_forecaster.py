"""Training a latent stochastic differential equation, and looking whether it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchimplicit.nn import Series
from torchimplicit.train.data.series import SeriesBatch
from torchimplicit.train.modules.forecaster import Forecaster

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 0.9


class StochasticForecaster(Forecaster):
    """Trains a latent stochastic differential equation; see `Forecaster`.

    The test also logs, as means over series and variables, `test/posterior_variance` of what is expected at the times
    that are seen, `test/diffusion_variance`, the part of it by the noise along the paths (near zero the diffusion has
    collapsed), `test/data_variance` beside them, and `test/coverage`: how many of the observations to be predicted lie
    between the quantiles of 5 and 95 % of the forecast, observation errors included.
    """

    def on_test_epoch_end(self) -> None:
        """Logs what the class says."""
        super().on_test_epoch_end()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        inside, count, figures = 0.0, 0, []
        for seen, target, _ in data.test_dataloader():
            low, high = self.band(seen.to(self.device), target.times.to(self.device))
            values = target.values.to(self.device)
            inside += float(((low <= values) & (values <= high) & target.mask.to(self.device)).sum())
            count += int(target.mask.sum())
            spread = self.network.variances(seen.to(self.device))
            figures.append(torch.stack([each.nanmean() for each in spread]))
        names = ("posterior_variance", "diffusion_variance", "data_variance")
        self.log_dict({f"test/{name}": value for name, value in zip(names, torch.stack(figures).mean(0), strict=True)})
        self.log("test/coverage", inside / max(count, 1))

    def band(self, seen: Series, ts: Tensor, samples: int = 400) -> tuple[Tensor, Tensor]:
        """The quantiles of 5 and 95 % of observations at times `(B, T)`, two of `(B, T, C)`."""
        with torch.no_grad():
            drawn = _with_errors(self.network, self.network.spread(seen, ts, samples))
        low, high = (1 - WIDTH) / 2, (1 + WIDTH) / 2
        return drawn.quantile(low, 0), drawn.quantile(high, 0)

    def pictures(self, batch: SeriesBatch) -> dict[str, Figure]:
        """The posterior and the forecast with bands, draws of the prior, and latent paths, of the first series."""
        from matplotlib.figure import Figure

        seen, target, names = batch.seen[:1], batch.target[:1], self.names
        first, last = seen.times[0, 0], torch.cat((seen.times, target.times), 1).nan_to_num(-torch.inf).max()
        ts = first + (last - first) * torch.linspace(0, 1, 121, device=first.device, dtype=first.dtype)
        with torch.no_grad():
            drawn = self.network.spread(seen, ts.unsqueeze(0), 400)[:, 0].cpu()
            prior = self.network.model.prior(5, ts, seed=0).cpu()
            latent = self.network.paths(seen, ts.unsqueeze(0), 5)[:, 0].cpu()
        noisy, clock = _with_errors(self.network, drawn), ts.cpu()
        figure = Figure(figsize=(12, 2.6 * len(names)), layout="constrained")
        grid = figure.subplots(len(names), 3, squeeze=False)
        for channel, (name, row) in enumerate(zip(names, grid, strict=True)):
            for values, shade in ((noisy, 0.15), (drawn, 0.3)):
                low, high = values[..., channel].quantile(torch.tensor([0.05, 0.95]), 0)
                row[0].fill_between(clock, low, high, color="C0", alpha=shade, linewidth=0)
            row[0].plot(clock, drawn[..., channel].mean(0), color="C0")
            for series, colour in ((target, "C3"), (seen, "k")):
                here = series.mask[0, :, channel]
                row[0].plot(series.times[0][here].cpu(), series.values[0, :, channel][here].cpu(), ".", color=colour)
            row[1].plot(clock, prior[..., channel].T, linewidth=0.8)
            row[2].plot(clock, latent[..., min(channel, latent.shape[-1] - 1)].T, linewidth=0.8)
            row[0].set_title(f"{name}: posterior and forecast, 90 % without and with errors", fontsize="small")
            row[1].set_title(f"{name}: draws of the prior", fontsize="small")
            row[2].set_title(f"latent paths of the posterior, coordinate {channel + 1}", fontsize="small")
        return {"series": figure}


def _with_errors(network: Any, drawn: Tensor) -> Tensor:
    """Draws of what is expected with the likelihood's errors added, the same ones every time."""
    errors = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0)).to(drawn)
    return drawn + network.likelihood.std.to(drawn) * errors
