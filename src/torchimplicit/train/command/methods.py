"""Methods to reconstruct by, by their names: baselines, the untrained convex prior, or a trained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import Solution
from torchimplicit.core.status import Report
from torchimplicit.imaging import Reconstruction, cg_sense, total_variation, wavelet, zero_filled
from torchimplicit.linear import CG
from torchimplicit.solve import Anderson
from torchimplicit.train.checkpoint import load
from torchimplicit.train.errors import UsageError

# Weights in units of the zero-filled image's largest magnitude: the best of a few on the head of the recipe `mri`.
WEIGHTS = {"cg-sense": 1e-3, "tv": 1e-4, "wavelet": 5e-5, "ridge": 2e-4}
NAMES = ("zero-filled", *WEIGHTS)
Method = Callable[[Tensor, Any], tuple[Tensor, Report | None]]


@dataclass(frozen=True)
class Choice:
    """What the command was asked for.

    Args:
        name: one of `NAMES`, or the path of a checkpoint.
        weight: of the regulariser, in units of the image; None for the usual one.
        rtol: of the solve; None for the usual one, or that of the checkpoint.
        max_steps: of the solve, likewise.
        trust: modules of the user's own whose classes a checkpoint may build.
    """

    name: str
    weight: float | None = None
    rtol: float | None = None
    max_steps: int | None = None
    trust: Sequence[str] = ()

    def method(self) -> Method:
        """`method(y, op) -> (images, report)`, the report None where nothing was solved.

        Raises:
            UsageError: there is no such method, or it has no such option.
            CheckpointError: the checkpoint is absent, or no such thing.
        """
        if self.name not in NAMES:
            return self._trained()
        weight = WEIGHTS.get(self.name) if self.weight is None else self.weight
        if self.name == "zero-filled":
            if not (self.weight is self.rtol is self.max_steps is None):
                raise UsageError("--method zero-filled: takes no --weight, --rtol or --max-steps. Try without.")
            return lambda y, op: (zero_filled(y, op), None)
        assert weight is not None
        if not 0 < weight < float("inf"):
            raise UsageError(f"--weight {weight}: expected a finite number > 0.")
        if self.name == "ridge":
            from torchimplicit.train.networks import RidgeReconstruction

            solver = self._changed(Anderson(window=10, rtol=1e-6, max_steps=400))
            return _layer(RidgeReconstruction(strength=weight, width=5e-3, filters=2, taps=3, solver=solver))
        return self._baseline(weight)

    def _baseline(self, weight: float) -> Method:
        if self.name == "cg-sense":
            linear = self._changed(CG(rtol=1e-5, max_steps=200))
            return lambda y, op: _solved(cg_sense(y, op, weight=weight, solver=linear, on_failure="ignore"))
        solver = self._changed(Anderson(window=10, rtol=5e-5, max_steps=400))
        solve = total_variation if self.name == "tv" else wavelet
        return lambda y, op: _solved(solve(y, op, weight=weight, solver=solver, on_failure="ignore"))

    def _trained(self) -> Method:
        if not Path(self.name).is_file() and Path(self.name).suffix != ".ckpt":
            raise UsageError(
                f"--method {self.name}: neither a method nor a checkpoint. Expected one of {', '.join(NAMES)}, or the "
                "path of a .ckpt file that torchimplicit fit --config mri wrote."
            )
        if self.weight is not None:
            raise UsageError("--weight: a checkpoint has learned its own. Try without.")
        module: Any = load(self.name, self.trust)[0]
        network = module.network
        if isinstance(network, Reconstruction):
            network.solver = self._changed(network.solver)
            return _layer(network)
        if not (self.rtol is self.max_steps is None):
            raise UsageError(f"--rtol, --max-steps: a {type(network).__name__} solves nothing. Try without.")
        return lambda y, op: (network(y, op), None)

    def _changed(self, solver: Any) -> Any:
        """A solver with the tolerance and the steps that were asked for; that is met whatever the image's size."""
        given = {"rtol": self.rtol, "max_steps": self.max_steps}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return replace(solver, **given, **({"atol": 0.0} if self.rtol is not None else {}))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--rtol, --max-steps: {error}") from error


def _layer(layer: Reconstruction) -> Method:
    layer.on_failure = "ignore"

    def method(y: Tensor, op: Any) -> tuple[Tensor, Report | None]:
        image = layer(y, op)
        return image, layer.report

    return method


def _solved(solution: Solution) -> tuple[Tensor, Report]:
    return torch.as_tensor(solution.value), solution.report
