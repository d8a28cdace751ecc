"""Learns how strongly to smooth: the weight of total-variation denoising, by the gradient of the error it leaves.

A noisy signal x is replaced by the y that minimises |y - x|^2 / 2 + weight * (sum of the sizes of the jumps of y). The
weight is learned through that minimum, on pairs of clean and noisy, by gradient descent on its logarithm, and compared
with the best of a fine grid: for signals of steps, and for patches of a photograph. A grid grows with every number that
is asked for, a gradient does not: at last the weight follows the noise that a signal shows, by two numbers learned at
once. Draws a signal and a patch. About 15 seconds on one core.
"""

# %%
import sys
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from torchimplicit.optim import prox

Denoiser = Callable[[Tensor, Tensor], Tensor]


# %%
def steps_of(count: int, generator: torch.Generator, length: int = 200, jumps: float = 0.04) -> Tensor:
    """Piecewise constant signals `(count, length)`, with a jump of standard deviation 1 about every 25 entries."""
    size = torch.randn(count, length, generator=generator, dtype=torch.float64)
    return (size * (torch.rand(size.shape, generator=generator) < jumps)).cumsum(1)


# %%
def photographs(size: int = 32) -> Tensor:
    """Grey patches `(4, size, size)` of the roof of a photograph, values in [0, 1]."""
    picture = torch.tensor(load_sample_image("china.jpg")).double().mean(-1) / 255
    corners = [(90, 200), (130, 280), (160, 360), (200, 440)]
    return torch.stack([picture[row : row + size, column : column + size] for row, column in corners])


# %%
def error(denoise: Denoiser, clean: Tensor, noisy: Tensor, weight: Tensor) -> Tensor:
    """The mean square of what denoising leaves."""
    return (denoise(noisy, weight) - clean).square().mean()


# %%
def learn(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, rate: float = 0.2) -> Tensor:
    """Minimises by Adam with a rate that falls to zero."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], rate, betas=(0.7, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(parameters).backward()
        optimizer.step()
        schedule.step()
    return parameters.detach()


# %%
def compare(
    name: str, denoise: Denoiser, clean: Tensor, noisy: Tensor, weights: Tensor, steps: int
) -> tuple[float, float]:
    """The weight that is learned, from the smallest of a grid on, and the best of the grid."""
    began = time.process_time()
    learned = learn(lambda log: error(denoise, clean, noisy, log.exp()), weights[0].log(), steps).exp()
    between = time.process_time()
    with torch.no_grad():
        errors = torch.stack([error(denoise, clean, noisy, weight) for weight in weights])
        before, after = (noisy - clean).square().mean().sqrt(), error(denoise, clean, noisy, learned).sqrt()
    best = weights[errors.argmin()]
    print(
        f"{name}: weight learned {learned:.4f} in {between - began:.1f} s, best of {len(weights)} {best:.4f} in "
        f"{time.process_time() - between:.1f} s; error {before:.4f} before, {after:.4f} after"
    )
    return learned.item(), best.item()


# %%
def visible_noise(noisy: Tensor) -> Tensor:
    """The noise's standard deviation `(B,)` as the median difference of neighbours shows it, whatever the few jumps."""
    return noisy.diff(dim=-1).abs().median(-1).values / (0.6745 * 2**0.5)


# %%
def follow_noise(clean: Tensor, noisy: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The best single log weight, and numbers a, b of the log weight a + b log(noise), for signals of mixed noise."""
    level = visible_noise(noisy).log()
    one = learn(lambda a: error(prox.total_variation, clean, noisy, a.exp()), torch.tensor(-2.0).double(), steps)

    def loss(line: Tensor) -> Tensor:
        return error(prox.total_variation, clean, noisy, (line[0] + line[1] * level).exp())

    return one, learn(loss, torch.stack([one, torch.zeros_like(one)]), 2 * steps)


# %%
def draw(file: str, signal: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> None:
    """A signal and a patch: clean, noisy, denoised."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    grid = figure.add_gridspec(1, 6)
    axes = figure.add_subplot(grid[:, :3])
    axes.plot(signal[1].tolist(), ".", color="0.7", markersize=4, label="noisy")
    axes.plot(signal[0].tolist(), color="k", linewidth=1, label="clean")
    axes.plot(signal[2].tolist(), color="C1", label="denoised")
    axes.legend()
    for place, (title, image) in enumerate(zip(("clean", "noisy", "denoised"), images, strict=True), 3):
        axes = figure.add_subplot(grid[:, place])
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(file, dpi=120)


# %%
def main(
    steps: int = 60, image_steps: int = 20, grid: int = 201, image_grid: int = 41, file: str | None = None
) -> dict[str, tuple[float, float]]:
    generator = torch.Generator().manual_seed(0)
    clean, images = steps_of(32, generator), photographs()
    noisy, grainy = (x + s * torch.randn(x.shape, generator=generator) for x, s in ((clean, 0.3), (images, 0.1)))
    fine = torch.logspace(-1.5, 0.5, grid, dtype=torch.float64)
    coarse = torch.logspace(-1.8, -1.1, image_grid, dtype=torch.float64)
    weights = {
        "signals": compare("signals", prox.total_variation, clean, noisy, fine, steps),
        "images": compare("images", prox.total_variation_2d, images, grainy, coarse, image_steps),
    }

    levels = 0.05 * 16 ** torch.rand(256, 1, generator=generator, dtype=torch.float64)
    mixed = steps_of(256, generator)
    seen, unseen = mixed.split(128)
    noisy_seen, noisy_unseen = (mixed + levels * torch.randn(mixed.shape, generator=generator)).split(128)
    one, line = follow_noise(seen, noisy_seen, steps)
    follows = (line[0] + line[1] * visible_noise(noisy_unseen).log()).exp()
    plain, better = (
        error(prox.total_variation, unseen, noisy_unseen, weight).sqrt().item() for weight in (one.exp(), follows)
    )
    print(f"mixed noise: weight {one.exp():.3f}, error {plain:.4f};", end=" ")
    print(f"weight {line[0].exp():.3f} * noise^{line[1]:.2f}, error {better:.4f}, on signals not seen")
    if file is not None:
        with torch.no_grad():
            denoised = prox.total_variation(noisy, weights["signals"][0])
            smooth = prox.total_variation_2d(grainy, weights["images"][0])
        draw(file, (clean[0], noisy[0], denoised[0]), (images[1], grainy[1], smooth[1]))
    return weights | {"mixed": (plain, better)}


# %%
if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else "tv-denoise.png")
