"""Judging points in float64, by dense algebra, with nothing of the library's.

A value that is said to have converged may be off by `PLAY` = 3 times the stated tolerance, and by `ROUNDINGS` = 100
roundings of the terms on top. The library's own play is 1e-6; what a report says and what is computed here differ by
rounding.
"""

import torch

import torchimplicit as ti
from tests.fuzz.watch import Fault

PLAY, ROUNDINGS = 3.0, 100.0


def silent(words, sample=None):
    return Fault("silent", words if sample is None else f"sample {sample}: {words}")


def rms(rows):
    """Root mean square of every row, overflow or not."""
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (rows / largest).square().mean(1).sqrt() * largest[:, 0]


def dense(function, z):
    """The Jacobian `(N, N)` of a function of rows by its rows."""
    return torch.autograd.functional.jacobian(lambda flat: function(flat.view_as(z)).flatten(), z.flatten())


def exact(call):
    """The arguments that the library got, in float64."""
    return [tensor.detach().double() for tensor in call.tensors]


def reactions(call, outcome, solution):
    """Whether failures were said as asked for, and nothing else."""
    wanted, failed = call.options["on_failure"], not solution.report.converged
    raised = isinstance(outcome.error, ti.ConvergenceError)
    if raised != (failed and wanted == "raise"):
        return [silent(f"on_failure={wanted!r}, converged: {not failed}, but {'an' if raised else 'no'} error")]
    warned = any(message.startswith(solution.report.name) for message in outcome.said)
    if warned != (failed and wanted == "warn"):
        return [silent(f"on_failure={wanted!r}, converged: {not failed}, but {'a' if warned else 'no'} warning")]
    return []


def healthy(call):
    """Which of the groups that the library counts as samples hold finite numbers alone, `(G,)`."""
    invalid = call.condition.invalid
    if invalid is None:
        invalid = torch.zeros(len(call.condition.start), dtype=torch.bool)
    return ~invalid if call.form.batch_dims else ~invalid.any().reshape(1)


def statuses(call, rows, solution):
    """What holds of every answer: it is finite, no sample that is not finite converges, nor one without a solution."""
    status, well = solution.status, healthy(call)
    faults = []
    if not rows.isfinite().all() and call.start.isfinite().all():
        faults.append(silent(f"the value is not finite: statuses {status.tolist()}"))
    converged = status == ti.Status.CONVERGED
    wrong = torch.nonzero(converged & ~well).flatten().tolist()
    faults += [silent("converged, and holds numbers that are not finite", b) for b in wrong]
    # A loose tolerance is met some steps away (ten roundings of half precision are one), an absolute one at once.
    loose = max(call.solver.rtol, 10 * call.form.eps)
    if call.condition.nowhere and loose < 1e-3 and absolute(call) < 0.1 * call.condition.units.min():
        words = f"converged, where there is no solution; value {rows.flatten()[:4].tolist()}"
        faults += [silent(words, b) for b in torch.nonzero(converged).flatten().tolist()]
    return faults


def absolute(call):
    """The absolute tolerance: unless it is said, a hundredth of the relative one for fixed points, and 0 for others."""
    if call.solver.atol is not None:
        return call.solver.atol
    return 0.0 if call.public in (ti.root, ti.argmin, ti.least_squares) else call.solver.rtol / 100


def arrived(call, rows, solution):
    """The samples that have converged: their numbers, their rows and arguments alone."""
    own, args = call.condition.own, exact(call)
    for b in torch.nonzero(solution.status == ti.Status.CONVERGED).flatten().tolist():
        keep = slice(b, b + 1) if call.form.batch_dims else slice(None)
        yield b, rows[keep], [*(arg[keep] for arg in args[:own]), *args[own:]]


def fixed_points(call, rows, solution):
    """`rms(f(z) - z) <= atol + rtol * rms(z)`, and the residual that is reported."""
    faults = statuses(call, rows, solution)
    if faults:
        return faults
    condition, form, args = call.condition, call.form, exact(call)
    residual = condition.residual(rows, *args)
    rounding = form.eps * terms(condition, rows, args) + denormal(call)
    z, r, floor = form.groups(rows), form.groups(residual), rms(form.groups(rounding))
    tolerance = absolute(call) + call.solver.rtol * rms(z)
    tolerance = tolerance + torch.finfo(form.dtype).tiny  # below, numbers are denormal
    slight = 1e-6 * tolerance  # what is so small may underflow
    play = 10 if condition.coupled else PLAY  # what the others do afterwards, the backward pass tells, to its accuracy
    for b in torch.nonzero(healthy(call)).flatten().tolist():
        size, reported = float(rms(r)[b]), float(solution.residual[b])
        if solution.status[b] != ti.Status.CONVERGED:
            continue
        if not size <= play * tolerance[b] + ROUNDINGS * floor[b]:
            faults.append(silent(f"converged, residual {size:.3g}, tolerance {float(tolerance[b]):.3g}", b))
        elif not condition.coupled and not abs(reported - size) <= 0.1 * size + ROUNDINGS * floor[b] + slight[b]:
            faults.append(silent(f"converged, reports residual {reported:.3g}, it is {size:.3g}", b))
    return faults


def terms(condition, rows, args):
    """Size of what is added up in the residual, entry by entry: what rounding is relative to."""
    size = condition.size * rows.abs()
    for place, value in enumerate((rows, *args)):
        everything = [rows, *args]

        def by(value, place=place, everything=everything):
            return condition.residual(*everything[:place], value, *everything[place + 1 :]).flatten()

        slopes = torch.autograd.functional.jacobian(by, value).abs().reshape(rows.numel(), -1)
        size = size + (slopes * value.abs().flatten()).nan_to_num(0, 0, 0).sum(1).view_as(rows)
    return size


def denormal(call):
    """The spacing of the smallest numbers, in units of the state; the function may divide by its scale and back."""
    info = torch.finfo(call.form.dtype)
    return info.eps * info.tiny * max(1.0, float(call.condition.units.max()))
