"""What docs/recipes/deblur.md says of trained networks, measured on the recipe's test crops; draws its pictures.

python -m benchmarks.imaging.deblur OURS.ckpt [--unrolled NAME=CKPT ...] [--denoiser CKPT] [--pictures docs/recipes]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.table import Table
from torchimplicit.imaging import (
    draw_comparison,
    draw_steps,
    plug_and_play,
    psnr,
    ssim,
    total_variation,
)
from torchimplicit.solve import Anderson
from torchimplicit.train import load
from torchimplicit.train.data import BlurredPhotographs, Measurement
from torchimplicit.train.modules.reconstructor import seen
from torchimplicit.train.networks import RidgeReconstruction
from torchimplicit.train.quality import by_steps

BORDER = 2  # pixels that the recipe does not count, which the measurement does not determine
DEPTHS = (5, 8, 10, 12, 15, 20, 30, 50, 100)
TOLERANCES = (1e-2, 3e-3, 1e-3, 1e-4, 1e-5)
WEIGHTS = (2.5e-4, 5e-4, 1e-3)
STEPS = (3.0, 10.0, 30.0)  # of plug and play
ZOOM = (30, 60, 44)


def quality(image: Tensor, batch: Measurement) -> str:
    """PSNR and SSIM, means over images."""
    options: Any = {"data_range": 1.0, "border": BORDER}
    return f"{decibels(image, batch):.2f} dB, {float(ssim(image, batch.target, **options).mean()):.3f}"


def decibels(image: Tensor, batch: Measurement) -> float:
    """PSNR, the mean over images."""
    assert batch.target is not None
    return float(psnr(image, batch.target, data_range=1.0, border=BORDER).mean())


def tuned(make: Callable[[Measurement, float], Tensor], values: tuple, test: Measurement) -> tuple:
    """The image of the value that is best on the test crops themselves, which favours rivals, and that value."""
    images = {value: make(test, value) for value in values}
    best = max(values, key=lambda value: decibels(images[value], test))
    return images[best], best


def solves(layer: Any, batch: Measurement) -> None:
    """Quality and steps of an equilibrium by tolerance."""
    table = Table("Tolerances", "Solved to a relative step.", ("step", "most steps", "PSNR, SSIM"))
    own = layer.solver
    for rtol in TOLERANCES:
        layer.solver = replace(own, rtol=rtol, max_steps=1000)
        with torch.no_grad():
            image = layer(batch.y, batch.op)
        table.add(f"{rtol:.0e}", str(int(layer.report.steps.max())), quality(image, batch))
    layer.solver = own


def depths(curves: dict[str, tuple[Tensor, Tensor]]) -> None:
    """PSNR after so many steps."""
    table = Table("Depths", "PSNR after so many steps.", ("network", *map(str, DEPTHS)))
    for name, (_, figure) in curves.items():
        table.add(name, *(f"{float(figure[:, depth - 1].mean()):.2f}" for depth in DEPTHS))


def saved_bytes(layer: Any, batch: Measurement, steps: int) -> int:
    """What a training step of so many solver steps keeps for its backward pass, in bytes."""
    own, seen_storages = layer.solver, {}
    layer.solver = replace(own, rtol=1e-30, atol=1e-30, max_steps=steps)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen_storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        image = layer(batch.y, batch.op)
    layer.solver = own
    del image
    return sum(seen_storages.values())


def plugged(denoiser: Any) -> Callable[[Measurement, float], Tensor]:
    """Plug and play by a denoiser, with a step."""

    def make(batch: Measurement, step: float) -> Tensor:
        solver = Anderson(window=6, period=1, rtol=1e-4, max_steps=200)
        with torch.no_grad():
            solution = plug_and_play(
                batch.y, batch.op, denoiser, step=step, start=seen(batch), solver=solver, on_failure="ignore"
            )
        print(f"  plug and play, step {step:g}: {solution.report}; {quality(solution.value, batch)}", flush=True)
        return solution.value

    return make


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--unrolled", nargs="*", default=[], metavar="NAME=CKPT")
    parser.add_argument("--denoiser", type=Path)
    parser.add_argument("--pictures", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    module, data = load(words.ours)
    assert isinstance(data, BlurredPhotographs)
    layer: Any = module.network
    layer.requires_grad_(True)
    test = next(iter(data.test_dataloader()))
    print(f"blurred: {quality(seen(test), test)}")
    start = RidgeReconstruction()
    images = baselines(test)
    with torch.no_grad():
        print(f"smoothed total variation, the start: {quality(start(test.y, test.op), test)}")
        ours = layer(test.y, test.op)
    print(f"ours, {sum(p.numel() for p in layer.parameters())} parameters: {quality(ours, test)}")
    solves(layer, test)
    train = next(iter(data.train_dataloader()))
    print("saved for backward:", {steps: saved_bytes(layer, train, steps) for steps in (10, 50)})
    networks = {"equilibrium": layer} | {
        n: load(c)[0].network for n, _, c in (w.partition("=") for w in words.unrolled)
    }
    curves = {
        name: by_steps(network, test, 220, lambda x: psnr(x, test.target, data_range=1.0, border=BORDER))
        for name, network in networks.items()
    }
    depths(curves)
    report(curves["equilibrium"][1].mean(0))
    if words.denoiser:
        denoiser = load(words.denoiser)[0].network.prior.requires_grad_(False)
        images["plug and play"], step = tuned(plugged(denoiser), STEPS, test)
        print(f"plug and play, step {step:g}: {quality(images['plug and play'], test)}")
    if words.pictures:
        draw(words.pictures, test, images | {"equilibrium": ours}, curves, networks)


def baselines(test: Measurement) -> dict[str, Tensor]:
    """Rivals that learn nothing."""
    found = {"measured": seen(test)}

    def made(batch: Measurement, weight: float) -> Tensor:
        solution = total_variation(batch.y, batch.op, weight=weight, on_failure="ignore")
        print(f"  total variation, weight {weight:g}: {quality(solution.value, batch)}, {solution.report}", flush=True)
        return solution.value

    found["total variation"], _ = tuned(made, WEIGHTS, test)
    return found


def report(figure: Tensor) -> None:
    """What ten times the steps do."""
    for steps in (15, 20, 22):
        change = float(figure[10 * steps - 1] - figure[steps - 1])
        print(f"after {steps} steps {float(figure[steps - 1]):.3f} dB, after ten times as many {change:+.3f}")


def draw(folder: Path, test: Measurement, images: dict[str, Tensor], curves: dict, networks: dict) -> None:
    """The two pictures of the page."""
    assert test.target is not None
    cut = slice(BORDER, -BORDER)
    shown = {name: image[0, 0, cut, cut] for name, image in images.items()}
    draw_comparison(
        test.target[0, 0, cut, cut], shown, data_range=1.0, zoom=ZOOM, target=folder / "deblur-comparison.png"
    )
    trained = {name: network.steps for name, network in networks.items() if hasattr(network, "steps")}
    short = {name: (residual[:, :50], figure[:, :50]) for name, (residual, figure) in curves.items()}
    draw_steps(short, trained=trained, target=folder / "deblur-steps.png")


if __name__ == "__main__":
    main()
