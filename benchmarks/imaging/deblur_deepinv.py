"""deepinv's deep equilibrium on the recipe deblur's photographs, crops and noise: a DnCNN by proximal gradient.

python -m benchmarks.imaging.deblur_deepinv [--pretrain 25] [--seconds 216] [--data-dir FOLDER]

Wants `deepinv` 0.5.0 beside this package. Seconds are of the processor. Images are taken to [-1, 1] and back.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.imaging.deblur import BORDER, quality
from torchimplicit.train.data import BlurredPhotographs, GaussianKernel

LEVEL = 0.05  # of the noise that the denoiser is trained on first, of images in [-1, 1]


def network(denoiser: Any) -> Any:
    """Proximal gradient with the denoiser, accelerated, as an equilibrium whose step is learned, too."""
    from deepinv.optim import L2, PGD, DEQConfig, PnP  # pyright: ignore[reportMissingImports]

    def start(y: Tensor, physics: Any) -> dict[str, Any]:
        padded = F.pad(y, (BORDER,) * 4, mode="replicate")
        return {"est": (padded, padded)}

    return PGD(
        data_fidelity=L2(),
        prior=PnP(denoiser),
        stepsize=1.0,
        sigma_denoiser=LEVEL,
        max_iter=50,
        thres_conv=1e-3,
        early_stop=True,
        crit_conv="residual",
        custom_init=start,
        unfold=True,
        trainable_params=["stepsize"],
        DEQ=DEQConfig(anderson_acceleration_backward=True),
        anderson_acceleration=True,
    )


def denoise(denoiser: Any, data: BlurredPhotographs, seconds: float) -> None:
    """Trains the denoiser for denoising alone."""
    optimiser, begun = torch.optim.Adam(denoiser.parameters(), 1e-3), time.process_time()
    for batch in data.train_dataloader():
        if time.process_time() - begun > seconds:
            return
        assert batch.target is not None
        x = 2 * batch.target - 1
        loss = (denoiser(x + LEVEL * torch.randn_like(x), LEVEL) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def train(model: Any, physics: Any, data: BlurredPhotographs, seconds: float) -> int:
    """Trains the equilibrium; how many steps there were."""
    steps = [p for name, p in model.named_parameters() if "stepsize" in name]
    rest = [p for name, p in model.named_parameters() if "stepsize" not in name]
    optimiser = torch.optim.Adam([{"params": rest, "lr": 3e-4}, {"params": steps, "lr": 1e-2}])
    begun, inner = time.process_time(), (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    for count, batch in enumerate(data.train_dataloader()):
        if time.process_time() - begun > seconds:
            return count
        assert batch.target is not None
        x = model(2 * batch.y - 1, physics)
        loss = (x - (2 * batch.target - 1))[inner].square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
    raise AssertionError(f"{data.samples} crops did not last")


def main() -> None:
    """Trains, and prints decibels at three tolerances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", type=float, default=25.0)
    parser.add_argument("--seconds", type=float, default=216.0)
    parser.add_argument("--data-dir")
    words = parser.parse_args()
    import deepinv  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernel = GaussianKernel(size=5, sigma=5.0)
    data = BlurredPhotographs(words.data_dir, kernel=kernel, corner=(120, 220), samples=10**6)
    physics = deepinv.physics.Blur(filter=kernel.weights()[None, None], padding="valid")
    denoiser = deepinv.models.DnCNN(1, 1, depth=5, nf=24, pretrained=None)
    denoise(denoiser, data, words.pretrain)
    model = network(denoiser)
    count = train(model, physics, data, words.seconds)
    test = next(iter(data.test_dataloader()))
    for steps, threshold in ((50, 1e-3), (100, 1e-4), (300, 1e-5)):
        model.max_iter = model.fixed_point.max_iter = steps
        model.thres_conv = threshold
        with torch.no_grad():
            image = torch.cat([model(2 * y[None] - 1, physics) for y in test.y]) / 2 + 0.5
        print(f"{count} training steps, evaluated with {steps} at most, to {threshold:g}: {quality(image, test)}")


if __name__ == "__main__":
    main()
