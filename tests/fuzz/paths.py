"""`odeint` against closed forms: linear, logistic and forced fields, such that blow up, either direction, any units."""

import math
from dataclasses import dataclass

import torch

import torchimplicit as ti
from tests.fuzz import arrivals, forms
from tests.fuzz.exponential import Exponential
from tests.fuzz.forms import Form
from tests.fuzz.verdict import silent
from tests.fuzz.watch import Fault, watched

one = torch.float64


@dataclass
class Flow:
    """A field of rows and its solution, in units of `s` and `tau`.

    Attributes:
        field: `(t (B, 1), y, *args) -> dy/dt`.
        solution: `(t (B,), y0, *args) -> y`, times counted from that of the start, `at` for those of the field.
        args: float64; the first one belongs to the samples.
        start: float64 rows.
        growth: what an error at the start may grow by until the end.
        blown: which samples blow up before the end.
    """

    title: str
    field: object
    solution: object
    args: list
    start: torch.Tensor
    growth: float
    blown: torch.Tensor


def _linear(dice, batch, width, s, tau, span):
    A = dice.normal(width, width) * dice.pick(0.2, 1.0) / width**0.5
    rate = float(torch.linalg.eigvalsh((A + A.T) / 2)[-1])

    def solution(t, y0, x, A):
        block = torch.cat(
            (torch.cat((A, torch.zeros(width, 1, dtype=one)), 1), torch.zeros(1, width + 1, dtype=one)), 0
        )
        rows = torch.cat((y0 / s, torch.ones(batch, 1, dtype=one)), 1).unsqueeze(1)
        system = block.expand(batch, -1, -1) + torch.nn.functional.pad((x / s).unsqueeze(1), (0, 1, width, 0))
        return s * (rows @ Exponential.apply(system * (t / tau)[:, None, None]))[:, 0, :width]

    args = [s * dice.normal(batch, width), A]
    return Flow(
        "linear", lambda t, y, x, A: (y @ A + x) / tau, solution, args, s * dice.normal(batch, width),
        math.exp(max(rate, 0) * span), torch.zeros(batch, dtype=torch.bool),
    )  # fmt: skip


def _logistic(dice, batch, width, s, tau, span):
    k = 0.2 + dice.normal(batch, width).abs().clamp_max(2)

    def solution(t, y0, k):
        return s * y0 / (y0 + (s - y0) * torch.exp(-k * t[:, None] / tau))

    start = s * (0.1 + dice.normal(batch, width).abs())
    growth = math.exp(min(float(k.max()) * span, 8))
    field = lambda t, y, k: k / tau * y * (1 - y / s)  # noqa: E731
    return Flow("logistic", field, solution, [k], start, growth, torch.zeros(batch, dtype=torch.bool))


def _decay(dice, batch, width, s, tau, span):
    k = dice.power(-1, 1) * (0.5 + dice.normal(batch, width).abs())
    field = lambda t, y, k: -k / tau * y  # noqa: E731
    solution = lambda t, y0, k: y0 * torch.exp(-k * t[:, None] / tau)  # noqa: E731
    return Flow("decay", field, solution, [k], s * dice.normal(batch, width), 1.0, torch.zeros(batch, dtype=torch.bool))


def _blow(dice, batch, width, s, tau, span):
    k = torch.ones(batch, width, dtype=one)
    start = s * dice.normal(batch, width).abs()
    ends = (start / s * span).amax(1)
    field = lambda t, y, k: k / tau * y * (y / s)  # noqa: E731
    solution = lambda t, y0, k: y0 / (1 - k * y0 / s * t[:, None] / tau)  # noqa: E731
    growth = float((1 / (1 - ends.clamp_max(0.9)) ** 2).max())
    return Flow("blow-up", field, solution, [k], start, growth, ends > 1.0)


KINDS = {_linear: 4, _logistic: 3, _decay: 2, _blow: 1}


def solver(dice, form, s):
    """A solver; the tolerance of an adaptive one, None of one with given steps."""
    coarse = max(dice.power(-8, -2), 10 * form.eps)
    adaptive = {"rtol": coarse, "atol": s * coarse * dice.pick(1e-3, 1.0, 0.01), "max_steps": dice.pick(2000, 2000, 30)}
    kinds = {
        ti.Tsit5: 4,
        ti.Dopri5: 2,
        ti.Dopri8: 2,
        ti.Bosh3: 1,
        ti.Heun: 1,
        ti.Kvaerno3: 1,
        ti.ESDIRK54: 2,
        ti.KenCarp4: 1,
    }
    return dice.weighted(kinds)(**adaptive)


def adjoint(dice):
    return dice.weighted({
        ti.Checkpointed(): 4, ti.Checkpointed(checkpoints=dice.between(2, 6)): 2, ti.Direct(): 2, ti.Backsolve(): 2,
        ti.Backsolve(seminorm=False, checkpoints=3): 1,
    })  # fmt: skip


