"""Paths by other ways: given steps, reversible and symplectic ones, dense output, events, `nn.NeuralODE`.

The field is a linear one, its solution a matrix exponential. A method may be off by `PLAY` = 10 times its tolerance a
step (one of given steps: 10 times their size to the power of its order), times what the field magnifies errors by.
"""

import math

import torch

import torchimplicit as ti
from tests.fuzz.arrivals import PLAY
from tests.fuzz.exponential import Exponential
from tests.fuzz.formulas import Formula, play

one = torch.float64


def field(t, y, x, A):
    return y @ A + x


def after(t, y0, x, A):
    """The state after the time `t`, `(B, 1)` or a number: `y' = y A + x`, in units of the state."""
    n, unit = y0.shape[1], torch.maximum(y0.detach().abs().amax(), x.detach().abs().amax())
    system = torch.nn.functional.pad(A.expand(len(y0), n, n), (0, 1, 0, 1))
    system = system + torch.nn.functional.pad(x[:, None, :] / unit, (0, 1, n, 0))
    rows = torch.nn.functional.pad(y0 / unit, (0, 1), value=1.0)[:, None, :]
    return unit * (rows @ Exponential.apply(system * torch.as_tensor(t, dtype=one).reshape(-1, 1, 1)))[:, 0, :n]


def crossing(level, span, y0, x, A, place=0):
    """When an unknown comes to the level, or -1, by bisection, and Newton's step for derivatives; how surely.

    The last is 0 where it grazes the level or crosses it twice, which steps may overlook, and else its speed there.
    """
    args = y0.detach(), x.detach(), A.detach()
    times = torch.linspace(0, span, 2001, dtype=one)
    height = torch.stack([after(t, *args)[:, place] - level for t in times])
    beyond = height.sign() != height[:1].sign()
    first = beyond.to(torch.int8).argmax(0).clamp_min(1)
    low, high = times[first - 1], times[first]
    for _ in range(60):
        middle = (low + high) / 2
        same = (after(middle, *args)[:, place] - level).sign() == height[0].sign()
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    middle = (low + high) / 2
    speed = field(0, after(middle, *args), *args[1:])[:, [place]]
    crosses = beyond.any(0)
    size = height.abs().amax(0)
    sure = (height.abs().amin(0) > 1e-2 * size) & (height.abs()[0] > 1e-2 * size) | (beyond.diff(dim=0).sum(0) == 1)
    sure = sure & (height.abs()[0] > 1e-3 * size) & (height.abs()[-1] > 1e-3 * size)
    time = middle[:, None] - (after(middle, y0, x, A)[:, [place]] - level) / speed
    return torch.where(crosses[:, None], time, -1.0), torch.where(sure, speed[:, 0].abs(), 0.0), crosses


def meeting(levels, span, y0, x, A):
    """When the second unknown ends a solve at its level and the first has passed its own, -1 for never; how surely."""
    (end, speed, ends), (pass_by, other, passes) = (
        crossing(level, span, y0, x, A, place) for place, level in ((1, levels[1]), (0, levels[0]))
    )
    until = torch.where(ends, end[:, 0].detach(), torch.inf)
    apart = (until - pass_by[:, 0].detach()).abs() > 0.02 * span
    passes = passes & (pass_by[:, 0].detach() < until)
    slowest = torch.minimum(torch.where(ends, speed, torch.inf), torch.where(passes, other, torch.inf))
    sure = (speed > 0) & (other > 0) & apart
    times = torch.cat((end, torch.where(passes[:, None], pass_by, -1.0)), 1)
    return times, torch.where(sure, slowest, 0.0), ends | passes


def adaptive(dice, kinds, s, eps):
    rtol = max(dice.power(-8, -4), 100 * eps)
    return dice.pick(*kinds)(rtol=rtol, atol=s * rtol)


EXPLICIT = ti.Tsit5, ti.Dopri5, ti.Dopri8, ti.Bosh3
GIVEN = {ti.Euler: 200, ti.Midpoint: 60, ti.RK4: 30}  # and how many steps
WAYS = {"given": 3, "reversible": 2, "symplectic": 2, "dense": 2, "event": 3, "events": 3, "layer": 3}


