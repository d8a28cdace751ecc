"""`fixed_point`: maps that contract, rotate, expand, fold, saturate, couple, have no solution, or hold NaN."""

import math

import torch

import torchimplicit as ti
from tests.fuzz import forms, options, verdict
from tests.fuzz.points import Call, Condition, play

SHAPES = {
    "linear": lambda v: v,
    "tanh": torch.tanh,
    "sine": torch.sin,
    "fold": torch.abs,
    "relu": torch.relu,
    "cell": lambda v: v.square() / (1 + v.square()),
}


def weight(dice, width):
    """A matrix of a drawn kind and size: rotations, triangular, symmetric, of low rank; and what was drawn."""
    kind = dice.weighted({"dense": 4, "symmetric": 2, "rotation": 1, "triangular": 1, "rank one": 1})
    radius = dice.weighted({0.3: 2, 0.8: 4, 0.99: 2, 1.0: 1, 1.0 - 1e-9: 0.5, 3.0: 1.5, 0.0: 0.5})
    w = dice.normal(width, width)
    if kind == "symmetric":
        w = w + w.T
    elif kind == "rotation":
        w = torch.linalg.qr(w)[0]
    elif kind == "triangular":
        w = torch.tril(w, -1) * 10 + radius * torch.eye(width, dtype=torch.float64)
    elif kind == "rank one":
        w = w[:, :1] * w[:1]
    if kind != "triangular":
        w = radius * w / torch.linalg.matrix_norm(w, 2)
    return w, f"{kind} {radius:.3g}"


def condition(dice, low=True):
    """A map `s phi(z W / s) + x + c`, and the form of its state."""
    batch, width = dice.between(1, 4), dice.pick(1, 2, 3, 4, 6)
    form = forms.draw(dice, width, low)
    reach = {torch.float16: 2, torch.bfloat16: 12}.get(form.dtype, 30 if form.dtype == torch.float64 else 12)
    s = 1.0 if dice.chance(0.5) else dice.power(-reach, reach)
    if dice.chance(0.15) and form.dtype in forms.COMPLEX:
        s = dice.power(-30, 30)
    name = dice.weighted({"tanh": 4, "linear": 3, "sine": 1, "fold": 1, "relu": 1, "cell": 1})
    phi, (w, drawn) = SHAPES[name], weight(dice, width)
    x, c = s * dice.normal(batch, width), 0.1 * s * dice.normal(width)
    start = dice.weighted({"zero": 3, "near": 3, "far": 1})
    start = {"zero": 0.0, "near": s, "far": 1e3 * s}[start] * dice.normal(batch, width)
    if dice.chance(0.05):  # nothing drives it: the solution may be zero
        x, c = torch.zeros_like(x), torch.zeros_like(c)
    coupled = 0.0
    if batch > 1 and form.batch_dims and dice.chance(0.06):
        coupled = dice.power(-3, 0)
    invalid = None
    if not coupled and dice.chance(0.1):
        invalid = torch.zeros(batch, dtype=torch.bool)
        invalid[dice.between(0, batch - 1)] = True
        x[invalid, dice.between(0, width - 1)] = dice.pick(math.nan, math.inf, -math.inf)
    drift = 0.0
    nowhere = name == "linear" and not coupled and invalid is None and form.eps < 1e-6 and dice.chance(0.1)
    if nowhere:  # z = z + s, from near zero: far away s is within the relative tolerance
        start = s * dice.normal(batch, width)
        w, x, c, drift = torch.eye(width, dtype=torch.float64), torch.zeros_like(x), torch.zeros_like(c), s
        drawn = "moves on"

    def image(z, probe, x, w, c):
        value = s * phi(z / s @ w) + x + c + probe + drift
        return value + coupled * (z - z.mean(0, keepdim=True)) if coupled else value

    title = f"{name} of {drawn}, scale {s:.3g}, {batch} x {width}" + (f", coupled {coupled:.3g}" if coupled else "")
    title += "" if invalid is None else f", invalid {invalid.tolist()}"
    return form, Condition(
        title,
        image,
        lambda z, *args: z - image(z, *args),
        [torch.zeros_like(x), x, w, c],
        start,
        s * torch.ones(width, dtype=torch.float64),
        (1 + float(torch.linalg.matrix_norm(w))) * torch.ones(width, dtype=torch.float64),
        1 + float(torch.linalg.matrix_norm(w)),
        invalid=invalid,
        coupled=bool(coupled),
        extra={"sign": 1.0},
    )


def layer(f, z0, *args, solver, adjoint, on_failure, batched_args=None, save_steps=(), **others):
    """`nn.DEQ` as a public function."""
    deq = ti.nn.DEQ(f, solver, adjoint, lambda *inputs: z0, batched_args=batched_args, on_failure=on_failure)
    value = deq(*args, save_steps=save_steps)
    return ti.Solution(value[0] if save_steps else value, deq.report)


def fixed_point(dice, known):
    form, problem = condition(dice)
    solver = options.equation_solver(dice, form, float(problem.units[0]))
    chosen = options.around(dice, form, solver, problem.own)
    public = layer if form.batch_dims and dice.chance(0.2) else ti.fixed_point
    call = Call(
        public,
        problem,
        form,
        chosen,
        dice.chance(0.3),
        "state",
        options.cotangent(dice, form, problem.start.shape),
        public is ti.fixed_point and dice.chance(0.1),
    )
    return call.title, lambda: play(call, verdict.fixed_points)
