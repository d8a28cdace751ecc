"""How far a path may be from its closed form, and its gradient.

A value may be off by `PLAY` = 10 times the tolerance a step, for every step, times what the field magnifies errors by;
a gradient by ten times that again, for its own equation is integrated with steps that the state has chosen.
"""

import torch

import torchimplicit as ti
from tests.fuzz.verdict import ROUNDINGS, rms, silent

PLAY, GRADIENT = 10.0, 10.0


def arrived(call, solution):
    """Which rows have arrived."""
    arrived = solution.status == ti.Status.CONVERGED
    return arrived.expand(len(call.y0)) if call.options["stepping"] == "joint" else arrived


def bounds(call, values, solution):
    """How far off every sample may be, relative to its largest state, `(B,)`; and that state."""
    solver, report = call.options["solver"], solution.report
    size = torch.stack([rms(rows) for rows in values]).amax(0).clamp_min(1e-300)
    steps = report.accepted.double().clamp_min(1)
    steps = steps.expand(len(size)) if call.options["stepping"] == "joint" else steps
    if call.options["stepping"] == "joint":
        size = size.amax().expand(len(size))
        steps = steps * len(size) ** 0.5
    local = solver.rtol + solver.atol / size + ROUNDINGS * call.form.eps
    # Times are rounded, too: a solution that changes by its own size within `tau` moves by that.
    moved = ROUNDINGS * torch.finfo(call.times.dtype).eps * float(call.ts.abs().max()) / call.tau
    return PLAY * steps * call.flow.growth * (local + moved), size


def values(call, values, solution):
    there = arrived(call, solution)
    faults = []
    if not values.isfinite().all():
        faults.append(silent(f"the value is not finite: statuses {solution.status.tolist()}"))
    wrong = torch.nonzero(there & (call.invalid | call.flow.blown)).flatten().tolist()
    faults += [silent("arrived, and holds NaN" if call.invalid[b] else "arrived, beyond a blow-up", b) for b in wrong]
    if faults or not bool(there.any()):
        return faults
    y0, times = call.y0.detach().double(), call.times.detach().double()
    expected = call.exact(y0, times, [arg.detach().double() for arg in call.args])
    bound, size = bounds(call, expected.nan_to_num(0), solution)
    for b in torch.nonzero(there).flatten().tolist():
        error = float(rms(values[:, b] - expected[:, b]).max())
        if not error <= bound[b] * size[b]:
            faults.append(silent(f"arrived, off by {error:.3g}, bound {float(bound[b] * size[b]):.3g}", b))
    return faults


def gradients(call, grads, solution, said):
    if any("could not be kept apart" in message for message in said):
        return []
    faults = []
    well = ~call.invalid & (solution.status != ti.Status.NON_FINITE if call.form.batch_dims else torch.tensor(True))
    for name, grad in zip(("y0", "ts", "x", "A"), grads, strict=False):
        kept = grad[well] if name in ("y0", "x") else grad[:, well] if grad.dim() == 2 and name == "ts" else grad
        if not kept.isfinite().all():
            faults.append(silent(f"the gradient of {name} is not finite for a sample that is"))
    backward = solution.backward
    if faults or not bool(arrived(call, solution).all()) or (backward is not None and not backward.converged):
        return faults
    y0, times = call.y0.detach().double().requires_grad_(), call.times.detach().double().requires_grad_()
    args = [arg.detach().double().requires_grad_() for arg in call.args]
    expected = call.exact(y0, times, args)
    true = torch.autograd.grad((expected * call.cotangent).sum(), [y0, times, *args])
    bound, size = bounds(call, expected.detach(), solution)
    span = float((call.ts[-1] - call.ts[0]).abs().max())
    flow = float(call.cotangent.abs().sum()) * call.flow.growth
    largest = float(size.max())
    unit = {"logistic": largest, "decay": largest, "blow-up": largest**2 / call.scale}.get(call.flow.title, 1.0)
    weights = (1.0, largest / call.tau, unit * span / call.tau, largest * span / call.tau)
    for name, grad, want, weight in zip(("y0", "ts", "x", "A"), grads, true, weights, strict=False):
        scale = float(want.abs().max()) + flow * weight
        error = float((grad - want).abs().max())
        if not error <= GRADIENT * float(bound.max()) * scale:
            words = f"the gradient of {name} is off by {error:.3g} of {float(want.abs().max()):.3g}"
            faults.append(silent(f"{words}, bound {GRADIENT * float(bound.max()) * scale:.3g}"))
    return faults
