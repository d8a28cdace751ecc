"""Projections in closed form against the same ones modelled with cvxpylayers."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, at_least
from benchmarks.programs.peers import quiet
from torchimplicit.optim import projection

Set = Callable[[Any, Any], list[Any]]


@dataclass(frozen=True)
class Convex:
    """A convex set.

    Attributes:
        name: of the row.
        project: onto it, `(B, n)`.
        model: its constraints on a cvxpy variable; takes cvxpy, too.
        off: how far `p` is from being the projection of `p + v`: how far outside of the set it is, and how far `v` is
            from what pushes it there. `(v, p) -> (B,)`, zero at the projection.
    """

    name: str
    project: Callable[[Tensor], Tensor]
    model: Set
    off: Callable[[Tensor, Tensor], Tensor]


def _gap(support: Tensor, v: Tensor, p: Tensor, outside: Tensor) -> Tensor:
    """`max v'c` over the set's points `c` is reached at the projection."""
    return (support - (v * p).sum(1)).abs() + outside.clamp_min(0)


def sets(total: int) -> list[Convex]:
    """Those that both can."""

    def simplex(v: Tensor, p: Tensor) -> Tensor:
        return _gap(v.amax(1), v, p, -p.amin(1)) + (p.sum(1) - 1).abs()

    def capped(v: Tensor, p: Tensor) -> Tensor:
        outside = torch.maximum(-p, p - 1).amax(1)
        return _gap(v.topk(total).values.sum(1), v, p, outside) + (p.sum(1) - total).abs()

    def cone(v: Tensor, p: Tensor) -> Tensor:
        inside, polar = p[:, 1:].norm(dim=1) - p[:, 0], v[:, 1:].norm(dim=1) + v[:, 0]
        return _gap(torch.zeros_like(polar), v, p, torch.maximum(inside, polar))

    def increasing(v: Tensor, p: Tensor) -> Tensor:
        tails = v.flip(1).cumsum(1)
        outside = torch.maximum(-p.diff(dim=1).amin(1), tails.amax(1))
        return _gap(torch.zeros_like(outside), v, p, outside) + tails[:, -1].abs()

    return [
        Convex("simplex", projection.simplex, lambda cp, z: [z >= 0, cp.sum(z) == 1], simplex),
        Convex(
            "l1 ball", projection.l1_ball, lambda cp, z: [cp.norm1(z) <= 1],
            lambda v, p: _gap(v.abs().amax(1), v, p, p.abs().sum(1) - 1),
        ),
        Convex(
            "l2 ball", projection.l2_ball, lambda cp, z: [cp.norm2(z) <= 1],
            lambda v, p: _gap(v.norm(dim=1), v, p, p.norm(dim=1) - 1),
        ),
        Convex(
            "box", lambda x: projection.box(x, -1.0, 1.0), lambda cp, z: [z >= -1, z <= 1],
            lambda v, p: _gap(v.abs().sum(1), v, p, p.abs().amax(1) - 1),
        ),
        Convex(
            "capped simplex", lambda x: projection.capped_simplex(x, float(total)),
            lambda cp, z: [z >= 0, z <= 1, cp.sum(z) == total], capped,
        ),
        Convex("second-order cone", projection.second_order_cone, lambda cp, z: [cp.SOC(z[0], z[1:])], cone),
        Convex("increasing", projection.isotonic, lambda cp, z: [cp.diff(z) >= 0], increasing),
    ]  # fmt: skip


def layers(convex: Convex, n: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same projection with cvxpylayers, over each solver that is there."""
    with quiet():
        import cvxpy as cp  # pyright: ignore[reportMissingImports]
        from cvxpylayers.torch import CvxpyLayer  # pyright: ignore[reportMissingImports]

    z, x = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x)), convex.model(cp, z))
    options = {"cvxpylayers, default": {}}
    if importlib.util.find_spec("moreau") is not None:
        options["cvxpylayers over moreau"] = {"solver": "MOREAU"}

    def make(chosen: dict) -> Callable[[Tensor], Tensor]:
        with quiet():
            layer = CvxpyLayer(problem, parameters=[x], variables=[z], **chosen)

        def project(points: Tensor) -> Tensor:
            with quiet():
                return layer(points)[0]

        return project

    return {name: make(chosen) for name, chosen in options.items()}


def projections(batch: int, n: int, seconds: float) -> Table:
    """Time of projecting and of differentiating that, and how far each is off."""
    note = (
        f"Batch {batch}, n = {n}, double precision, forward and backward. Ratios are the library's time over ours. "
        "Off: how far a point is from meeting the conditions of optimality, the largest in the batch, absolute. "
        "Gradients apart: distance of the library's gradient from ours over the size of ours, median and largest."
    )
    table = Table("Projections", note, ["set", "library", "ms", "ratio", "bar", "verdict", "off", "gradients apart"])
    torch.manual_seed(0)
    x = (1.5 * torch.randn(batch, n, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(batch, n, dtype=torch.float64)
    for convex in sets(max(1, n // 10)):
        both = {"torchimplicit": convex.project}
        try:
            both |= layers(convex, n)
        except ImportError as error:
            print(f"cvxpylayers is left out, for it cannot be imported ({error}): pip install -e '.[bench]'")
        times = interleaved(
            {
                name: lambda solve=solve: torch.autograd.grad((solve(x) * weight).sum(), x)
                for name, solve in both.items()
            },
            seconds,
            clock=time.process_time,
        )
        mine = torch.autograd.grad((convex.project(x) * weight).sum(), x)[0]
        for name, solve in both.items():
            point = solve(x)
            gradient = torch.autograd.grad((point * weight).sum(), x)[0]
            apart = (gradient - mine).norm(dim=1) / torch.where(mine.norm(dim=1) > 0, mine.norm(dim=1), 1.0)
            off = convex.off((x - point).detach(), point.detach()).max()
            ratio = times[name] / times["torchimplicit"]
            verdict, differs = ("", ""), ""
            if name != "torchimplicit":
                verdict, differs = at_least(ratio, 100), f"{apart.median():.0e} / {apart.max():.0e}"
            table.add(convex.name, name, f"{times[name]:.2f}", f"{ratio:.0f}x", *verdict, f"{off:.0e}", differs)
    return table
