"""Where a training step of an equilibrium model goes, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile, record_function

from torchimplicit.nn import DEQ
from torchimplicit.train.modules import EquilibriumModule

KINDS = {
    "convolutions": ("convolution",),
    "group norms": ("group_norm",),
    "optimiser": ("adam", "Optimizer."),
}
FORWARD = "forward solve"


def shares(module: EquilibriumModule, step: Callable[[], object]) -> dict[str, float]:
    """Fractions of the processor time of `step`: of its kinds of operation, which add up to 1, and of forward solves.

    Args:
        module: whose layers solve.
        step: makes training steps; run once before it is profiled.
    """
    step()
    usual = DEQ.forward

    def named(layer: DEQ, *inputs: object, **options: object) -> object:
        with record_function(FORWARD):
            return usual(layer, *inputs, **options)  # type: ignore[arg-type]

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        DEQ.forward = named  # type: ignore[method-assign]
        try:
            step()
        finally:
            DEQ.forward = usual
    events = profiler.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    found = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in events:
        found[_kind(event.key)] += event.self_cpu_time_total / whole
    found[FORWARD] = sum(event.cpu_time_total for event in events if event.key == FORWARD) / whole
    return found


def _kind(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "the rest")
