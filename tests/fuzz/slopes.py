"""Judging gradients in float64, by dense algebra, with nothing of the library's.

The probe's gradient is the solution of the adjoint system itself. Its residual may be `LINEAR` = 10 times the linear
solver's tolerance: the library's own play is 2; ten is what the bar of independent samples names. What is summed for
shared tensors must agree to rounding with the samples' own solutions, whatever those are; that of `Unrolled` steps,
which lag behind, to `LINEAR` times the tolerance.
"""

import math

import torch

import torchimplicit as ti
from tests.fuzz.verdict import PLAY, ROUNDINGS, dense, exact, healthy, rms, silent

LINEAR = 10.0
NAMES = ("probe", "x", "W", "c")


def gradients(call, rows, solution, grads, said):
    """The adjoint system, by the probe's gradient; and what is summed for shared tensors, by the samples' solutions."""
    if any("could not be kept apart" in message for message in said):
        return []
    well = healthy(call) & (solution.status != ti.Status.NON_FINITE)
    # Beyond what a dtype has a value is its largest number, by which nothing has a derivative.
    well = well & (call.form.groups(rows).abs() < torch.finfo(call.form.dtype).max).all(1)
    if isinstance(call.options["adjoint"], ti.Phantom):  # whose steps may well diverge
        if solution.backward is not None:  # which tells of gradients that are not finite, and left out
            well = well & (solution.backward.status == ti.Status.CONVERGED)
        return _phantom(call, rows, grads, well)
    faults = []
    for place, (name, grad) in enumerate(zip(NAMES, grads, strict=False)):
        own = place < call.condition.own
        parts = call.form.groups(grad)[well] if own else grad
        if not own and call.form.dtype == torch.float16:
            continue  # a sum over samples may overflow
        if not parts.isfinite().all():
            faults.append(silent(f"the gradient of {name} is not finite for a sample that is"))
    if faults or not bool(well.any()):
        return faults
    if isinstance(call.options["adjoint"], ti.Unrolled) and call.options.get("save_steps"):
        return []  # nothing is measured, as the adjoint says
    if solution.backward is None:
        return [silent("there is no backward report")]
    z, args = _selected(call, rows, well)
    keep = well if call.form.batch_dims else slice(None)
    u = call.condition.extra.get("sign", -1.0) * grads[0][keep]
    return _system(call, z, args, u, solution, well) + _shared(call, z, args, u, grads, solution, keep)


def accuracy(call):
    """What the adjoint promises of the adjoint system's relative residual; None where it promises nothing."""
    adjoint = call.options["adjoint"]
    if isinstance(adjoint, ti.Unrolled):
        return adjoint.rtol
    solver = getattr(adjoint, "linear_solver", None)
    if adjoint is None or isinstance(solver, ti.LU):  # below the root of rounding, of the state as it is carried
        return torch.finfo(torch.promote_types(call.form.dtype, torch.float32)).eps ** 0.5
    return None if solver is None or isinstance(solver, ti.Neumann) else solver.rtol


def _selected(call, rows, well):
    """Rows and arguments of the healthy samples alone."""
    args = exact(call)
    if not call.form.batch_dims or bool(well.all()):
        return rows, args
    own = call.condition.own
    return rows[well], [*(arg[well] for arg in args[:own]), *args[own:]]


def _system(call, z, args, u, solution, well):
    form, condition, backward = call.form, call.condition, solution.backward
    g = call.cotangent.to(form.dtype).double()[well if form.batch_dims else slice(None)]
    jacobian = dense(lambda z: condition.residual(z, *args), z)
    if not jacobian.isfinite().all():
        return []  # no derivative there: what to say of it is the library's to choose
    defect = (jacobian.T @ u.flatten()).view_as(z) - g
    saturated = (
        u.abs().sum(1, keepdim=True) if call.public is ti.root else u.abs()
    )  # every residual may see every unknown
    saturated = condition.size * bend(condition, z) * saturated
    size = (jacobian.abs().T @ u.abs().flatten()).view_as(z) + saturated + g.abs()
    defect, size, g = form.groups(defect), form.groups(size), form.groups(g)
    promised = accuracy(call)
    faults = []
    for i, b in enumerate(torch.nonzero(well).flatten().tolist()):
        norm, wanted, reported = float(rms(defect)[i]), float(rms(g)[i]), float(backward.residual[b])
        floor = ROUNDINGS * form.eps * float(rms(size)[i]) * math.sqrt(z.shape[1])
        if backward.status[b] != ti.Status.CONVERGED or not math.isfinite(wanted):
            continue
        if norm <= (promised or 0) * wanted:
            continue
        if promised is not None and not norm <= LINEAR * promised * wanted + floor:
            words = f"backward converged, relative residual {norm / wanted:.3g}, promised {promised:.3g}"
            faults.append(silent(words, b))
        elif math.isfinite(reported) and not norm <= PLAY * reported + (promised or 0) * wanted + floor:
            faults.append(silent(f"backward reports residual {reported:.3g}, it is {norm:.3g}", b))
    return faults


