"""Trains the posterior of a latent SDE whose evidence is known, and says how far its bound is from it.

Ornstein's and Uhlenbeck's process, dz = -0.7 z dt + 0.6 dW from its stationary distribution, observed with normal
errors at irregular times: the observations are jointly normal, and their evidence is a formula, Kalman's filter's.
The equation and the errors are given; the encoder, the start and the control are learned. Some ten seconds a hundred
steps on one core: `python examples/latent_ou.py 800 40` comes within a percent.
"""

# %%
import math
import sys

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import torchimplicit as ti

RATE, SIZE, ERROR = 0.7, 0.6, 0.3
STATIONARY = SIZE / math.sqrt(2 * RATE)
WIDTH = 16


# %%
class Drift(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return -RATE * z


# %%
class Noise(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.full_like(z, SIZE)


# %%
class Control(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = ((1 + WIDTH + 1, 48), (48, 48))
        layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(48, 1))

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        return self.net(torch.cat((z, context), 1))


# %%
def covariance(t: Tensor) -> Tensor:
    """That of observations at times `(T,)`."""
    return STATIONARY**2 * torch.exp(-RATE * (t[:, None] - t).abs()) + ERROR**2 * torch.eye(len(t), dtype=t.dtype)


# %%
def draw(count: int, seed: int) -> tuple[ti.nn.Series, float]:
    """Series of 4 to 7 observations over a time of 3, and their mean evidence."""
    chance, rows, evidence = torch.Generator().manual_seed(seed), [], 0.0
    for _ in range(count):
        length = int(torch.randint(4, 8, (1,), generator=chance))
        t = 3 * torch.rand(length, generator=chance, dtype=torch.float64).sort().values
        law = MultivariateNormal(torch.zeros_like(t), covariance(t))
        x = law.scale_tril @ torch.randn(length, generator=chance, dtype=t.dtype)
        rows.append((t.float(), x.float().unsqueeze(1)))
        evidence += law.log_prob(x).item() / count
    return ti.nn.Series.of(rows), evidence


# %%
def main(steps: int = 60, tries: int = 4, count: int = 8) -> tuple[float, float]:
    """Trains for so many steps; gives the bound, by so many draws of 250 paths, and the evidence."""
    torch.manual_seed(0)
    series, evidence = draw(count, seed=1)
    encoder, parts = ti.nn.GRUEncoder(1, latent=1, width=WIDTH), (Drift(), Noise(), Control(), nn.Identity())
    model = ti.nn.LatentSDE(
        encoder, *parts, ti.nn.GaussianLikelihood(ERROR), start=ti.nn.NormalPrior(1, std=STATIONARY),
        solver=ti.sde.SRA1(dt=0.1), noise="additive", autonomous=True,
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        (-model.elbo(series, samples=8)).mean().backward()
        optimiser.step()
        falling.step()
    model.solver = ti.sde.SRA1(dt=0.02)  # the bound of the equation, not of its steps
    with torch.no_grad():
        bounds = torch.stack([model.elbo(series, samples=250, seed=seed).mean() for seed in range(1, 1 + tries)])
    bound, error = bounds.mean().item(), bounds.std().item() / tries**0.5
    gap = (evidence - bound) / abs(evidence)
    print(f"evidence {evidence:.3f}, bound {bound:.3f} +- {error:.3f} after {steps} steps: {100 * gap:.1f} % below")
    return bound, evidence


# %%
if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
