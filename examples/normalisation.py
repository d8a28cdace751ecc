"""Does a learned density integrate to 1? To about the solver's tolerance.

A continuous normalising flow has its density from an integral along a path, so that the solver's error is an error of
the density. A flow of one dimension learns a mixture of three normal densities; then its density is integrated over a
fine grid, solved with tolerances from 1e-1 to 1e-7. Runs in about twenty seconds on one core.
"""

# %%
import sys

import torch
from torch import Tensor, nn

import torchimplicit as ti

TOLERANCES = [10.0**-power for power in range(1, 8)]
CENTRES, WIDTHS = torch.tensor([-2.0, 0.0, 1.5]).double(), torch.tensor([0.5, 0.3, 0.4]).double()


# %%
class Field(nn.Module):
    """The slope of a number that moves in time: `(B, 1)` from times and numbers, `(B, 1)` both."""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat((t, z), 1))


# %%
def mixture(count: int) -> Tensor:
    """Samples `(count, 1)` of the mixture."""
    which = torch.randint(3, (count,))
    return (CENTRES[which] + WIDTHS[which] * torch.randn(count).double()).unsqueeze(1)


# %%
def train(steps: int) -> ti.nn.CNF:
    flow = ti.nn.CNF(Field(), 1, solver=ti.Tsit5(rtol=1e-3, atol=1e-3)).double()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = -flow.log_prob(mixture(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:3}: negative log-likelihood {loss.item():.3f}")
    return flow


# %%
@torch.no_grad()
def integrate(flow: ti.nn.CNF, tolerance: float, grid: Tensor) -> tuple[float, int]:
    """How far the density's integral is from 1, and the evaluations of the field that this took."""
    flow.solver = ti.Tsit5(rtol=tolerance, atol=tolerance)
    density = flow.log_prob(grid.unsqueeze(1)).exp()
    evaluations = 0 if flow.report is None else flow.report.nfev
    return abs(float(torch.trapezoid(density, grid)) - 1), evaluations


# %%
def draw(flow: ti.nn.CNF, grid: Tensor, errors: list[float], file: str) -> None:
    from matplotlib.figure import Figure

    flow.solver = ti.Tsit5(rtol=1e-7, atol=1e-7)
    with torch.no_grad():
        learned = flow.log_prob(grid.unsqueeze(1)).exp()
    parts = torch.distributions.Normal(CENTRES, WIDTHS).log_prob(grid.unsqueeze(1)).exp()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    near = grid.abs() < 4.5
    left.plot(grid[near], parts.mean(1)[near], color="0.6", label="mixture")
    left.plot(grid[near], learned[near], label="flow")
    left.set(title="density", xlabel="x")
    right.loglog(TOLERANCES, errors, marker="o", label="flow")
    right.loglog(TOLERANCES, TOLERANCES, color="0.6", linestyle="--", label="error = tolerance")
    right.set(title="|integral of the density - 1|", xlabel="tolerance of the solver")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


# %%
def main(steps: int = 200, file: str | None = None) -> dict[float, float]:
    torch.manual_seed(0)
    flow = train(steps)
    grid = torch.linspace(-12, 12, 4801).double()
    results = {tolerance: integrate(flow, tolerance, grid) for tolerance in TOLERANCES}
    print("\ntolerance   |integral - 1|   evaluations")
    for tolerance, (error, evaluations) in results.items():
        print(f"{tolerance:9.0e}{error:17.1e}{evaluations:14}")
    errors = {tolerance: error for tolerance, (error, _) in results.items()}
    if file is not None:
        draw(flow, grid, list(errors.values()), file)
    return errors


# %%
if __name__ == "__main__":
    torch.set_num_threads(1)
    main(file=sys.argv[1] if len(sys.argv) > 1 else "normalisation.png")