def bend(condition, z):
    """How many roundings a slope is off by: its argument is rounded relative to its own size."""
    return 1 + condition.steep * float((z / condition.units).abs().max())


def _shared(call, z, args, u, grads, solution, keep):
    condition, form = call.condition, call.form
    unrolled = isinstance(call.options["adjoint"], ti.Unrolled)
    if not u.isfinite().all() or (unrolled and not (solution.report.converged and solution.backward.converged)):
        return []
    faults = []
    for place in range(1, len(args)):
        by = lambda arg, place=place: condition.residual(z, *args[:place], arg, *args[place + 1 :]).flatten()  # noqa: E731
        slopes = torch.autograd.functional.jacobian(by, args[place]).flatten(1)
        if not slopes.isfinite().all():
            continue
        expected = -(slopes.T @ u.flatten())
        got = (grads[place][keep] if place < condition.own else grads[place]).flatten()
        size = slopes.abs().T @ u.abs().flatten()
        steep = (condition.size * condition.units * u.abs()).amax() * bend(condition, z) * bend(condition, z)
        if float(size.amax()) > 0.01 * torch.finfo(form.dtype).max:
            continue  # it may overflow
        bound = ROUNDINGS * form.eps * (size.amax() + steep) + torch.finfo(form.dtype).tiny
        if unrolled:
            bound = bound + LINEAR * call.options["adjoint"].rtol * (size.amax() + steep)
        if not ((got - expected).abs() <= bound).all():
            worst, whole = float((got - expected).abs().max()), float(expected.abs().max())
            faults.append(silent(f"the gradient of {NAMES[place]} is off by {worst:.3g} of {whole:.3g}"))
    return faults


def _phantom(call, rows, grads, well):
    """The gradient of the damped steps that it stands for, by autograd in float64; made in the call's dtype, they show
    what rounding does to them, and how far the function's own derivatives overflow.
    """
    adjoint = call.options["adjoint"]
    z, args = _selected(call, rows, well)
    if not bool(well.any()):
        return []
    keep = well if call.form.batch_dims else slice(None)
    cotangent = call.cotangent.to(call.form.dtype).double()[keep]
    # Divided by its scale, what is as small as this is zero in the function's numbers, whatever its sign.
    z = torch.where(z.abs() < torch.finfo(call.form.dtype).tiny * call.condition.units, 0, z)
    slope = dense(lambda z: call.condition.residual(z, *args), z)

    def stepped(dtype):
        leaves, moved = [arg.to(dtype).requires_grad_() for arg in args], z.to(dtype)
        for _ in range(adjoint.steps):
            moved = moved - adjoint.damping * call.condition.residual(moved, *leaves)
        return torch.autograd.grad((moved * cotangent.to(dtype)).sum(), leaves, allow_unused=True)

    faults = []
    for place, (want, rounded) in enumerate(zip(stepped(z.dtype), stepped(call.form.dtype), strict=True)):
        if want is None or not want.isfinite().all() or not rounded.isfinite().all():
            continue
        got = grads[place][keep] if place < call.condition.own else grads[place]
        size = float(want.abs().max()) + float(cotangent.abs().max()) * (1 + float(z.abs().max()))
        growth = (1 + float(slope.abs().sum())) ** adjoint.steps
        noise = float((rounded.double() - want).abs().max())
        if not (got - want).abs().max() <= 10 * ROUNDINGS * call.form.eps * size * growth + PLAY * noise:
            faults.append(silent(f"the phantom gradient {place} is off by {float((got - want).abs().max()):.3g}"))
    return faults
