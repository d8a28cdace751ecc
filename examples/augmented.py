"""Paths cannot cross: what a neural ODE cannot learn, and one more dimension can.

Points near the middle shall be parted from the ring around them. A neural ODE of the plane is a homeomorphism: it can
stretch and bend the plane but never lift the middle out of the ring, whatever it learns. With one more dimension, zero
at the start, the middle goes up and the ring stays. Draws both (E. Dupont, A. Doucet, Y. W. Teh, arXiv 1904.01681,
figures 3 and 5). Runs in about half a minute.
"""

# %%
import sys

import torch
from torch import Tensor, nn

import torchimplicit as ti


# %%
class Net(nn.Module):
    """Flow, then a line: only what the flow has parted can a line tell apart."""

    def __init__(self, extra: int, width: int = 24):
        super().__init__()
        size = 2 + extra
        field = nn.Sequential(
            nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, size)
        )
        solver = ti.Tsit5(rtol=1e-3, atol=1e-4)
        if extra:
            self.flow = ti.nn.AugmentedNeuralODE(field, extra, solver=solver, autonomous=True)
        else:
            self.flow = ti.nn.NeuralODE(field, solver=solver, autonomous=True)
        self.line = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.flow(x)).squeeze(1)


# %%
def rings(count: int) -> tuple[Tensor, Tensor]:
    """Points of a disc and of a ring around it, and which they are."""
    radius = torch.cat((0.5 * torch.rand(count // 2).sqrt(), 1 + 0.5 * torch.rand(count - count // 2)))
    angle = 2 * torch.pi * torch.rand(count)
    return radius.unsqueeze(1) * torch.stack((angle.cos(), angle.sin()), 1), (radius < 0.75).float()


# %%
def train(net: Net, steps: int) -> tuple[float, int]:
    """The loss after training, and the evaluations of a solve then."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        x, label = rings(128)
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, label = rings(2000)
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), label)
    return loss.item(), net.flow.report.nfev


# %%
def draw(nets: dict[str, Net], file: str) -> None:
    """The plane's grid and the points before and after both flows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    torch.manual_seed(1)
    x, label = rings(400)
    ticks, fine = torch.linspace(-1.5, 1.5, 13), torch.linspace(-1.5, 1.5, 61)
    lines = torch.cat((torch.cartesian_prod(ticks, fine), torch.cartesian_prod(ticks, fine).flip(1)))
    panels = [("start", lines, x), *((name, net.flow(lines), net.flow(x)) for name, net in nets.items())]
    for place, (name, grid, points) in enumerate(panels, 1):
        deep = points.shape[1] == 3
        axes = figure.add_subplot(1, len(panels), place, projection="3d" if deep else None)
        for line in grid.reshape(26, 61, -1):
            axes.plot(*line.T.tolist(), color="0.75", linewidth=0.5, zorder=0)
        for which, colour in ((1, "tab:orange"), (0, "tab:blue")):
            axes.scatter(*points[label == which].T.tolist(), s=4, color=colour)
        axes.set_title(name)
        if not deep:
            axes.set_aspect("equal")
    figure.savefig(file, dpi=120)


# %%
def main(steps: int = 150, file: str | None = None) -> dict[str, float]:
    nets, losses = {}, {}
    for name, extra in (("neural ODE", 0), ("augmented", 1)):
        torch.manual_seed(0)
        nets[name] = Net(extra)
        losses[name], evaluations = train(nets[name], steps)
        print(f"{name}: loss {losses[name]:.4f} after {steps} steps, {evaluations} evaluations a solve")
    if file is not None:
        with torch.no_grad():
            draw(nets, file)
    return losses


# %%
if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else "augmented.png")
