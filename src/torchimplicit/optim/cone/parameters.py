"""The parameters of a convex program: their shapes and domains, which values are held against, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms

_SIGNS = {"nonneg": 1, "pos": 1, "nonpos": -1, "neg": -1}


@dataclass(frozen=True)
class ParameterRule:
    """What a parameter must be like.

    Attributes:
        name: as the user called it.
        shape: without the batch.
        attributes: those of cvxpy's that are set: `nonneg`, `PSD`, `bounds`, ...
        zeros: which entries must be zero, flat; None for none.
    """

    name: str
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    zeros: Tensor | None = None

    def check_shape(self, value: Tensor) -> int | None:
        """The batch size, None without a batch dimension; refuses other shapes and dtypes."""
        if not isinstance(value, Tensor):
            raise TypeError(f"parameter {self.name}: got a {type(value).__name__}, expected a tensor; try torch.tensor")
        if not value.is_floating_point():
            raise TypeError(f"parameter {self.name}: got {value.dtype}, expected a floating dtype; try .double()")
        extra = value.dim() - len(self.shape)
        if extra not in (0, 1) or tuple(value.shape[extra:]) != self.shape:
            raise ValueError(
                f"parameter {self.name}: got shape {tuple(value.shape)}, expected {self.shape}, or that after one "
                "batch dimension"
            )
        return len(value) if extra else None

    def check_domain(self, value: Tensor) -> None:
        """Refuses values outside of the declared domain, which cvxpy took for granted when it judged convexity."""
        if transforms.active() or not self.attributes:
            return
        if not value.numel():
            return
        play = torch.finfo(value.dtype).eps ** 0.5
        rows = value.detach().double().reshape(-1, *self.shape).nan_to_num(0, 0, 0)  # NaN is for the solver to report
        play = play * (1 + rows.reshape(len(rows), -1).abs().amax(1)) if rows[0].numel() else rows.new_zeros(len(rows))
        for attribute, given in self.attributes.items():
            excess = self._excess(attribute, given, rows)
            wrong = torch.nonzero(excess > play).flatten()
            if len(wrong):
                row = int(wrong[0])
                where = f"at batch index {row}" if value.dim() > len(self.shape) else "in the value"
                raise ValueError(
                    f"parameter {self.name}: declared {attribute}={given!r}, got a violation of "
                    f"{float(excess[row]):.3g} {where}; try {_remedy(attribute)}"
                )

    def _excess(self, attribute: str, given: Any, rows: Tensor) -> Tensor:
        """By how much every sample violates an attribute, `(B,)`."""
        flat = rows.reshape(len(rows), -1)
        if attribute in _SIGNS:
            return (-_SIGNS[attribute] * flat).amax(1)
        if attribute in ("PSD", "NSD"):
            sign = 1 if attribute == "PSD" else -1
            smallest = torch.linalg.eigvalsh(sign * (rows + rows.mT) / 2).amin(-1).reshape(len(rows), -1).amin(1)
            return torch.maximum(-smallest, _asymmetry(rows))
        if attribute == "symmetric":
            return _asymmetry(rows)
        if attribute == "bounds":
            lower, upper = (torch.as_tensor(bound, dtype=rows.dtype, device=rows.device) for bound in given)
            return torch.maximum(lower - rows, rows - upper).reshape(len(rows), -1).amax(1)
        if attribute in ("integer", "boolean"):
            nearest = rows.round() if attribute == "integer" else rows.round().clamp(0, 1)
            return (rows - nearest).reshape(len(rows), -1).abs().amax(1)
        assert self.zeros is not None  # diag, sparsity
        return (flat * self.zeros.to(flat)).abs().amax(1)


def _asymmetry(rows: Tensor) -> Tensor:
    return (rows - rows.mT).flatten(1).abs().amax(1)


def _remedy(attribute: str) -> str:
    tries = {
        "PSD": "L @ L.mT",
        "NSD": "-L @ L.mT",
        "symmetric": "(X + X.mT) / 2",
        "nonneg": "softplus or relu",
        "pos": "softplus or exp",
        "nonpos": "the negative of softplus or relu",
        "neg": "the negative of softplus or exp",
        "bounds": "clamp",
    }
    return tries.get(attribute, "a value in the domain, or a parameter without the attribute")


def stack(rules: Sequence[ParameterRule], values: Sequence[Tensor]) -> tuple[Tensor, list[bool]]:
    """All parameters in one float64 vector per sample, `(B, total)`, and which of them have a batch dimension.

    Raises:
        ValueError: a number, shape, batch size, device or domain is wrong.
        TypeError: a value is not a floating tensor.
    """
    if len(values) != len(rules):
        names = ", ".join(rule.name for rule in rules)
        raise ValueError(f"got {len(values)} parameters, expected {len(rules)}: {names}")
    sizes = [rule.check_shape(value) for rule, value in zip(rules, values, strict=True)]
    known = sorted({size for size in sizes if size is not None})
    if len(known) > 1:
        listed = ", ".join(f"{rule.name}: {size}" for rule, size in zip(rules, sizes, strict=True) if size is not None)
        raise ValueError(f"got batches of different sizes ({listed}), expected one; leave out what all samples share")
    devices = {str(value.device) for value in values}
    if len(devices) > 1:
        raise ValueError(f"got parameters on {sorted(devices)}, expected one device; try .to()")
    for rule, value in zip(rules, values, strict=True):
        rule.check_domain(value)
    batch = known[0] if known else 1
    rows = [
        value.double().reshape(1 if size is None else batch, prod(rule.shape)).expand(batch, -1)
        for rule, value, size in zip(rules, values, sizes, strict=True)
    ]
    return torch.cat(rows, 1) if rows else torch.zeros(1, 0, dtype=torch.float64, device="cpu"), [
        size is not None for size in sizes
    ]