def path_variant(dice, known):
    way = dice.weighted(WAYS)
    batch, n = dice.between(1, 3), 2 * dice.between(1, 2)
    dtype = dice.weighted({one: 3, torch.float32: 1})
    eps = torch.finfo(dtype).eps
    s = dice.power(-12, 12) if dice.chance(0.3) and dtype == one else 1.0
    span = dice.uniform(0.3, 2.0)
    A, mask = dice.normal(n, n) / n**0.5, torch.ones(n, n, dtype=dtype)
    y0, x = s * dice.normal(batch, n), s * dice.normal(batch, n)
    ts = torch.linspace(0, span, dice.between(2, 4), dtype=dtype)
    options = {"on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1})}
    options["adjoint"] = dice.pick(ti.Checkpointed(), ti.Direct(), ti.Checkpointed(checkpoints=4))
    options["solver"] = solver = adaptive(dice, EXPLICIT, s, eps)
    if way == "given":
        kind = dice.pick(*GIVEN)
        options["solver"] = solver = kind(dt=span / GIVEN[kind])
    elif way == "reversible":
        options["solver"] = solver = adaptive(dice, (ti.Tsit5, ti.Dopri5, ti.Bosh3), s, eps)
        options["adjoint"] = ti.Reversible(coupling=dice.pick(0.999, 0.99))
    elif way == "symplectic":  # q' = p S, p' = -q: separable
        mask[: n // 2, : n // 2] = mask[n // 2 :, n // 2 :] = 0
        kind = dice.pick(ti.Leapfrog, ti.Suzuki4)
        options["solver"] = solver = kind(dt=span / dice.pick(60, 100))
    elif way == "layer" and dice.chance(0.5):
        options["adjoint"] = ti.Backsolve()
    rate = float(torch.linalg.matrix_norm(A, 2)) + 1
    level, moment = s * dice.uniform(-0.5, 0.5), dice.uniform(0.1, 0.9) * span
    other = s * dice.uniform(-0.5, 0.5) if way == "events" else level

    def solve(y0, x, A):
        A = A * mask
        if way == "layer":
            layer = ti.nn.NeuralODE(field, ts, **options)
            return ti.Solution(layer(y0, x, A), layer.report)
        event = ti.Event(lambda t, y, x, A: y[:, 0] - level, terminal=way == "event")
        event = {"event": event, "events": [event, ti.Event(lambda t, y, x, A: y[:, 1] - other)]}.get(way)
        found = ti.odeint(field, y0, ts, x, A, event=event, dense=way == "dense", **options)
        if way == "dense":
            return ti.Solution(found.path(torch.tensor(moment, dtype=dtype)), found.report)
        if event is None:
            return ti.Solution(found.value[-1], found.report)
        times = (
            [found.event_time] if way == "event" else [found.event_time, torch.full_like(found.event_time, torch.nan)]
        )
        if way == "events" and len(found.crossings[0].time):
            times[1] = found.crossings[0].time[0]
        return ti.Solution(torch.stack(times, 1).nan_to_num(-1), found.report)

    def exact(solution, y0, x, A):
        A = A * mask
        steps = solution.report.accepted.double().clamp_min(1)
        step = PLAY * (rate * span / steps) ** (solver.order + 1)
        tolerance = step if way in ("given", "symplectic") else PLAY * solver.rtol
        formula.accuracy = tolerance * steps * math.exp(2 * rate * span)
        if way not in ("event", "events"):
            return after(moment if way == "dense" else span, y0, x, A)
        if way == "event":
            time, speed, crosses = crossing(level, span, y0, x, A)
        else:
            time, speed, crosses = meeting((level, other), span, y0, x, A)
        slow = formula.accuracy * s / speed / time.detach().abs().amin(1)
        formula.accuracy = torch.where(speed < 0.1 * s, torch.inf, torch.where(crosses, slow, 0.0))
        return time

    title = f"{way}, scale {s:.2g}, to {span:.3g} in {len(ts)}, {batch} x {n}, {dtype}, {options}"
    cotangent = dice.normal(batch, {"event": 1, "events": 2}.get(way, n))
    formula = Formula(title, solve, exact, [y0, x, A], dtype, cotangent, options=options)
    return title, lambda: play(formula)
