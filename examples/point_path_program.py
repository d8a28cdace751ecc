"""A point, a path and a program: the three kinds of layer in one picture.

Left, the fixed point of z = tanh(W z + x), by plain iteration and by Anderson's method. In the middle, paths of Van der
Pol's oscillator, a dot at every step that the solver chose: sparse where the path is easy. Right, points and their
projections onto a polygon, each the solution of a quadratic program. Every answer has a status. Runs in seconds.
"""

# %%
import sys

import torch
from torch import Tensor

import torchimplicit as ti

BLUE, ORANGE, GREY = "#3f51b5", "#ef6c00", "#9e9e9e"


# %%
def point() -> tuple[list[Tensor], list[Tensor], ti.Report]:
    """Iterates of both methods, and how the second one ended."""
    angle = torch.tensor(0.6, dtype=torch.float64)
    turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    x, start = torch.tensor([[[0.06, 0.03]], [[-0.4, 0.3]]], dtype=torch.float64)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.94 * z @ turn.mT + x)

    plain, quick = [start], [start]
    for _ in range(40):
        plain.append(f(plain[-1], x))
    for steps in range(1, 10):
        solution = ti.fixed_point(f, start, x, solver=ti.Anderson(max_steps=steps), on_failure="ignore")
        quick.append(solution.value)
    return plain, quick, solution.report


# %%
def path() -> tuple[Tensor, list[Tensor], ti.Report]:
    """Fine paths `(T, B, 2)`, the states after every step, and how they ended."""

    def oscillator(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack((y[:, 1], 2 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)

    start = torch.tensor([[0.1, 0.0], [-2.5, 3.5], [2.6, -3.5]], dtype=torch.float64)
    times, dots = torch.linspace(0, 9, 600, dtype=torch.float64), []
    solver = ti.Dopri5(rtol=1e-3, atol=1e-3)
    solution = ti.odeint(oscillator, start, times, solver=solver, callback=lambda t, y, moved: dots.append(y[moved]))
    return solution.value, dots, solution.report


# %%
def program() -> tuple[Tensor, Tensor, Tensor, ti.Report]:
    """Corners, points and projections, and how the programs ended."""
    angles = torch.tensor([0.2, 1.3, 2.4, 3.5, 4.3, 5.4], dtype=torch.float64)
    faces = torch.stack((angles.cos(), angles.sin()), 1)
    bounds = torch.tensor([1.0, 0.8, 1.1, 0.9, 1.0, 1.0], dtype=torch.float64)
    following = torch.arange(1, 7) % 6
    pairs = torch.stack((faces, faces[following]), 1), torch.stack((bounds, bounds[following]), 1)
    corners = torch.linalg.solve(pairs[0], pairs[1])
    ring = torch.linspace(0, 6.28, 25, dtype=torch.float64)[:-1]
    x = 1.9 * torch.stack((ring.cos(), ring.sin()), 1)
    solution = ti.qp(torch.eye(2, dtype=torch.float64), -x, faces, bounds)
    return corners, x, solution.value, solution.report


# %%
def draw(file: str) -> list[ti.Report]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plain, quick, found = point()
    left.plot(*torch.cat(plain).T.tolist(), ".-", color=GREY, linewidth=0.8, label="plain iteration")
    left.plot(*torch.cat(quick).T.tolist(), "o-", color=BLUE, markersize=4, label="Anderson")
    left.plot(*quick[-1][0].tolist(), "*", color=ORANGE, markersize=14, label="the fixed point")
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, fontsize="small")
    fine, dots, arrived = path()
    for k, colour in enumerate((BLUE, GREY, ORANGE)):
        middle.plot(*fine[:, k].T.tolist(), color=colour, linewidth=1.2)
    middle.plot(*torch.cat(dots).T.tolist(), ".", color="black", markersize=3)
    corners, x, projected, solved = program()
    right.fill(*corners.T.tolist(), color=BLUE, alpha=0.15)
    for a, b in zip(x.tolist(), projected.tolist(), strict=True):
        right.plot(*zip(a, b, strict=True), color=GREY, linewidth=0.8)
    right.plot(*x.T.tolist(), ".", color=GREY)
    right.plot(*projected.T.tolist(), "o", color=ORANGE, markersize=4)
    for axes, title in ((left, "a point"), (middle, "a path"), (right, "a program")):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    right.set_aspect("equal")
    figure.savefig(file, dpi=130)
    return [found, arrived, solved]


# %%
def main(file: str = "point-path-program.png") -> list[ti.Report]:
    reports = draw(file)
    print(*reports, sep="\n")
    return reports


# %%
if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1].endswith(".png") else "point-path-program.png")
