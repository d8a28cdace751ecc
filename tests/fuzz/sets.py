"""Projections and proximal maps, in any units, beside formulas of their own: thresholds by bisection, signs, norms."""

import torch

import torchimplicit as ti
from tests.fuzz.formulas import Formula, play

one = torch.float64
projection, prox = ti.optim.projection, ti.optim.prox


def threshold(total, x, target):
    """The number t with `total(x - t) = target`, `(B, 1)`, by bisection; `total` grows."""
    spread = x.abs().amax(1, keepdim=True) + target.abs()
    low, high = -2 * spread, 2 * spread
    for _ in range(200):
        middle = (low + high) / 2
        large = total(x - middle).sum(1, keepdim=True) > target
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    return (low + high) / 2


def simplex(x, r):
    """`max(x - t, 0)` with the sum `r`."""
    r = r[:, None]
    support = x.detach() > threshold(lambda v: v.clamp_min(0), x.detach(), r.detach())
    t = (torch.where(support, x, 0.0).sum(1, keepdim=True) - r) / support.sum(1, keepdim=True)
    return torch.where(support, x - t, 0.0)


def l1_ball(x, r):
    outside = x.detach().abs().sum(1) > r.detach()
    return torch.where(outside[:, None], simplex(x.abs(), r) * x.detach().sign(), x)


def l2_ball(x, r):
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(length > r[:, None], x * (r[:, None] / length), x)


def linf_ball(x, r):
    return torch.maximum(torch.minimum(x, r[:, None]), -r[:, None])


def capped(x, r):
    """Entries from 0 to `r / 2`, whose sum is `r`; of three unknowns or more."""
    r = r[:, None]
    cap = r / 2
    t = threshold(lambda v: torch.minimum(v.clamp_min(0), cap.detach()), x.detach(), r.detach())
    free, full = (x.detach() > t) & (x.detach() < t + cap.detach()), x.detach() >= t + cap.detach()
    count = free.sum(1, keepdim=True).clamp_min(1)
    t = (torch.where(free, x, 0.0).sum(1, keepdim=True) - (r - full.sum(1, keepdim=True) * cap)) / count
    return torch.where(free, x - t, torch.where(full, cap, 0.0))


def cone(x, r):
    """The second-order cone; the radius does not matter."""
    t, v = x[:, :1], x[:, 1:]
    length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    part = torch.cat(((length + t) / 2, v * (length + t) / (2 * length)), 1)
    return torch.where(length <= t, x, torch.where(length <= -t, 0.0, part))


def isotonic(x, r):
    """Every entry is the largest over the starts, the smallest over the ends, of the means of blocks around it."""
    n = x.shape[1]
    sums = torch.nn.functional.pad(x.cumsum(1), (1, 0))
    rows = []
    for i in range(n):
        means = [
            torch.stack([(sums[:, k + 1] - sums[:, j]) / (k + 1 - j) for k in range(i, n)]).amin(0)
            for j in range(i + 1)
        ]
        rows.append(torch.stack(means).amax(0))
    return torch.stack(rows, 1)


def psd(x, r):
    """The positive part of a symmetric matrix, from its eigenvalues; derivatives where these are apart."""
    values, vectors = torch.linalg.eigh(matrix(x))
    return ((vectors * values.clamp_min(0).unsqueeze(1)) @ vectors.mT).flatten(1)


def matrix(x):
    root = int(x.shape[1] ** 0.5)
    square = x.reshape(-1, root, root)
    return (square + square.mT) / 2


# name -> (the library's, the formula, of points and one radius or step a sample)
KINDS = {
    "simplex": (projection.simplex, simplex),
    "l1_ball": (projection.l1_ball, l1_ball),
    "l2_ball": (projection.l2_ball, l2_ball),
    "linf_ball": (projection.linf_ball, linf_ball),
    "capped_simplex": (lambda x, r: projection.capped_simplex(x, r, (r / 2)[:, None]), capped),
    "halfspace": (
        lambda x, r: projection.halfspace(x, torch.ones_like(x), r),
        lambda x, r: x - ((x.sum(1) - r).clamp_min(0) / x.shape[1])[:, None],
    ),
    "affine": (
        lambda x, r: projection.affine(x, torch.ones_like(x[:, None]), r[:, None]),
        lambda x, r: x - ((x.sum(1) - r) / x.shape[1])[:, None],
    ),
    "second_order_cone": (lambda x, r: projection.second_order_cone(x), cone),
    "isotonic": (lambda x, r: projection.isotonic(x), isotonic),
    "semidefinite_cone": (lambda x, r: projection.semidefinite_cone(matrix(x)).flatten(1), psd),
    "prox l1": (prox.l1, lambda x, r: x - linf_ball(x, r)),
    "prox l2": (prox.l2, lambda x, r: x - l2_ball(x, r)),
    "prox linf": (prox.linf, lambda x, r: x - l1_ball(x, r)),
    "prox squared_l2": (
        lambda x, r: prox.squared_l2(x, r / r.detach().max()),
        lambda x, r: x / (1 + r / r.detach().max())[:, None],
    ),
}


def sets(dice, known):
    name = dice.pick(*KINDS)
    batch, n = dice.between(1, 4), dice.between(3, 8)
    n = 9 if name == "semidefinite_cone" else n
    dtype = dice.weighted({one: 3, torch.float32: 1})
    # A formula loses digits where the point is far from the set; so may the library, to the point's own rounding.
    s, far = dice.power(-30, 30) if dtype == one else dice.power(-12, 12), dice.weighted({1.0: 3, 30.0: 1, 0.1: 1})
    x, r = s * far * dice.normal(batch, n), s * (0.1 + dice.normal(batch).abs())
    function, exact = KINDS[name]
    title = f"{name}, scale {s:.3g}, {far} away, {batch} x {n}, {dtype}"
    formula = Formula(
        title, function, lambda solution, x, r: exact(x, r), [x, r], dtype, dice.normal(batch, n),
        condition=10 * far + 10, unit=x.abs().amax(1), slope=1.0,
    )  # fmt: skip
    return title, lambda: play(formula)
