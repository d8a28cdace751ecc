"""A generator of paths: a neural stochastic differential equation learns how heart rates in intensive care go.

Data: hourly means of the heart rate from hour 6 to 46 of the stays of set A of the PhysioNet challenge 2012 that have
them all. Three hidden unknowns start from a learned function of normal numbers and follow a learned drift and
diffusion; the logarithm of the rate is a line of them. Trained by signatures alone: of windows of three lengths, with
time, rate and squared changes as channels, the mean signature of generated paths shall be that of the data. No path is
compared with a path. Compared with stays that were held out, beside Ornstein's and Uhlenbeck's process of maximum
likelihood, by figures of which signatures hold some (deviations, kurtosis) and some not (what is left after a day, and
how restless hours follow each other). Draws paths and laws. Half a minute on one core.

The data is looked for at $TORCHIMPLICIT_DATA/physionet2012/set-a.zip, and is free at
physionet.org/content/challenge-2012.
"""

# %%
import math
import os
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

import torchimplicit as ti

HOURS = 40
WINDOWS = (4, 12, HOURS)  # hours of the paths whose signatures are compared
DEPTH, DT = 3, 0.5


# %%
def heart_rates(file: Path) -> Tensor:
    """The logarithms of hourly means, `(stays, HOURS)`."""
    found = []
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            hours: list[list[float]] = [[] for _ in range(48)]
            for line in archive.read(name).decode().splitlines():
                time, what, value = [*line.split(","), "", ""][:3]
                if what == "HR" and float(value) > 20 and int(time[:2]) < 48:
                    hours[int(time[:2])].append(float(value))
            if all(hours[6 : 6 + HOURS]):
                found.append([math.log(sum(hour) / len(hour)) for hour in hours[6 : 6 + HOURS]])
    return torch.tensor(found)


# %%
class Generator(nn.Module):
    """Three unknowns that forget within days, hours and an hour at first, and what is seen of them."""

    def __init__(self, size: int = 3, width: int = 32):
        super().__init__()
        rates = torch.logspace(-1.5, 0, size)
        self.start = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, size))
        self.line = nn.Linear(size, 1)
        drift, diffusion = Pull(rates, width), Size((2 * rates).sqrt(), width)
        solver = ti.sde.EulerMaruyama(dt=DT)
        ts = torch.arange(float(HOURS))
        self.path = ti.nn.NeuralSDE(drift, diffusion, ts, solver, ti.Direct(), autonomous=True, output="all")

    def forward(self, count: int) -> Tensor:
        """Paths `(count, HOURS)`."""
        z = torch.randn(count, self.line.in_features)
        return self.line(self.path(z + self.start(z))).squeeze(2).T


# %%
class Pull(nn.Module):
    """A drift: a pull to zero, and a network."""

    def __init__(self, rates: Tensor, width: int):
        super().__init__()
        self.log_rates = nn.Parameter(rates.log())
        self.net = nn.Sequential(nn.Linear(len(rates), width), nn.Tanh(), nn.Linear(width, len(rates)))

    def forward(self, y: Tensor) -> Tensor:
        return self.log_rates.exp() * (self.net(y) - y)


# %%
class Size(nn.Module):
    """A diffusion that is positive: of a size, times what a network makes of the state."""

    def __init__(self, size: Tensor, width: int):
        super().__init__()
        self.log_size = nn.Parameter(size.log())
        self.net = nn.Sequential(nn.Linear(len(size), width), nn.Tanh(), nn.Linear(width, len(size)))

    def forward(self, y: Tensor) -> Tensor:
        return (self.log_size + 2 * torch.tanh(self.net(y))).exp()


# %%
def signature(path: Tensor, depth: int = DEPTH) -> Tensor:
    """Iterated integrals of lines through the points of paths `(B, T, d)` from zero, `(B, d + d^2 + ...)`, by Chen."""
    steps = torch.diff(path, dim=1, prepend=torch.zeros_like(path[:, :1]))
    levels = [torch.ones_like(path[:, 0, :1])] + [
        path.new_zeros(len(path), path.shape[2] ** k) for k in range(1, depth + 1)
    ]
    for step in steps.unbind(1):
        powers = [torch.ones_like(levels[0])]
        for k in range(1, depth + 1):
            powers.append((powers[-1].unsqueeze(2) * step.unsqueeze(1) / k).flatten(1))
        levels = [
            sum((levels[i].unsqueeze(2) * powers[k - i].unsqueeze(1)).flatten(1) for i in range(k + 1))
            for k in range(depth + 1)
        ]  # fmt: skip
    return torch.cat(levels[1:], 1)


# %%
def features(x: Tensor) -> list[Tensor]:
    """Signatures of all windows of some lengths, each `(windows, features)`."""
    found = []
    for length in WINDOWS:
        window = x.unfold(1, length, length).flatten(0, 1)
        squares = window.diff(dim=1, prepend=window[:, :1]).square().cumsum(1)
        time = torch.linspace(0, 1, length).expand_as(window)
        found.append(signature(torch.stack((time, window, 5 * squares / length**0.5), 2)))
    return found


# %%
def train(generator: Generator, data: Tensor, steps: int, batch: int) -> None:
    wanted = [(each.mean(0), each.std(0) + 1e-3) for each in features(data)]
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        found = features(generator(batch))
        distances = [
            ((each.mean(0) - mean) / size).square().mean() for each, (mean, size) in zip(found, wanted, strict=True)
        ]
        loss = torch.stack(distances).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: distance of mean signatures {loss.item():.4f}; {generator.path.report}", flush=True)


