"""Constant memory, model by model: what a forward pass keeps for its backward pass, against the steps of the solver.

python -m benchmarks.points.models    prints the table and draws docs/recipes/memory.png (a minute)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.kit.table import Table
from torchimplicit import diagnose
from torchimplicit.diagnose.memory import Memory
from torchimplicit.nn import DEQ
from torchimplicit.train import networks

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "memory.png"
STEPS = (1, 2, 5, 10, 20, 40)


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    """The networks of the recipes, each with a small batch of the right shape."""
    torch.manual_seed(0)
    tokens = torch.randint(65, (2, 128))
    return {
        "ResNet-DEQ": (networks.ConvolutionalDEQ(1, 32, 64, strides=(2, 2)), torch.randn(8, 1, 28, 28)),
        "MDEQ": (networks.MDEQSegmenter(), torch.randn(1, 1, 128, 128)),
        "DEQ-Transformer": (networks.DEQTransformer(), tokens),
        "DEQ-TrellisNet": (networks.DEQTrellis(), tokens),
        "monotone, convolutional": (networks.MonotoneConvolutional(), torch.randn(8, 1, 28, 28)),
    }


def measured(network: nn.Module, x: Tensor) -> Memory:
    """Of the network's equilibrium layer, at what reaches it."""
    layer = next(module for module in network.modules() if isinstance(module, DEQ))
    seen: list[tuple] = []

    def keep(_: nn.Module, inputs: tuple) -> None:
        seen.append(inputs)

    with layer.register_forward_pre_hook(keep), torch.no_grad():
        network(x)
    return diagnose.memory(layer, *seen[0], steps=STEPS)


def compare() -> tuple[Table, Figure]:
    """All models."""
    table = Table(
        "Memory kept for the backward pass",
        f"By the equilibrium layer alone, after {STEPS[0]} and after {STEPS[-1]} steps of the recipe's solver.",
        ["model", "Implicit", "Implicit", "Unrolled", "Unrolled"],
    )
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panels = iter(figure.subplots(2, 3).flat)
    for name, (network, x) in models().items():
        result: Any = measured(network, x)
        table.add(
            name, *(f"{sizes[i] / 2**20:.2f} MiB" for sizes in (result.implicit, result.unrolled) for i in (0, -1))
        )
        axes = next(panels)
        for sizes, label in ((result.implicit, "implicit"), (result.unrolled, "unrolled")):
            axes.plot(result.steps, [size / 2**20 for size in sizes], marker=".", label=label)
        axes.set(title=name, xlabel="solver steps", ylabel="MiB saved", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    for axes in panels:
        axes.set_axis_off()
    return table, figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare()[1].savefig(PICTURE, dpi=110)
    print(f"wrote {PICTURE}")
