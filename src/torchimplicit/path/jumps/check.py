"""Times at which a path's field jumps, and what is added to its state there: checked, as solvers count them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.tree import Layout
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.inputs import Jumps


def check_jumps(jumps: Any, doses: Any, dynamics: Dynamics, ts: Tensor) -> Jumps | None:
    """The jumps of every sample; None for none.

    Args:
        jumps: `(J,)`, or `(J, B)` for every sample's own; not finite where a sample has fewer.
        doses: like the state, with the jumps in front, or what broadcasts against that.
        dynamics: of the solve.
        ts: output times, `(T, B)` or `(T, 1)`.

    Raises:
        TypeError: jumps or doses are no floating tensors.
        ValueError: of another shape, structure or device, or doses without jumps.
    """
    if jumps is None:
        if doses is not None:
            raise ValueError("doses: got doses without jumps, expected the times at which to add them; try jumps=...")
        return None
    layout = dynamics.layout
    if not isinstance(jumps, Tensor) or not jumps.is_floating_point():
        got = f"a {jumps.dtype} tensor" if isinstance(jumps, Tensor) else f"a {type(jumps).__name__}"
        raise TypeError(f"jumps: got {got}, expected a floating tensor of times; try torch.tensor([1.0, 2.0])")
    if jumps.device != layout.device:
        raise ValueError(f"jumps: got times on {jumps.device}, expected {layout.device}; try jumps.to(y0.device)")
    if jumps.dim() not in (1, 2) or (jumps.dim() == 2 and jumps.shape[1] not in (1, layout.batch)):
        turned = "; try jumps.T" if jumps.dim() == 2 and jumps.shape[0] == layout.batch else ""
        raise ValueError(
            f"jumps: got shape {tuple(jumps.shape)}, expected (J,) for times that all samples share, or "
            f"(J, {layout.batch}) for times of every sample's own, as ts has them{turned}"
        )
    if not jumps.numel() or not layout.batch:
        return None
    times = jumps.reshape(len(jumps), -1).to(torch.promote_types(jumps.dtype, ts.dtype)).expand(-1, layout.batch)
    times = torch.where(times.isfinite(), dynamics.user_time(times), torch.inf)
    return Jumps(times, None if doses is None else _check_doses(doses, len(jumps), layout))


def _check_doses(doses: Any, count: int, layout: Layout) -> Tensor:
    """Doses `(J, B, n)`.

    Raises:
        TypeError: a leaf is no floating tensor.
        ValueError: not like the state with the jumps in front.
    """
    leaves, spec = pytree.tree_flatten(doses)
    if spec != layout.spec:
        raise ValueError(f"doses: got the structure {spec}, expected that of the state, {layout.spec}")
    whole = []
    for leaf, shape, dtype in zip(leaves, layout.shapes, layout.dtypes, strict=True):
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or (leaf.is_complex() and dtype.is_complex)):
            got = f"a {leaf.dtype} tensor" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise TypeError(f"doses: got {got}, expected a tensor like the state's, {dtype}")
        try:
            whole.append(leaf.to(dtype).expand(count, *shape))
        except RuntimeError:
            raise ValueError(
                f"doses: got shape {tuple(leaf.shape)}, expected {(count, *shape)}, the state's with the {count} jumps "
                "in front, or what broadcasts against that; try doses[:, None]"
            ) from None
    rows = [layout.flatten(pytree.tree_unflatten([leaf[j] for leaf in whole], spec)) for j in range(count)]
    return torch.stack(rows)