@dataclass
class Call:
    """One call and its options."""

    flow: Flow
    form: Form
    ts: torch.Tensor
    tau: float
    invalid: torch.Tensor
    options: dict
    cotangent: torch.Tensor
    scale: float

    def __post_init__(self):
        flow, dtype = self.flow, self.form.dtype
        self.y0 = flow.start.to(dtype).clone().requires_grad_()
        self.times = self.ts.to(dtype if dtype in forms.COMPLEX else torch.float32).clone().requires_grad_()
        self.args = [arg.to(dtype).clone().requires_grad_() for arg in flow.args]
        self.seen = [math.inf, -math.inf]

    @property
    def title(self):
        words = ", ".join(f"{name}={value}" for name, value in self.options.items())
        times = f"{self.ts.flatten()[0].item():.3g} to {self.ts.flatten()[-1].item():.3g} of {tuple(self.ts.shape)}"
        invalid = f", invalid {self.invalid.tolist()}" if bool(self.invalid.any()) else ""
        return (
            f"{self.flow.title}, scale {self.scale:.3g}, {times}, {self.form.name} {self.form.dtype}{invalid}, {words}"
        )

    def field(self, t, state, *args):
        rows = self.form.unpack(state)
        seen = t.detach()
        self.seen = [min(self.seen[0], float(seen.min())), max(self.seen[1], float(seen.max()))]
        t = t.reshape(-1, 1).to(rows.dtype) if t.dim() else t.to(rows.dtype)
        return self.form.pack(self.flow.field(t, rows, *args))

    def solve(self):
        return ti.odeint(self.field, self.form.pack(self.y0), self.times, *self.args, **self.options)

    def exact(self, y0, times, args):
        """The outputs `(T, B, n)` by the closed form."""
        times = times if times.dim() == 2 else times[:, None].expand(-1, len(y0))
        return torch.stack([self.flow.solution(t - times[0], y0, *args) for t in times])


def odeint(dice, known):
    batch, width = dice.between(1, 4), dice.pick(1, 2, 3, 4)
    form = forms.draw(dice, width, low=False)
    reach = 12 if form.dtype == one else 6
    s = 1.0 if dice.chance(0.6) else dice.power(-reach, reach)
    tau = 1.0 if dice.chance(0.6) else dice.power(-reach, reach)
    span, count = dice.uniform(0.3, 3.0), dice.between(2, 6)
    flow = dice.weighted(KINDS)(dice, batch, width, s, tau, span)
    inner = sorted(dice.uniform(0.05, 0.95) for _ in range(count - 2))
    ts = torch.tensor([0.0, *inner, 1.0], dtype=one) * span * tau
    if count > 2 and float(ts.diff().min()) < 1e-3 * span * tau:
        ts = torch.linspace(0, 1, count, dtype=one) * span * tau
    if dice.chance(0.3):
        ts = ts[:, None] * torch.linspace(1, 0.5, batch, dtype=one)
        flow.blown = flow.blown & (torch.arange(batch) == 0)
    if dice.chance(0.2):  # counted from elsewhere
        ts = ts + tau * dice.uniform(-3, 3)
    if dice.chance(0.15):  # back in time, along the field turned round
        ts, field = -ts, flow.field
        flow.field, forward = lambda t, y, *args: -field(-t, y, *args), flow.solution
        flow.solution = lambda t, y0, *args: forward(-t, y0, *args)
    invalid = torch.zeros(batch, dtype=torch.bool)
    if dice.chance(0.1):
        invalid[dice.between(0, batch - 1)] = True
        flow.args[0][invalid] = math.nan
    options = {
        "solver": solver(dice, form, s),
        "adjoint": adjoint(dice),
        "stepping": dice.weighted({"per-sample": 4, "joint": 1})
        if not bool(invalid.any()) and ts.dim() == 1
        else "per-sample",
        "on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1}),
    }
    if bool(invalid.any()) or ts.dim() == 2:
        options["stepping"] = "per-sample"
    if options["stepping"] == "per-sample" and dice.chance(0.3):
        options["batched_args"] = (0,)
    form = Form(form.name, form.dtype, int(options["stepping"] == "per-sample"))
    call = Call(flow, form, ts, tau, invalid, options, dice.normal(count, batch, width), s)
    return call.title, lambda: play(call)


def play(call):
    """Solves, differentiates, and compares with the closed form."""
    outcome = watched(call.solve)
    faults, said = list(outcome.faults), list(outcome.said)
    solution = outcome.error.solution if isinstance(outcome.error, ti.ConvergenceError) else outcome.value
    if solution is None:
        return "broken" if faults else "refused", faults
    low, high = call.times.min().item(), call.times.max().item()
    if call.seen[0] < low or call.seen[1] > high:
        faults.append(silent(f"f was evaluated at {call.seen}, outside of [{low}, {high}]"))
    values = torch.stack([call.form.unpack(_at(solution.value, k)) for k in range(len(call.times))])
    faults += arrivals.values(call, values.detach().double(), solution)
    if not faults and values.requires_grad:
        loss = (values * call.cotangent.to(values.dtype)).sum()
        tensors = [call.y0, call.times, *call.args]
        outcome = watched(lambda: torch.autograd.grad(loss, tensors, allow_unused=True))
        faults, said = faults + outcome.faults, said + outcome.said
        if outcome.value is not None:
            grads = [torch.zeros_like(a) if g is None else g for g, a in zip(outcome.value, tensors, strict=True)]
            faults += arrivals.gradients(call, [grad.double() for grad in grads], solution, said)
        elif not faults and not isinstance(outcome.error, ti.ConvergenceError | NotImplementedError | ValueError):
            faults.append(Fault("exception", f"backward: {outcome.error!r}"))
    return "converged" if solution.report.converged else "failed", faults


def _at(state, k):
    return torch.utils._pytree.tree_map(lambda leaf: leaf[k], state)
