"""A partial differential equation as a layer: how fast something spreads, and how it grows, from pictures of it.

The truth is Fisher's equation, u' = D u_xx + r u (1 - u): a population that spreads and grows into a front. What is
seen are eight snapshots of four such populations, with noise. The diffusion starts three times too small, the growth is
an unknown function of u, a small network at every point; both are fitted through the stiff solver, by the gradient of
what was seen. Then a population that was not seen is predicted. About a minute on one core.

    python examples/reaction_diffusion.py [--picture FILE]
"""

# %%
import argparse

import torch
from torch import nn

import torchimplicit as ti

POINTS, LENGTH, DIFFUSION, GROWTH, NOISE = 48, 10.0, 0.2, 2.0, 0.02
SPACING = LENGTH / POINTS
SOLVER = ti.Kvaerno3(rtol=1e-3, atol=1e-4)


# %%
class Logistic(nn.Module):
    def forward(self, u):
        return GROWTH * u * (1 - u)


# %%
class Learned(nn.Module):
    """Growth as an unknown function of u that vanishes at zero: nothing comes from nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 16, 1), nn.Tanh(), nn.Conv1d(16, 1, 1))

    def forward(self, u):
        return u * self.net(u)


# %%
def populations(count):
    """Random bumps, `(count, 1, POINTS)`."""
    x = torch.arange(POINTS) * SPACING
    centre, width = LENGTH * torch.rand(count, 1), 0.3 + 0.5 * torch.rand(count, 1)
    return 0.8 * torch.exp(-(((x - centre) / width) ** 2)).unsqueeze(1)


# %%
def fit(field, start, ts, seen, steps=150):
    optimizer = torch.optim.Adam(field.parameters(), 3e-2)
    for step in range(steps):
        optimizer.zero_grad()
        solution = ti.odeint(field, start, ts, solver=SOLVER)
        loss = (solution.value - seen).square().mean()
        loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss.item():.2e}  diffusion {field.diffusion.item():.3f}  {solution.report}")


# %%
def draw(path, field, truth, predicted):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for ax, title, values in ((left, "truth", truth), (middle, "predicted", predicted)):
        ax.imshow(values[:, 0, 0], aspect="auto", origin="lower", extent=(0, LENGTH, 0, 2), vmin=0, vmax=1)
        ax.set(title=title, xlabel="x", ylabel="t")
    u = torch.linspace(0, 1, 50)
    right.plot(u, Logistic()(u), label="truth")
    right.plot(u, field.source(u.view(-1, 1, 1)).detach().flatten(), "--", label="learned")
    right.set(title="growth", xlabel="u")
    right.legend()
    figure.savefig(path, dpi=110)


# %%
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", help="draw truth and prediction into this file")
    parser.add_argument("--steps", type=int, default=150, help="of the optimiser")
    options = parser.parse_args()
    torch.manual_seed(0)
    truth = ti.nn.ReactionDiffusion([DIFFUSION], Logistic(), SPACING)
    ts = torch.linspace(0, 2, 9)
    start, unseen = populations(4), populations(1)
    with torch.no_grad():
        seen = ti.odeint(truth, start, ts, solver=SOLVER).value
        seen = seen + NOISE * torch.randn_like(seen)
    field = ti.nn.ReactionDiffusion([DIFFUSION / 3], Learned(), SPACING)
    fit(field, start, ts, seen, options.steps)
    times = torch.linspace(0, 2, 41)
    with torch.no_grad():
        expected, predicted = (ti.odeint(each, unseen, times, solver=SOLVER).value for each in (truth, field))
    error = (predicted - expected).abs().max().item()
    print(f"diffusion {field.diffusion.item():.3f} (truth {DIFFUSION}); an unseen population to {error:.3f} at worst")
    if options.picture:
        draw(options.picture, field, expected, predicted)


# %%
if __name__ == "__main__":
    main()
