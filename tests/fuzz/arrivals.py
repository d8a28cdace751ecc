"""How far a path may be from its closed form, and its gradient.

A value may be off by `PLAY` = 10 times the tolerance a step, for every step, times what the field magnifies errors by;
a gradient by ten times that again, for its own equation is walked along with steps that the state has chosen.
"""

import torch

import torchimplicit as ti
from tests.fuzz.verdict import ROUNDINGS, rms, silent

PLAY, GRADIENT = 10.0, 10.0


def arrived(walk, solution):
    """Which rows have arrived."""
    arrived = solution.status == ti.Status.CONVERGED
    return arrived.expand(len(walk.y0)) if walk.options["stepping"] == "joint" else arrived


def bounds(walk, values, solution):
    """How far off every sample may be, relative to its largest state, `(B,)`; and that state."""
    solver, report = walk.options["solver"], solution.report
    size = torch.stack([rms(rows) for rows in values]).amax(0).clamp_min(1e-300)
    steps = report.accepted.double().clamp_min(1)
    steps = steps.expand(len(size)) if walk.options["stepping"] == "joint" else steps
    if walk.options["stepping"] == "joint":
        size = size.amax().expand(len(size))
        steps = steps * len(size) ** 0.5
    local = solver.rtol + solver.atol / size + ROUNDINGS * walk.form.eps
    # Times are rounded, too: a solution that changes by its own size within `tau` moves by that.
    moved = ROUNDINGS * torch.finfo(walk.times.dtype).eps * float(walk.ts.abs().max()) / walk.tau
    return PLAY * steps * walk.flow.growth * (local + moved), size


def values(walk, values, solution):
    there = arrived(walk, solution)
    faults = []
    if not values.isfinite().all():
        faults.append(silent(f"the value is not finite: statuses {solution.status.tolist()}"))
    wrong = torch.nonzero(there & (walk.invalid | walk.flow.blown)).flatten().tolist()
    faults += [silent("arrived, and holds NaN" if walk.invalid[b] else "arrived, beyond a blow-up", b) for b in wrong]
    if faults or not bool(there.any()):
        return faults
    y0, times = walk.y0.detach().double(), walk.times.detach().double()
    expected = walk.exact(y0, times, [arg.detach().double() for arg in walk.args])
    bound, size = bounds(walk, expected.nan_to_num(0), solution)
    for b in torch.nonzero(there).flatten().tolist():
        error = float(rms(values[:, b] - expected[:, b]).max())
        if not error <= bound[b] * size[b]:
            faults.append(silent(f"arrived, off by {error:.3g}, bound {float(bound[b] * size[b]):.3g}", b))
    return faults


def gradients(walk, grads, solution, said):
    if any("could not be kept apart" in message for message in said):
        return []
    faults = []
    well = ~walk.invalid & (solution.status != ti.Status.NON_FINITE if walk.form.batch_dims else torch.tensor(True))
    for name, grad in zip(("y0", "ts", "x", "A"), grads, strict=False):
        kept = grad[well] if name in ("y0", "x") else grad[:, well] if grad.dim() == 2 and name == "ts" else grad
        if not kept.isfinite().all():
            faults.append(silent(f"the gradient of {name} is not finite for a sample that is"))
    backward = solution.backward
    if faults or not bool(arrived(walk, solution).all()) or (backward is not None and not backward.converged):
        return faults
    y0, times = walk.y0.detach().double().requires_grad_(), walk.times.detach().double().requires_grad_()
    args = [arg.detach().double().requires_grad_() for arg in walk.args]
    expected = walk.exact(y0, times, args)
    true = torch.autograd.grad((expected * walk.cotangent).sum(), [y0, times, *args])
    bound, size = bounds(walk, expected.detach(), solution)
    span = float((walk.ts[-1] - walk.ts[0]).abs().max())
    flow = float(walk.cotangent.abs().sum()) * walk.flow.growth
    largest = float(size.max())
    unit = {"logistic": largest, "decay": largest, "blow-up": largest**2 / walk.scale}.get(walk.flow.title, 1.0)
    weights = (1.0, largest / walk.tau, unit * span / walk.tau, largest * span / walk.tau)
    for name, grad, want, weight in zip(("y0", "ts", "x", "A"), grads, true, weights, strict=False):
        scale = float(want.abs().max()) + flow * weight
        error = float((grad - want).abs().max())
        if not error <= GRADIENT * float(bound.max()) * scale:
            words = f"the gradient of {name} is off by {error:.3g} of {float(want.abs().max()):.3g}"
            faults.append(silent(f"{words}, bound {GRADIENT * float(bound.max()) * scale:.3g}"))
    return faults
