"""The page of a registration: solves, overlaps, and pictures of what was found."""

from __future__ import annotations

import html

import torch
from torch import Tensor

from torchimplicit.imaging import Image, draw_alignment, draw_deformation
from torchimplicit.imaging.register import Linear
from torchimplicit.train.command.page import PAGE, as_picture, as_table
from torchimplicit.train.command.register.found import Found, displacement, warped
from torchimplicit.train.command.register.volumes import Scene

SHOWN = 30  # labels in the table
NOTE = (
    "Residual: of linear stages that of the gradient, of deformations that of the last step, RMS in voxels. That a "
    "solve converged says that the method's answer was found, not that it is the right place: look at the pictures. "
    "Where the images lie on each other edges go on from square to square of the checkerboard. In colours the fixed "
    "image is magenta and the other one green, and what is alike is grey."
)


def page(found: Found) -> str:
    """As HTML."""
    order, result = found.order, found.result
    size = " x ".join(map(str, result.fixed.size))
    other = " x ".join(map(str, result.moving.size))
    unit = "mm" if isinstance(found.fixed, Image) else "pixels"
    edges = [" x ".join(f"{edge:.3g}" for edge in grid.spacing) for grid in (result.fixed, result.moving)]
    told = (
        f"{order.moving} ({other}, {edges[1]} {unit}) onto {order.fixed} ({size}, {edges[0]} {unit}), "
        f"kind {order.kind}, from {order.initial}."
    )
    head = ("stage", "solve", "steps", "residual", "evaluations", "processor")
    parts = [f"<p>{html.escape(told)}</p>", as_table(head, [(each.name, *each.describe()) for each in found.stages])]
    parts += [f'<p class="failed">{html.escape(each.report.advice)}</p>' for each in found.stages if each.report.advice]
    parts += [f"<p>{NOTE}</p>", _figures(found, unit), *_overlaps(found), *_pictures(found)]
    return PAGE.format(title="torchimplicit register", body="\n".join(parts))


def _figures(found: Found, unit: str) -> str:
    before, after = (_correlation(found, warped(each, found.moving)) for each in (found.before, found.result))
    length = found.result.displacement()[0].norm(dim=0)
    J = found.result.det_jacobian()
    rows = [
        ("correlation of the images, before and after", f"{before:.3f}, {after:.3f}"),
        (f"displacement, mean and largest, {unit}", f"{float(length.mean()):.2f}, {float(length.max()):.2f}"),
        ("det J, least and largest", f"{float(J.min()):.3f}, {float(J.max()):.3f}"),
        ("voxels that fold", f"{int((~(J > 0)).sum())} of {J.numel()}"),
    ]
    if found.back is not None:
        rows.append(
            (f"there and back by the inverse, RMS and most, {unit}", f"{found.back[1]:.1e}, {found.back[2]:.1e}")
        )
    return as_table(("figure", ""), rows)


def _correlation(found: Found, warped: Scene) -> float:
    a, b = (each.data if isinstance(each, Image) else each for each in (found.fixed, warped))
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def _overlaps(found: Found) -> list[str]:
    if found.labels is None or found.fixed_labels is None:
        return []
    values, before, after = found.overlaps()
    rows = [
        (str(value), f"{a:.3f}", f"{b:.3f}")
        for value, a, b in zip(values, before.tolist(), after.tolist(), strict=True)
    ]
    mean = ("mean", f"{float(before.nanmean()):.3f}", f"{float(after.nanmean()):.3f}")
    return [
        "<p>Dice, labels of the nearest voxel; nan, left out of the mean, where neither image has the label.</p>",
        as_table(("label", "before", "after"), [*rows[:SHOWN], mean]),
    ]


def _pictures(found: Found) -> list[str]:
    fixed = _upright(found.fixed)
    moving = {"before": warped(found.before, found.moving), "after": warped(found.result, found.moving)}
    spacing = found.result.fixed.spacing
    if isinstance(found.fixed, Image):
        spacing = list(found.fixed.reoriented("RAS").spacing)
    images = draw_alignment(fixed, {name: _upright(each) for name, each in moving.items()}, spacing=spacing)
    linear = isinstance(found.result.transform, Linear)
    bent = draw_deformation(_in_voxels(found), image=fixed, spacing=spacing, linear=linear)
    return ["<h2>Images</h2>", as_picture(images), "<h2>Deformation</h2>", as_picture(bent)]


def _upright(scene: Scene) -> Tensor:
    """Values with axes as pictures want them, colours as their mean."""
    return scene.reoriented("RAS").data if isinstance(scene, Image) else scene[0].mean(0)


def _in_voxels(found: Found) -> Tensor:
    """The displacement in voxels of the upright grid."""
    u = displacement(found.result)
    if not isinstance(u, Image):
        return u
    u = u.reoriented("RAS")
    way = torch.linalg.inv(u.affine[:3, :3]).to(u.data)
    return torch.einsum("ij,...j->i...", way, u.data)
