"""Fits two stochastic differential equations to data by gradients through `sdeint`, with error bars.

Geometric Brownian motion, dS = mu S dt + sigma S dW, and Ornstein's and Uhlenbeck's process, dy = kappa (theta - y)
dt + sigma dW, each from 20 series of 100 values. From every value of the data many paths are simulated to the next
one, and parameters are sought whose paths have the moments that the data has: of the change and its square, and of the
change times the value. Squares of changes are what a diffusion shows itself by; a mean square distance between paths
and data would be smallest without noise. For these two equations such parameters are those of maximum likelihood, known
in closed form, but for two errors: the chance of the simulation, which adds 1 / draws to the variance, and that of its
steps. One step of Euler's and Maruyama's a gap puts (1 - exp(-kappa gap)) / gap in the place of kappa, and the last
column shows it. Error bars are the data's: the moments' covariance through the inverse of their slopes by the
parameters. Draws data and fitted bands. About ten seconds on one core.
"""

# %%
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import torchimplicit as ti

D = torch.float64
DRAWS = 64  # simulated paths for every value of the data


# %%
@dataclass
class Model:
    """An equation, what is looked at of its paths, and what is known of it.

    Attributes:
        names: of the parameters.
        truth: what the data is made with.
        first: where the search starts, rates and sizes of noise by their logarithms.
        drift, diffusion: `(t, y, *parameters)`.
        noise: see `sdeint`.
        fine: a solver of high order, with two steps a gap.
        look: what moments are taken of.
        gap: the time between two values.
        start: the first value of every series.
        exact: a value by the parameters, the one before, and a normal number.
        likelihood: the parameters of maximum likelihood, by values and the next ones.
    """

    names: tuple[str, ...]
    truth: Tensor
    first: Tensor
    drift: Callable
    diffusion: Callable
    noise: str
    fine: ti.sde.SDESolver
    look: Callable[[Tensor], Tensor]
    gap: float
    start: float
    exact: Callable[[Tensor, Tensor, Tensor], Tensor]
    likelihood: Callable[[Tensor, Tensor], Tensor]

    def series(self, count: int, length: int) -> Tensor:
        """Data `(length + 1, count)` by the exact law of the transitions, no solver being asked."""
        values = [torch.full((count,), self.start, dtype=D)]
        for _ in range(length):
            values.append(self.exact(self.truth, values[-1], torch.randn(count, dtype=D)))
        return torch.stack(values)

    def changes(self, parameters: Tensor, now: Tensor, solver: ti.sde.SDESolver, draws: int) -> Tensor:
        """Moments of simulated changes, `(transitions, moments)`: the mean over the paths from every value."""
        ts = torch.tensor([0.0, self.gap], dtype=D)
        y0 = now.repeat_interleave(draws).unsqueeze(1)
        options = {"solver": solver, "noise": self.noise, "adjoint": ti.Direct(), "brownian": 1}
        end = ti.sdeint(self.drift, self.diffusion, y0, ts, *parameters, **options).value[-1]
        return self.moments(y0.squeeze(1), end.squeeze(1)).view(len(now), draws, -1).mean(1)

    def moments(self, now: Tensor, then: Tensor) -> Tensor:
        """Of every transition, `(transitions, moments)`."""
        change = self.look(then) - self.look(now)
        found = [change, change.square()]
        if len(self.names) > 2:
            found.append(change * self.look(now))
        return torch.stack(found, 1)

    def fit(self, data: Tensor, solver: ti.sde.SDESolver, draws: int) -> tuple[Tensor, Tensor]:
        """Parameters whose paths have the data's moments, and their error bars."""
        now, then = data[:-1].flatten(), data[1:].flatten()
        wanted = self.moments(now, then)
        size = wanted.std(0)
        free = self.first.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([free], max_iter=60, tolerance_change=1e-12, line_search_fn="strong_wolfe")

        def gap(parameters: Tensor) -> Tensor:
            return ((self.changes(parameters, now, solver, draws) - wanted) / size).mean(0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = gap(self.positive(free)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        found = self.positive(free).detach()
        slopes = torch.autograd.functional.jacobian(gap, found)
        surprise = (wanted - self.changes(found, now, solver, draws)) / size
        inverse = torch.linalg.inv(slopes)
        covariance = inverse @ torch.cov(surprise.T) @ inverse.T / len(now)
        return found, covariance.diagonal().sqrt()

    def positive(self, free: Tensor) -> Tensor:
        """The parameters, rates and sizes of noise by their logarithms."""
        signed = torch.tensor([name in ("mu", "theta") for name in self.names])
        return torch.where(signed, free, free.exp())


# %%
def gbm() -> Model:
    gap = 0.02

    def likelihood(now: Tensor, then: Tensor) -> Tensor:
        returns = (then / now).log()
        sigma = returns.std(correction=0) / math.sqrt(gap)
        return torch.stack((returns.mean() / gap + sigma**2 / 2, sigma))

    return Model(
        names=("mu", "sigma"), truth=torch.tensor([0.3, 0.4], dtype=D), first=torch.tensor([0.0, -2.0], dtype=D),
        drift=lambda t, y, mu, sigma: mu * y, diffusion=lambda t, y, mu, sigma: sigma * y, noise="diagonal",
        fine=ti.sde.SRID2(dt=gap / 2), look=torch.log, gap=gap, start=1.0,
        exact=lambda p, y, z: y * ((p[0] - p[1] ** 2 / 2) * gap + p[1] * math.sqrt(gap) * z).exp(),
        likelihood=likelihood,
    )  # fmt: skip


# %%
def ornstein_uhlenbeck() -> Model:
    gap = 0.1

    def exact(p: Tensor, y: Tensor, z: Tensor) -> Tensor:
        kappa, theta, sigma = p
        decay = (-kappa * gap).exp()
        return theta + (y - theta) * decay + sigma * ((1 - decay**2) / (2 * kappa)).sqrt() * z

    def likelihood(now: Tensor, then: Tensor) -> Tensor:
        """Of an autoregression, which the process is at given times."""
        decay = torch.cov(torch.stack((now, then)), correction=0)[0, 1] / now.var(correction=0)
        level = then.mean() - decay * now.mean()
        kappa = -decay.log() / gap
        left = (then - level - decay * now).square().mean()
        return torch.stack((kappa, level / (1 - decay), (left * 2 * kappa / (1 - decay**2)).sqrt()))

    return Model(
        names=("kappa", "theta", "sigma"), truth=torch.tensor([2.0, 0.5, 0.4], dtype=D),
        first=torch.tensor([0.0, 0.0, 0.0], dtype=D), drift=lambda t, y, kappa, theta, sigma: kappa * (theta - y),
        diffusion=lambda t, y, kappa, theta, sigma: sigma.expand_as(y), noise="additive",
        fine=ti.sde.SRA1(dt=gap / 2), look=lambda y: y, gap=gap, start=1.5, exact=exact, likelihood=likelihood,
    )  # fmt: skip


# %%
def draw(models: dict[str, tuple[Model, Tensor, Tensor]], file: str) -> None:
    """Data, and the quantiles of paths of the fitted equations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for place, (name, (model, data, found)) in enumerate(models.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        ts = torch.arange(len(data), dtype=D) * model.gap
        y0 = torch.full((4000, 1), model.start, dtype=D)
        options = {"solver": model.fine, "noise": model.noise, "brownian": 2}
        paths = ti.sdeint(model.drift, model.diffusion, y0, ts, *found, **options).value.squeeze(2)
        low, middle, high = torch.quantile(paths, torch.tensor([0.05, 0.5, 0.95], dtype=D), dim=1)
        axes.fill_between(ts, low, high, color="tab:orange", alpha=0.3, linewidth=0, label="fitted, 5 to 95 %")
        axes.plot(ts, middle, color="tab:orange", label="fitted, median")
        axes.plot(ts, data, color="tab:blue", linewidth=0.5, alpha=0.6)
        axes.plot([], [], color="tab:blue", linewidth=0.8, label="data")
        axes.set_title(name)
        axes.set_xlabel("t")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=80)


# %%
def main(count: int = 20, length: int = 100, draws: int = DRAWS, file: str | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    results, kept = {}, {}
    models = {"geometric Brownian motion": gbm(), "Ornstein and Uhlenbeck": ornstein_uhlenbeck()}
    for name, model in models.items():
        data = model.series(count, length)
        found, bars = model.fit(data, model.fine, draws)
        rough, _ = model.fit(data, ti.sde.EulerMaruyama(dt=model.gap), draws)
        likely = model.likelihood(data[:-1].flatten(), data[1:].flatten())
        print(f"{name:28}{'truth':>8}{'maximum likelihood':>20}{'by gradients':>19}{'Euler, a step a gap':>22}")
        for i, word in enumerate(model.names):
            print(f"  {word:26}{model.truth[i]:8.3f}{likely[i]:20.4f}{found[i]:11.4f} +- {bars[i]:.3f}{rough[i]:22.4f}")
        results[name] = torch.stack((model.truth, likely, found, bars, rough))
        kept[name] = (model, data, found)
    if file is not None:
        draw(kept, file)
    return results


# %%
if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else "fit_sde.png")
