"""Paths whose field is switched and whose state is dosed at known times: `odeint(jumps=, doses=, dt_max=)`.

The field is a linear one whose matrix changes its sign at every jump of the sample; between jumps its solution is a
matrix exponential.
"""

import math

import torch

import torchimplicit as ti
from tests.fuzz.arrivals import PLAY
from tests.fuzz.formulas import Formula, play
from tests.fuzz.path_variants import EXPLICIT, adaptive, after

one = torch.float64
ADJOINTS = {ti.Checkpointed(): 3, ti.Direct(): 1, ti.Checkpointed(checkpoints=2): 1, ti.Backsolve(): 1}


def field(t, y, x, A, at):
    turned = (t > at).sum(1, keepdim=True) % 2 == 1
    return torch.where(turned, -1.0, 1.0) * (y @ A) + x


def by_hand(start, stop, y, x, A, jumps, doses):
    """One sample's state at `stop`, `(1, n)`, from `y` at `start`, jump by jump in the order of their times."""
    inside = torch.nonzero((jumps >= start) & (jumps < stop)).flatten()
    sign, now = (-1.0) ** int((jumps < start).sum()), torch.as_tensor(start, dtype=one)
    for j in inside[jumps[inside].argsort()].tolist():
        y = after(jumps[j] - now, y, x, sign * A) + doses[j]
        sign, now = -sign, jumps[j]
    return after(stop - now, y, x, sign * A)


def switch(dice, known):
    batch, n, count = dice.between(1, 3), dice.between(1, 3), dice.between(1, 4)
    dtype = dice.weighted({one: 3, torch.float32: 1})
    s = dice.power(-6, 6) if dice.chance(0.3) and dtype == one else 1.0
    start, span = dice.pick(0.0, dice.uniform(-5, 5)), dice.uniform(0.3, 2.0)
    A, y0, x = dice.normal(n, n) / n**0.5, s * dice.normal(batch, n), s * dice.normal(batch, n)
    ts = torch.linspace(start, start + span, dice.between(2, 5), dtype=dtype)
    rows = [[start + span * dice.uniform(-0.2, 1.2) for _ in range(batch)] for _ in range(count)]
    jumps = torch.tensor(rows, dtype=one)
    if len(ts) > 2 and dice.chance(0.3):  # not the start, before which the field is not seen
        jumps[0] = ts[-2].double()
    if count > 1 and dice.chance(0.4):
        jumps[-1, 0] = dice.pick(math.inf, math.nan, -math.inf)
    shared = dice.chance(0.3)
    jumps = jumps[:, -1] if shared else jumps
    doses = s * dice.normal(count, batch, n)
    options = {"on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1}), "adjoint": dice.weighted(ADJOINTS)}
    options["solver"] = solver = adaptive(dice, EXPLICIT, s, torch.finfo(dtype).eps)
    if dice.chance(0.3):
        options["dt_max"] = span * dice.uniform(0.02, 0.5)
    place, dense = dice.between(1, len(ts) - 1), dice.chance(0.2)
    if dense:
        options["adjoint"] = ti.Checkpointed()

    def solve(y0, x, A, jumps, doses):
        at = jumps.detach().nan_to_num(math.inf, math.inf, math.inf)
        at = at.expand(batch, -1) if shared else at.T
        found = ti.odeint(field, y0, ts, x, A, at, jumps=jumps, doses=doses, dense=dense, **options)
        return ti.Solution(found.path(ts[place]) if dense else found.value[place], found.report)

    def exact(solution, y0, x, A, jumps, doses):
        steps = solution.report.accepted.double().clamp_min(1)
        rate = float(torch.linalg.matrix_norm(A.detach(), 2)) + 1
        formula.accuracy = PLAY * solver.rtol * steps * math.exp(2 * rate * span)
        each = jumps.nan_to_num(math.inf, math.inf, math.inf)
        each = each.unsqueeze(1).expand(-1, batch) if shared else each
        stop = ts[place].double()
        states = [
            by_hand(ts[0].double(), stop, y0[b : b + 1], x[b : b + 1], A, each[:, b], doses[:, b]) for b in range(batch)
        ]
        return torch.cat(states)

    title = f"switched {count} times, scale {s:.2g}, to {span:.3g} in {len(ts)}, {batch} x {n}, {dtype}, {options}"
    formula = Formula(title, solve, exact, [y0, x, A, jumps, doses], dtype, dice.normal(batch, n), options=options)
    return title, lambda: play(formula)