# %%
def ornstein_uhlenbeck(data: Tensor, count: int) -> Tensor:
    """Paths of the process of maximum likelihood, by its exact law."""
    now, then = data[:, :-1].flatten(), data[:, 1:].flatten()
    decay = torch.cov(torch.stack((now, then)), correction=0)[0, 1] / now.var(correction=0)
    level = (then.mean() - decay * now.mean()) / (1 - decay)
    noise = (then - level - decay * (now - level)).std(correction=0)
    values = [level + noise / (1 - decay**2).sqrt() * torch.randn(count)]
    for _ in range(data.shape[1] - 1):
        values.append(level + decay * (values[-1] - level) + noise * torch.randn(count))
    return torch.stack(values, 1)


# %%
def correlation(x: Tensor, lag: int) -> Tensor:
    """Of values and those so many hours later, over all paths."""
    x = x - x.mean()
    return (x[:, lag:] * x[:, : x.shape[1] - lag]).mean() / x.square().mean()


# %%
FIGURES = {
    "deviation of the rate's logarithm": lambda x: x.std(),
    "deviation of hourly changes": lambda x: x.diff(dim=1).std(),
    "kurtosis of hourly changes": lambda x: x.diff(dim=1).pow(4).mean() / x.diff(dim=1).square().mean() ** 2,
    "correlation after 1 hour": lambda x: correlation(x, 1),
    "correlation after 6 hours": lambda x: correlation(x, 6),
    "correlation after 24 hours": lambda x: correlation(x, 24),
    "of changes after 1 hour": lambda x: correlation(x.diff(dim=1), 1),
    "of their sizes after 1 hour": lambda x: correlation(x.diff(dim=1).abs(), 1),
    "of their sizes after 6 hours": lambda x: correlation(x.diff(dim=1).abs(), 6),
}


# %%
def compare(sources: dict[str, Tensor], unit: float) -> dict[str, dict[str, float]]:
    """The figures of all sources, the first being the data, with its error bars by resampling stays."""
    print(f"\n{'':36}{'held out':>20}" + "".join(f"{name:>12}" for name in list(sources)[1:]))
    table: dict[str, dict[str, float]] = {}
    for word, figure in FIGURES.items():
        size = unit if word.startswith("deviation") else 1.0
        data, *others = (x * size for x in sources.values())
        again = torch.stack([figure(data[torch.randint(len(data), (len(data),))]) for _ in range(100)])
        values = [float(figure(x)) for x in (data, *others)]
        table[word] = dict(zip(sources, values, strict=True))
        print(f"{word:36}{values[0]:12.3f} +- {again.std():.3f}" + "".join(f"{value:12.3f}" for value in values[1:]))
    return table


# %%
def draw(sources: dict[str, Tensor], mean: Tensor, size: Tensor, file: str) -> None:
    """Paths of each source, and their laws over each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    colours = dict(zip(sources, ("black", "tab:green", "tab:orange", "tab:blue"), strict=True))
    shown = [name for name in sources if name != "untrained"]
    upper, lower = figure.subplots(2, 3)
    for axes, name in zip(upper, shown, strict=True):
        axes.plot((sources[name][:10] * size + mean).exp().T, color=colours[name], linewidth=0.8, alpha=0.8)
        axes.set(title=name, xlabel="hours", ylim=(35, 165))
    upper[0].set_ylabel("beats a minute")
    edges = torch.linspace(-0.6, 0.6, 61)
    for name in shown:
        x, style = sources[name], {"color": colours[name], "label": name}
        share = torch.histogram((x.diff(dim=1) * size).flatten(), edges, density=True).hist
        lower[0].plot(edges[1:] - 0.01, share.where(share > 0, torch.nan), **style)
        lower[1].plot([float(correlation(x, lag)) for lag in range(30)], **style)
        sizes = x.diff(dim=1).abs()
        lower[2].plot(range(1, 20), [float(correlation(sizes, lag)) for lag in range(1, 20)], **style)
    lower[0].set(title="density of hourly changes", yscale="log", ylim=(2e-3, 12))
    lower[1].set(title="correlation of the rate", xlabel="hours later", ylim=(0, 1.02))
    lower[2].set(title="correlation of the sizes of changes", xlabel="hours later")
    lower[1].legend(frameon=False)
    figure.savefig(file, dpi=75)


# %%
def main(steps: int = 200, batch: int = 256, file: str | None = None) -> dict[str, dict[str, float]]:
    path = Path(os.environ.get("TORCHIMPLICIT_DATA", "")) / "physionet2012" / "set-a.zip"
    if not path.is_file():
        print(f"no data at {path}: set TORCHIMPLICIT_DATA to a folder that holds physionet2012/set-a.zip")
        return {}
    torch.manual_seed(0)
    data = heart_rates(path)
    data = data[torch.randperm(len(data))]
    mean, size = data.mean(), data.std()
    data = (data - mean) / size
    many = len(data) // 3
    held, seen = data[:many], data[many:]
    generator = Generator()
    with torch.no_grad():
        untrained = generator(2000)
    train(generator, seen, steps, batch)
    with torch.no_grad():
        trained = generator(2000)
    sources = {"held out": held, "untrained": untrained, "neural SDE": trained, "OU": ornstein_uhlenbeck(seen, 2000)}
    print(f"{len(seen)} stays seen, {len(held)} held out")
    table = compare(sources, float(size))
    if file is not None:
        draw(sources, mean, size, file)
    return table


# %%
if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else "heart_rates.png")
