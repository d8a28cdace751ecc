"""Momentum at one rate for a whole tensor, with weights that nothing speaks for held at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ProximalMomentum(Optimizer):
    r"""Momentum, scaled by the root mean square of the whole tensor's gradient, then soft thresholding.

    $m \leftarrow \mu m + (1 - \mu) g$, $s \leftarrow \nu s + (1 - \nu) \overline{g^2}$, and
    $w \leftarrow \mathrm{soft}(w - \eta \hat m / \sqrt{\hat s},\ \eta \lambda)$, the hats for Adam's correction of the
    start. Adam scales every element by its own root mean square: where most elements get noise alone, they move as far
    as those with a signal. Here they move in proportion, and the proximal step of $\lambda |w|_1$ holds at zero those
    whose mean gradient is below $\lambda$ root mean squares.

    Args:
        params: tensors, or groups of them with a `sparsity` of their own.
        lr: $\eta$, in units of the weights.
        momentum: $\mu$.
        memory: $\nu$.
        sparsity: $\lambda$.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        memory: float = 0.95,
        sparsity: float = 0.0,
    ):
        """Keeps the options.

        Raises:
            ValueError: an impossible one.
        """
        if lr < 0 or sparsity < 0 or not (0 <= momentum < 1 and 0 <= memory < 1):
            raise ValueError(
                f"ProximalMomentum(lr={lr}, momentum={momentum}, memory={memory}, sparsity={sparsity}): expected lr "
                "and sparsity >= 0, the others in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "memory": memory, "sparsity": sparsity})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight.sum()))
        state["step"] += 1
        mean = state["mean"].lerp_(grad, 1 - group["momentum"])
        square = state["square"].lerp_(grad.square().mean(), 1 - group["memory"])
        started, seen = (1 - group[name] ** state["step"] for name in ("momentum", "memory"))
        tiny = torch.finfo(weight.dtype).tiny
        weight.sub_(mean / (square / seen).sqrt().clamp_min(tiny), alpha=group["lr"] / started)
        edge = group["lr"] * group["sparsity"]
        if edge:
            weight.sub_(weight.clamp(-edge, edge))
