"""Judging points in float64, by dense algebra, with nothing of the library's.

The multiples that make an error a silent one:

- a value: `PLAY` = 3 times the stated tolerance. The library's own play is 1e-6; what a report says and what is
  computed here differ by rounding, for which `ROUNDINGS` = 100 roundings of the terms are allowed on top.
- a gradient: the residual of the adjoint system may be `LINEAR` = 10 times the linear solver's tolerance. The library's
  own play is 2; ten is what the bar of independent samples names.
- what is summed for shared tensors must agree to rounding with the samples' own solutions, whatever those are.
"""

import math

import torch

import torchimplicit as ti
from tests.fuzz.watch import Fault

PLAY, LINEAR, ROUNDINGS = 3.0, 10.0, 100.0


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
    sick = call.condition.sick
    if sick is None:
        sick = torch.zeros(len(call.condition.start), dtype=torch.bool)
    return ~sick if call.form.batch_dims else ~sick.any().reshape(1)


def statuses(call, rows, solution):
    """What holds of every answer: it is finite, no sample that is not finite converges, nor one without a solution."""
    status, well = solution.status, healthy(call)
    faults = []
    if not rows.isfinite().all() and call.start.isfinite().all():
        faults.append(silent(f"the value is not finite: statuses {status.tolist()}"))
    converged = status == ti.Status.CONVERGED
    wrong = torch.nonzero(converged & ~well).flatten().tolist()
    faults += [silent("converged, and holds numbers that are not finite", b) for b in wrong]
    solver = call.solver  # a loose tolerance is met some steps away, an absolute one at once
    if call.condition.nowhere and solver.rtol < 1e-3 and solver.atol < 0.1 * call.condition.extra["scale"]:
        words = f"converged, where there is no solution; value {rows.flatten()[:4].tolist()}"
        faults += [silent(words, b) for b in torch.nonzero(converged).flatten().tolist()]
    return faults


def fixed_points(call, rows, solution):
    """`rms(f(z) - z) <= atol + rtol * rms(z)`, and the residual that is reported."""
    faults = statuses(call, rows, solution)
    if faults:
        return faults
    condition, form, args = call.condition, call.form, exact(call)
    residual = condition.residual(rows, *args)
    rounding = form.eps * terms(condition, rows, args) + denormal(call)
    z, r, floor = form.groups(rows), form.groups(residual), rms(form.groups(rounding))
    solver = call.solver
    tolerance = solver.atol + solver.rtol * rms(z)
    for b in torch.nonzero(healthy(call)).flatten().tolist():
        size, reported = float(rms(r)[b]), float(solution.residual[b])
        status = ti.Status(int(solution.status[b]))
        if status == ti.Status.CONVERGED and not size <= PLAY * tolerance[b] + ROUNDINGS * floor[b]:
            faults.append(silent(f"converged, residual {size:.3g}, tolerance {float(tolerance[b]):.3g}", b))
        elif status == ti.Status.CONVERGED and not abs(reported - size) <= 0.1 * size + ROUNDINGS * floor[b]:
            faults.append(silent(f"converged, reports residual {reported:.3g}, it is {size:.3g}", b))
    return faults


def terms(condition, rows, args):
    """Size of what is added up in the residual, entry by entry: what rounding is relative to."""
    jacobian = dense(lambda z: condition.residual(z, *args), rows).abs().nan_to_num(0, 0, 0)
    size = (jacobian @ rows.abs().flatten()).view_as(rows) + condition.size * rows.abs()
    return size + sum((arg.abs() for arg in args[: condition.own]), torch.zeros_like(rows)).nan_to_num(0, 0, 0)


def denormal(call):
    """The spacing of the smallest numbers, in units of the state; the function may divide by its scale and back."""
    info = torch.finfo(call.form.dtype)
    return info.eps * info.tiny * max(1.0, call.condition.extra.get("scale", 1.0))


def bend(condition, z):
    """How many roundings a slope is off by: its argument is rounded relative to its own size."""
    return 1 + condition.size * float(z.abs().max()) / condition.extra.get("scale", 1.0)


def accuracy(call):
    """What the adjoint promises of the adjoint system's relative residual; None where it promises nothing."""
    adjoint = call.options["adjoint"]
    if not isinstance(adjoint, ti.Implicit) or isinstance(adjoint.linear_solver, ti.Neumann):
        return None
    if isinstance(adjoint.linear_solver, ti.LU):  # "below the root of the dtype's rounding", of the carried state
        return torch.finfo(torch.promote_types(call.form.dtype, torch.float32)).eps ** 0.5
    return adjoint.linear_solver.rtol


def gradients(call, rows, solution, grads, said):
    """The adjoint system, by the probe's gradient; and what is summed for shared tensors, by the samples' solutions."""
    form = call.form
    well = healthy(call) & (solution.status != ti.Status.NON_FINITE)
    leak = any("could not be kept apart" in message for message in said)
    faults = []
    if leak:
        return faults
    if isinstance(call.options["adjoint"], ti.Phantom):  # whose steps may well diverge
        return _phantom(call, rows, grads, well)
    for name, grad in zip(("probe", "x", "W", "c", "more"), grads, strict=False):
        own = grad.dim() == 2 and len(grad) == len(rows) and grad.shape == rows.shape and name in ("probe", "x")
        parts = form.groups(grad)[well] if own else grad
        if not own and form.dtype == torch.float16:
            continue  # a sum over samples may overflow
        if not parts.isfinite().all():
            faults.append(silent(f"the gradient of {name} is not finite for a sample that is"))
    if faults or not bool(well.any()):
        return faults
    backward = solution.backward
    if isinstance(call.options["adjoint"], ti.Unrolled):
        return _unrolled(call, rows, solution, grads, well)
    if backward is None:
        return [silent("there is no backward report")]
    return faults + _system(call, rows, solution, grads, well) + _shared(call, rows, grads, well)


