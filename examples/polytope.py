"""Finds a polytope from points that are labelled as inside or outside, through the projection onto it.

The polytope {z : G z <= h} is learned by its faces. How far a point is outside is its distance from its projection,
which a quadratic program solves; its derivative says how the faces should move. For points inside to count too, they
are projected onto a polytope whose faces are pulled in by a margin: nearer to it than the margin is inside. There are
more faces than needed; some end up touching nothing. Draws the labels, the truth and what was found. About 20 seconds.
"""

# %%
import math
import sys
import time

import torch
from torch import Tensor, nn

import torchimplicit as ti


# %%
class Polytope(nn.Module):
    """The points of the plane with G z <= h, with faces of unit normals around a centre."""

    def __init__(self, faces: int, radius: float = 0.3):
        super().__init__()
        angle = 2 * math.pi * torch.arange(faces) / faces
        self.angle, self.reach = nn.Parameter(angle), nn.Parameter(torch.full((faces,), radius))
        self.centre = nn.Parameter(torch.zeros(2))

    def faces(self) -> tuple[Tensor, Tensor]:
        """`G` `(faces, 2)` and `h` `(faces,)`; the centre is inside, always."""
        normals = torch.stack((self.angle.cos(), self.angle.sin()), 1)
        return normals, normals @ self.centre + nn.functional.softplus(self.reach, beta=10)

    def forward(self, x: Tensor, margin: float) -> Tensor:
        """How far points `(B, 2)` are inside, at most `margin`; negative outside."""
        normals, offsets = self.faces()
        # Faces pulled in by the margin would cross in a polytope narrower than that: they stay 1/20 from the centre.
        offsets = torch.maximum(offsets - margin, normals @ self.centre + 0.05)
        return margin - distance(x, normals, offsets)


# %%
def distance(x: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Distances `(B,)` of points from a polytope, 0 inside; differentiable in all."""
    nearest = ti.qp(torch.eye(2), -x, G=normals, h=offsets).value
    square = (nearest - x).square().sum(1)
    return torch.where(square > 0, square, 1).sqrt() * (square > 0)


# %%
def corners(normals: Tensor, offsets: Tensor) -> Tensor:
    """The vertices `(vertices, 2)` of a polytope in the plane, in turn: where two faces meet inside of all others."""
    i, j = torch.triu_indices(len(offsets), len(offsets), 1)
    cross = normals[i, 0] * normals[j, 1] - normals[i, 1] * normals[j, 0]
    i, j = i[cross.abs() > 1e-9], j[cross.abs() > 1e-9]
    points = torch.linalg.solve(torch.stack((normals[i], normals[j]), 1), torch.stack((offsets[i], offsets[j]), 1))
    points = points[(points @ normals.T <= offsets + 1e-5).all(1)]
    around = points - points.mean(0)
    return points[torch.atan2(around[:, 1], around[:, 0]).argsort()]


# %%
def area(vertices: Tensor) -> float:
    """Of a polygon whose vertices come in turn."""
    x, y = vertices.unbind(1)
    return 0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().item()


# %%
def errors(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """How far a polytope is from a second one, as fractions of the second.

    The area where they differ by the area, and the Hausdorff distance, which the corners decide, by the diameter.
    """
    vertices = corners(*other)
    both = corners(*(torch.cat(parts) for parts in zip(one, other, strict=True)))
    differ = area(corners(*one)) + area(vertices) - 2 * area(both)
    apart = torch.cat((distance(corners(*one), *other), distance(vertices, *one))).max()
    return differ / area(vertices), (apart / torch.cdist(vertices, vertices).max()).item()


# %%
def truth() -> tuple[Tensor, Tensor]:
    """Six faces."""
    angle = torch.tensor([0.2, 1.1, 2.0, 3.0, 4.2, 5.3])
    normals = torch.stack((angle.cos(), angle.sin()), 1)
    return normals, torch.tensor([1.2, 1.0, 1.3, 1.1, 0.9, 1.2])


# %%
def fit(x: Tensor, inside: Tensor, faces: int, steps: int, margin: float = 0.15) -> Polytope:
    """Minimises the cross entropy of the labels, softened by a quarter of the margin."""
    polytope = Polytope(faces)
    optimizer = torch.optim.Adam(polytope.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        # The softer the labels, the farther off a face feels them: from wide to narrow.
        softness = margin * 0.02 ** (step / steps)
        loss = nn.functional.binary_cross_entropy_with_logits(polytope(x, margin) / softness, inside)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // 5, 1) == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}")
    return polytope


# %%
def draw(file: str, x: Tensor, inside: Tensor, learned: tuple[Tensor, Tensor]) -> None:
    """Points, the true polytope and the learned one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for which, colour in ((1, "C0"), (0, "0.7")):
        axes.plot(*x[inside == which].T.tolist(), ".", color=colour, markersize=3)
    for faces, style, name in ((truth(), "k-", "true"), (learned, "C1--", "learned")):
        vertices = corners(*faces)
        axes.plot(*torch.cat((vertices, vertices[:1])).T.tolist(), style, label=name)
    axes.set_aspect("equal")
    axes.legend(loc="upper right")
    figure.savefig(file, dpi=120)


# %%
def main(points: int = 1500, faces: int = 10, steps: int = 150, file: str | None = None) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.rand(points, 2, generator=generator) - 2
    normals, offsets = truth()
    inside = (x @ normals.T <= offsets).all(1).float()
    began = time.process_time()
    polytope = fit(x, inside, faces, steps)
    took = time.process_time() - began
    with torch.no_grad():
        learned = polytope.faces()
        right = ((polytope(x, 0.01) > 0) == (inside > 0)).float().mean().item()
        differ, apart = errors(learned, truth())
    print(f"{len(corners(*learned))} corners found, {len(corners(*truth()))} true; {100 * right:.1f} % of the labels;")
    print(f"area where they differ {100 * differ:.1f} %, Hausdorff distance {100 * apart:.1f} % of the diameter")
    print(f"{steps} steps in {took:.1f} s of one core")
    if file is not None:
        draw(file, x, inside, learned)
    return differ, apart


# %%
if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else "polytope.png")
