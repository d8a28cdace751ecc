"""A trained reconstruction and its rivals on every acquisition of its test split, in decibels, one line each.

python -m benchmarks.imaging.head CKPT                   the trained network, and how far its answers are
python -m benchmarks.imaging.head CKPT --rivals          zero-filled, CG-SENSE, total variation, wavelets, untrained
python -m benchmarks.imaging.head CKPT --only tv --weights 5e-5 1e-4 2e-4
python -m benchmarks.imaging.head CKPT --picture FOLDER  mri.png, mri-masks.png: what the page of the recipe shows
python -m benchmarks.imaging.head CKPT --steps UNROLLED --picture FOLDER  mri-steps.png: quality against steps of both

Decibels of the complex difference, relative to the largest magnitude of the reference.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from torchimplicit.core.status import Status
from torchimplicit.imaging import draw_comparison, draw_masks, draw_steps, psnr
from torchimplicit.train import load
from torchimplicit.train.command.methods import NAMES, WEIGHTS, Choice
from torchimplicit.train.quality import by_steps

DEPTHS = (5, 10, 20, 30, 50, 100, 150)


def rows(data: Any, choice: Choice) -> tuple[list[float], str]:
    """Decibels of every acquisition, and how the solves went."""
    method, found, told = choice.method(), [], []
    start = time.process_time()
    for index in range(len(data.splits.test)):
        y, op, target, _ = data.splits.test.__getitems__([index])
        with torch.no_grad():
            image, report = method(y, op)
        found.append(float(psnr(image, target, data_range=target.abs().max(), by="difference")))
        if report is not None:
            told.append((int(report.steps[0]), int(report.status[0]) == Status.CONVERGED, report.distance))
    seconds = (time.process_time() - start) / len(found)
    said = f"{seconds:.1f} CPU s each"
    if told:
        far = [float(each[2]) for each in told if each[2] is not None]
        said += f", {sum(each[1] for each in told)} of {len(told)} converged, steps up to {max(e[0] for e in told)}"
        said += f", distance up to {max(far):.1e}" if far else ""
    return found, said


def draw(data: Any, checkpoint: str, folder: Path) -> None:
    """Reconstructions of the first acquisition with their errors, and the masks."""
    acquisitions = data.splits.test.acquisitions
    y, op, target, _ = data.splits.test.__getitems__([0])
    names = {"zero-filled": "zero-filled", "total variation": "tv", "untrained ridge": "ridge", "trained": checkpoint}
    with torch.no_grad():
        images = {title: Choice(name).method()(y, op)[0][0] for title, name in names.items()}
    height, width = target.shape[-2:]
    edge = min(height, width) // 3
    zoom = (height // 2 - edge // 2, width // 2 - edge // 2, edge)
    top = float(target.abs().max())
    draw_comparison(target[0], images, data_range=top, zoom=zoom, target=folder / "mri.png")
    masks = {f"mask {i}": each.mask.expand(height, width) for i, each in enumerate(acquisitions)}
    draw_masks(masks, target=folder / "mri-masks.png")


def draw_depths(data: Any, checkpoint: str, unrolled: str, folder: Path) -> None:
    """Residual and decibels of the first acquisition after every step, of both networks; prints some of them."""
    batch = data.splits.test.__getitems__([0])
    target = batch.target
    networks: dict[str, Any] = {"equilibrium": load(checkpoint)[0].network, "unrolled": load(unrolled)[0].network}
    curves = {}
    for name, network in networks.items():
        found = by_steps(
            network.eval(),
            batch,
            DEPTHS[-1],
            lambda x: psnr(x, target, data_range=target.abs().max(), by="difference"),
        )
        assert found is not None
        curves[name] = found
        print(name, ", ".join(f"{n}: {float(found[1][0, n - 1]):.2f}" for n in DEPTHS), "dB", flush=True)
    trained = {"unrolled": networks["unrolled"].steps}
    draw_steps(curves, trained=trained, target=folder / "mri-steps.png")


def main() -> None:
    """Prints a line for every method and weight."""
    parser = argparse.ArgumentParser(prog="benchmarks.imaging.head", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--weights", type=float, nargs="+")
    parser.add_argument("--rtol", type=float)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--steps", metavar="UNROLLED")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data: Any = load(options.checkpoint)[1]
    data.setup()
    if options.steps:
        return draw_depths(data, options.checkpoint, options.steps, options.picture or Path())
    if options.picture:
        return draw(data, options.checkpoint, options.picture)
    names = NAMES if options.rivals else (options.only or options.checkpoint,)
    for name in names:
        for weight in options.weights or [WEIGHTS.get(name)]:
            found, said = rows(data, Choice(name, weight, None if name == "zero-filled" else options.rtol))
            masks = " ".join(f"{each:.2f}" for each in found)
            print(
                f"{name} {'' if weight is None else f'{weight:g}'}: {masks} mean {sum(found) / len(found):.2f}; {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