def _selected(call, rows, well):
    """Rows and arguments of the healthy samples alone."""
    args = exact(call)
    if not call.form.batch_dims or bool(well.all()):
        return rows, args
    own = call.condition.own
    return rows[well], [*(arg[well] for arg in args[:own]), *args[own:]]


def _system(call, rows, solution, grads, well):
    form, condition = call.form, call.condition
    z, args = _selected(call, rows, well)
    keep = well if form.batch_dims else slice(None)
    sign = condition.extra.get("sign", -1.0)
    u, g = sign * grads[0][keep], call.cotangent.to(form.dtype).double()[keep]
    jacobian = dense(lambda z: condition.residual(z, *args), z)
    if not jacobian.isfinite().all():
        return []  # no derivative there: what to say of it is the library's to choose
    defect = (jacobian.T @ u.flatten()).view_as(z) - g
    size = (jacobian.abs().T @ u.abs().flatten()).view_as(z) + condition.size * bend(condition, z) * u.abs() + g.abs()
    defect, size, g = form.groups(defect), form.groups(size), form.groups(g)
    promised, backward = accuracy(call), solution.backward
    faults = []
    for i, b in enumerate(torch.nonzero(well).flatten().tolist()):
        status, norm = int(backward.status[b]), float(rms(defect)[i])
        floor = ROUNDINGS * form.eps * float(rms(size)[i]) * math.sqrt(z.shape[1])
        reported, wanted = float(backward.residual[b]), float(rms(g)[i])
        if status != ti.Status.CONVERGED or not math.isfinite(wanted):
            continue
        if promised is not None and not norm <= LINEAR * promised * wanted + floor:
            words = f"backward converged, relative residual {norm / wanted:.3g}, promised {promised:.3g}"
            faults.append(silent(words, b))
        elif math.isfinite(reported) and not norm <= PLAY * reported + (promised or 0) * wanted + floor:
            faults.append(silent(f"backward reports residual {reported:.3g}, it is {norm:.3g}", b))
    return faults


def _shared(call, rows, grads, well):
    condition, form = call.condition, call.form
    z, args = _selected(call, rows, well)
    keep = well if form.batch_dims else slice(None)
    u = condition.extra.get("sign", -1.0) * grads[0][keep]
    if not u.isfinite().all():
        return []
    faults = []
    for name, place in (("x", 1), ("W", 2), ("c", 3)):
        if place >= len(args):
            break
        by = lambda arg, place=place: condition.residual(z, *args[:place], arg, *args[place + 1 :]).flatten()  # noqa: E731
        slopes = torch.autograd.functional.jacobian(by, args[place]).flatten(1)
        if not slopes.isfinite().all():
            continue
        expected = -(slopes.T @ u.flatten())
        got = (grads[place][keep] if place < condition.own else grads[place]).flatten()
        size = slopes.abs().T @ u.abs().flatten()
        size = size + condition.size * bend(condition, z) * float(z.abs().max()) * float(u.abs().max())
        if float(size.amax()) > 0.01 * torch.finfo(form.dtype).max:
            continue  # it may overflow
        if not ((got - expected).abs() <= ROUNDINGS * form.eps * size.amax() + torch.finfo(form.dtype).tiny).all():
            worst = float((got - expected).abs().max())
            faults.append(silent(f"the gradient of {name} is off by {worst:.3g} of {float(expected.abs().max()):.3g}"))
    return faults


def _phantom(call, rows, grads, well):
    """The gradient of the damped steps that it stands for, by autograd in float64."""
    adjoint = call.options["adjoint"]
    z, args = _selected(call, rows, well)
    args = [arg.requires_grad_() for arg in args]
    keep = well if call.form.batch_dims else slice(None)
    cotangent = call.cotangent.to(call.form.dtype).double()[keep]
    moved = z
    for _ in range(adjoint.steps):
        moved = moved - adjoint.damping * call.condition.residual(moved, *args)
    expected = torch.autograd.grad((moved * cotangent).sum(), args, allow_unused=True)
    faults = []
    for place, want in enumerate(expected):
        if want is None or not want.isfinite().all():
            continue
        got = grads[place][keep] if place < call.condition.own else grads[place]
        size = float(want.abs().max()) + float(cotangent.abs().max()) * (1 + float(z.abs().max()))
        growth = (1 + call.condition.size) ** adjoint.steps
        if not (got - want).abs().max() <= 10 * ROUNDINGS * call.form.eps * size * growth:
            faults.append(silent(f"the phantom gradient {place} is off by {float((got - want).abs().max()):.3g}"))
    return faults


def _unrolled(call, rows, solution, grads, well):
    """Agreement with implicit differentiation, where the report says nothing else: see `UNROLLED`."""
    if not solution.report.converged or solution.backward is not None:
        return []
    z, args = _selected(call, rows, well)
    jacobian = dense(lambda z: call.condition.residual(z, *args), z)
    g = call.cotangent.to(call.form.dtype).double()
    sign = call.condition.extra.get("sign", -1.0)
    if not jacobian.isfinite().all() or torch.linalg.cond(jacobian) > 1e4:
        return []
    u = sign * torch.linalg.solve(jacobian.T, g.flatten()).view_as(z)
    error = float((grads[0] - u).norm() / u.norm().clamp_min(1e-300))
    return [] if error <= UNROLLED else [silent(f"the unrolled gradient is off by {error:.3g}")]


UNROLLED = 0.1  # derivatives of iterates converge behind the iterates: a tenth is a gradient that misleads nobody
