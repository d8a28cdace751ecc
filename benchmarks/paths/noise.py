"""What a normal by counting costs, over one of torch's generator: `python -m benchmarks.paths.noise`.

One thread, CPU time, medians over interleaved repeats in one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import count, islice

import torch

from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, at_most
from torchimplicit.sde import Brownian
from torchimplicit.sde.steps import LONGEST  # as many are made at a time, so that every run makes what it takes

BAR = 1.8  # from 8 channels on
STEP = 0.01
SIZES = ((1024, 1), (1024, 8), (1024, 10), (256, 16), (512, 64), (64, 8), (8, 4), (64, 3072))


def noise(sizes: Sequence[tuple[int, int]] = SIZES, seconds: float = 4.0, steps: int = LONGEST) -> Table:
    """Nanoseconds of an increment's normal, asked for step by step, for some numbers of samples and channels."""
    table = Table(
        "Noise",
        f"Nanoseconds for one normal of W, {steps} steps asked for one by one, over `torch.randn(B, m) * sqrt(h)`.",
        ["dtype", "B x m", "randn", "by number", "same path at dt/2^l", "with area", "ratio", "bar", "verdict"],
    )
    numbers = count()  # never the same ones, which may be kept
    for dtype in (torch.float32, torch.float64):
        for batch, width in sizes:
            like = torch.empty(batch, width, dtype=dtype)
            sources = {
                "number": Brownian(seed=1).bind(like),
                "level": Brownian(seed=1, base=4 * STEP).bind(like),
                "area": Brownian(seed=1).bind(like, area=True),
            }
            runs = {
                name: lambda source=source: [source.increment(k, STEP) for k in islice(numbers, steps)]
                for name, source in sources.items()
            }
            randn = lambda like=like: [torch.randn_like(like) * math.sqrt(STEP) for _ in range(steps)]  # noqa: E731
            times = interleaved(runs | {"randn": randn}, seconds, 1, time.process_time)
            each = {name: 1e6 * ms / (steps * like.numel()) for name, ms in times.items()}
            ratio = each["number"] / each["randn"]
            cells = (f"{each[name]:.1f}" for name in ("randn", "number", "level", "area"))
            verdict = at_most(ratio, BAR) if width >= 8 else ("", "")
            table.add(str(dtype).removeprefix("torch."), f"{batch} x {width}", *cells, f"{ratio:.2f}", *verdict)
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    noise()
