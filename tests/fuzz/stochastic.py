"""`sdeint` against bare loops: every sample by itself, in float64, its noise asked for by the numbers of its steps.

Euler, Heun, Midpoint and the reversible Heun are written out here. The other methods are asked for equations of
constant coefficients, which every method solves exactly. What is judged are values, gradients, the divergence from a
prior and statuses; that the noise has the law of a Brownian motion is judged by tests of its own.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

import torchimplicit as ti
from tests.fuzz import forms
from tests.fuzz.forms import Form
from tests.fuzz.verdict import silent
from tests.fuzz.watch import Fault, watched

one = torch.float64
sde = ti.sde

# Errors relative to the size of what is summed. Paths are short and their fields gentle: roundings grow little.
CLOSE = {torch.float64: 1e-9, torch.float32: 2e-3}


def euler(f, g, t, h, y, W):
    return y + h * f(t, y) + times(g(t, y), W)


def heun(f, g, t, h, y, W):
    f0, g0 = f(t, y), g(t, y)
    z = y + h * f0 + times(g0, W)
    return y + h * (f0 + f(t + h, z)) / 2 + (times(g0, W) + times(g(t + h, z), W)) / 2


def midpoint(f, g, t, h, y, W):
    z = y + (h * f(t, y) + times(g(t, y), W)) / 2
    return y + h * f(t + h / 2, z) + times(g(t + h / 2, z), W)


def times(g, W):
    """The diffusion by the noise: diagonal, or a matrix."""
    return g * W if g.dim() == W.dim() else (g @ W.unsqueeze(-1)).squeeze(-1)


# name -> (method, calculus, one step of it)
WRITTEN = {
    "EulerMaruyama": (sde.EulerMaruyama, "ito", euler),
    "Heun": (sde.Heun, "stratonovich", heun),
    "Midpoint": (sde.Midpoint, "stratonovich", midpoint),
    "ReversibleHeun": (sde.ReversibleHeun, "stratonovich", None),
}
CONSTANT = {
    "Milstein": (sde.Milstein, "ito", ("diagonal",)),
    "SRID2": (sde.SRID2, "ito", ("diagonal", "scalar")),
    "SRA1": (sde.SRA1, "ito", ("additive",)),
    "ShARK": (sde.ShARK, "ito", ("additive",)),
    "LogODE": (sde.LogODE, "stratonovich", ("diagonal", "general")),
}


@dataclass
class Call:
    """One call and its options.

    Attributes:
        title: of the equation and the method.
        drift: `(t (B, 1), rows, x (B, n), A) -> rows`.
        diffusion: the same; rows, or `(B, n, m)`.
        step: one of `WRITTEN`; None for the reversible method.
        ts: output times, `(T,)` or `(T, B)`, float64.
        invalid: which samples hold NaN.
        prior: like `drift`, or None.
    """

    title: str
    drift: Any
    diffusion: Any
    step: Any
    start: torch.Tensor
    args: list
    ts: torch.Tensor
    form: Form
    invalid: torch.Tensor
    prior: Any
    seed: torch.Tensor
    options: dict
    cotangent: torch.Tensor

    def __post_init__(self):
        dtype = self.form.dtype
        self.y0 = self.start.to(dtype).clone().requires_grad_()
        self.given = [arg.to(dtype).clone().requires_grad_() for arg in self.args]

    def field(self, function, noisy=False):
        def call(t, state, *args):
            rows = self.form.unpack(state)
            found = function(t.reshape(-1, 1).to(rows.dtype), rows, *args)
            return found if noisy and found.dim() == 3 else self.form.pack(found)

        return call

    def solve(self):
        prior = None if self.prior is None else self.field(self.prior)
        return ti.sdeint(
            self.field(self.drift), self.field(self.diffusion, noisy=True), self.form.pack(self.y0),
            self.ts, *self.given, prior=prior, brownian=self.seed, **self.options,
        )  # fmt: skip

    def exact(self, b, y0, x, A):
        """Outputs `(T, n)` of a sample alone, its divergence `(T,)`, and the size of its largest state."""
        ts = self.ts if self.ts.dim() == 1 else self.ts[:, b]
        dt, channels = self.options["solver"].dt, self.channels(y0)
        noise = sde.Brownian(seed=self.seed[b : b + 1]).bind(torch.empty(1, channels, dtype=self.form.dtype))
        f, g = (lambda t, y, of=of: of(t.reshape(1, 1), y, x, A) for of in (self.drift, self.diffusion))
        y, kl, number = y0, y0.new_zeros(()), 0
        second, outputs, divergences, size = y, [y[0]], [kl], y0.detach().abs().amax()
        for start, stop in itertools.pairwise(ts):
            count = max(math.ceil(float(stop - start) / dt - 1e-6), 1)
            ends = [start, *(start + dt * k for k in range(1, count)), stop]
            for t, end in itertools.pairwise(ends):
                h = end - t
                W = noise.increment(number, float(h)).W.double()
                if self.prior is not None:
                    u = (f(t, y) - self.prior(t.reshape(1, 1), y, x, A)) / g(t, y)
                    kl = kl + h * u.square().sum() / 2
                if self.step is None:
                    f0, g0 = f(t, second), g(t, second)
                    second = 2 * y - second + h * f0 + times(g0, W)
                    y = y + (h * (f0 + f(end, second)) + times(g0, W) + times(g(end, second), W)) / 2
                else:
                    y = self.step(f, g, t, h, y, W)
                number, size = number + 1, torch.maximum(size, y.detach().abs().amax())
            outputs.append(y[0])
            divergences.append(kl)
        return torch.stack(outputs), torch.stack(divergences), size

    def channels(self, y0):
        return self.args[1].shape[-1] if self.options["noise"] in ("general", "scalar") else y0.shape[1]


def equation(dice, kind, batch, width, s, tau, constant):
    """Drift, diffusion, their arguments, and how they are called; in units of `s` and `tau`."""
    m = {"scalar": 1, "general": dice.between(1, 3)}.get(kind, width)
    x, A = s * dice.normal(batch, width), 0.5 * dice.normal(width, m)
    root = math.sqrt(tau)
    if constant:
        drift = lambda t, y, x, A: x / tau + 0 * y  # noqa: E731
        flat = lambda t, y, x, A: s * A[:, 0] / root + 0 * y  # noqa: E731
        wide = lambda t, y, x, A: (s * A / root) + 0 * y.unsqueeze(2)  # noqa: E731
    else:
        drift = lambda t, y, x, A: (x - y + s * torch.sin(y.flip(1) / s + t / tau)) / tau  # noqa: E731
        flat = lambda t, y, x, A: s * (A[:, 0] + 0.3 * torch.cos(y / s + t / tau)) / root  # noqa: E731
        wide = lambda t, y, x, A: s / root * (A + 0.3 * torch.sin(y / s).unsqueeze(2))  # noqa: E731
        if kind == "additive":
            flat = lambda t, y, x, A: (s * A[:, 0] * (1 + 0.5 * torch.sin(t / tau)) / root).expand_as(y)  # noqa: E731
    if kind == "additive" and constant:
        flat = lambda t, y, x, A: (s * A[:, 0] / root).expand_as(y)  # noqa: E731
    return drift, wide if kind in ("scalar", "general") else flat, [x, A]


def sdeint(dice, known):
    batch, width = dice.between(1, 4), dice.pick(1, 2, 3, 4)
    form = forms.draw(dice, width, low=False)
    reach = 6 if form.dtype == one else 3
    s = 1.0 if dice.chance(0.6) else dice.power(-reach, reach)
    tau = 1.0 if dice.chance(0.6) else dice.power(-reach, reach)
    constant = dice.chance(0.3)
    name = dice.pick(*(CONSTANT if constant else WRITTEN))
    method, calculus, more = (CONSTANT if constant else WRITTEN)[name]
    kinds = more if constant else ("diagonal", "scalar", "general", "additive")
    plain = form.name in ("matrix", "vector")
    kind = dice.pick(*(kind for kind in kinds if plain or kind not in ("scalar", "general")))
    form = Form("matrix", form.dtype, 1) if kind in ("scalar", "general") else Form(form.name, form.dtype, 1)
    drift, diffusion, args = equation(dice, kind, batch, width, s, tau, constant)
    span, steps, count = dice.uniform(0.2, 1.0) * tau, dice.between(1, 40), dice.between(2, 4)
    ts = torch.tensor([0.0, *sorted(dice.uniform(0.1, 0.9) for _ in range(count - 2)), 1.0], dtype=one) * span
    if float(ts.diff().min()) < 1e-2 * span:
        ts = torch.linspace(0, 1, count, dtype=one) * span
    ragged = dice.chance(0.2)
    dt = span / steps * dice.weighted({1.0: 2, 0.9: 1})
    if ragged:
        ts, dt = ts[:, None] * torch.linspace(1, 0.5, batch, dtype=one), dt / 2
    invalid = torch.zeros(batch, dtype=torch.bool)
    if dice.chance(0.15):
        invalid[dice.between(0, batch - 1)] = True
        args[0][invalid] = math.nan
    prior = None
    if name == "EulerMaruyama" and kind == "diagonal" and form.name == "matrix" and dice.chance(0.4):
        base = diffusion
        diffusion = lambda t, y, x, A: base(t, y, x, A).square() * math.sqrt(tau) / s + s / math.sqrt(tau)  # noqa: E731
        prior = lambda t, y, x, A: (x - 2 * y) / tau  # noqa: E731
    adjoints = {sde.Checkpointed(): 3, sde.Checkpointed(checkpoints=dice.between(2, 5)): 2, sde.Direct(): 3}
    if name == "ReversibleHeun":
        adjoints[sde.Reversible()] = 4
    options = {
        "solver": method(dt=dt), "noise": kind, "calculus": calculus, "adjoint": dice.weighted(adjoints),
        "on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1}),
    }  # fmt: skip
    if dice.chance(0.3):
        options["batched_args"] = (0,)
    seed = torch.tensor([dice.between(0, 2**62) for _ in range(batch)])
    words = ", ".join(f"{name}={value}" for name, value in options.items())
    title = f"{'constant' if constant else 'waves'}, scale {s:.3g}, tau {tau:.3g}, {form.name} {form.dtype}, {words}"
    step = euler if constant else more
    call = Call(
        title, drift, diffusion, step, s * dice.normal(batch, width), args, ts, form, invalid, prior, seed,
        options, dice.normal(len(ts), batch, width),
    )  # fmt: skip
    return title, lambda: play(call)


def play(call):
    """Solves, differentiates, and compares with the bare loop of every sample."""
    outcome = watched(call.solve)
    faults = list(outcome.faults)
    solution = outcome.error.solution if isinstance(outcome.error, ti.ConvergenceError) else outcome.value
    if solution is None:
        return "broken" if faults else "refused", faults
    rows = range(len(call.ts))
    values = torch.stack([call.form.unpack(pytree.tree_map(lambda leaf, k=k: leaf[k], solution.value)) for k in rows])
    there = solution.status == ti.Status.CONVERGED
    if not values.isfinite().all() and call.y0.isfinite().all():
        faults.append(silent(f"the value is not finite: statuses {solution.status.tolist()}"))
    for b in torch.nonzero(there == call.invalid).flatten().tolist():
        if bool(there[b]):
            faults.append(silent("arrived, and holds NaN", b))
        elif solution.status[b] != ti.Status.DRIFTED:
            faults.append(Fault("exception", f"sample {b} is {solution.status[b]}, and well"))
    y0 = call.y0.detach().double().requires_grad_()
    args = [arg.detach().double().requires_grad_() for arg in call.given]
    close, losses = CLOSE[call.form.dtype], {}
    for b in torch.nonzero(there & ~call.invalid).flatten().tolist():
        expected, kl, size = call.exact(b, y0[b : b + 1], args[0][b : b + 1], args[1])
        error = float((values[:, b].double() - expected).detach().abs().max())
        if not error <= close * float(size):
            faults.append(silent(f"arrived, off by {error:.3g} of {float(size):.3g}", b))
        losses[b] = (expected * call.cotangent[:, b]).sum()
        if call.prior is not None:
            error = float((solution.kl[:, b].double() - kl).detach().abs().max())
            if not error <= 10 * close * float(1 + kl.detach().max()):
                faults.append(silent(f"kl is off by {error:.3g} of {float(kl.detach().max()):.3g}", b))
            losses[b] = losses[b] + kl.sum()
    if not faults and losses and values.requires_grad:
        faults += gradients(call, values, solution, losses, [y0, *args])
    return "converged" if solution.report.converged else "failed", faults


def gradients(call, values, solution, losses, exact):
    """Whether gradients are those of the bare loops, of a loss of the samples that are told to have arrived.

    Those that have drifted went all the way, with the gradient of where they came to: they are masked out of the loss,
    as a user would, and then must add nothing. So are those of which the backward pass says that it drifted, in a
    second one.
    """
    faults = []
    for _ in range(2):
        own = loss_of(call, values, solution, losses)
        by = {"inputs": [call.y0, *call.given], "allow_unused": True, "retain_graph": True}
        outcome = watched(lambda own=own, by=by: torch.autograd.grad(own, **by))
        faults += outcome.faults
        if outcome.value is None and not faults and not isinstance(outcome.error, ti.ConvergenceError):
            faults.append(Fault("exception", f"backward: {outcome.error!r}"))
        if faults:
            return faults
        kept, backward = list(losses), solution.backward
        told = [] if backward is None else [b for b in kept if backward.status[b] != ti.Status.CONVERGED]
        if not told and outcome.value is not None:
            return compared(call, outcome.value, sum(losses.values()), kept, exact)
        losses = {b: loss for b, loss in losses.items() if b not in told}
        if not told or not losses:
            return faults
    return faults


def loss_of(call, values, solution, kept):
    """A loss of some samples alone."""
    mask = torch.zeros(len(call.start), 1, dtype=torch.bool).index_fill(0, torch.tensor(list(kept)), True)
    own = torch.where(mask, values * call.cotangent.to(values.dtype), 0.0).sum()
    return own if call.prior is None else own + solution.kl[:, list(kept)].sum()


def compared(call, found, loss, kept, exact):
    """The faults of gradients of the start and of both arguments; samples that are not kept must have none."""
    faults, true = [], torch.autograd.grad(loss, exact, allow_unused=True)
    others = [b for b in range(len(call.start)) if b not in kept]
    for name, got, want in zip(("y0", "x", "A"), found, true, strict=True):
        got = torch.zeros_like(exact[0]) if got is None else got.double()
        want = torch.zeros_like(got) if want is None else want
        if name != "A" and bool((got[others] != 0).any()):
            faults.append(silent(f"the gradient of {name} is {got[others].tolist()} of samples {others}, left out"))
        rows = (got[kept], want[kept]) if name != "A" else (got, want)
        scale = float(rows[1].abs().max()) + float(call.cotangent.abs().sum()) * float(
            call.start.abs().max() if name == "A" else 1.0
        )
        error = float((rows[0] - rows[1]).abs().max())
        if not error <= 10 * CLOSE[call.form.dtype] * scale:
            faults.append(silent(f"the gradient of {name} is off by {error:.3g} of {float(rows[1].abs().max()):.3g}"))
    return faults
