"""How far a root or a minimum really is: Newton's method in float64, from the answer, by dense algebra.

A root that converged may be `PLAY` = 10 times the tolerance away: the tolerance is on the next step, which tells the
distance up to the multiplicity of the root and the rate of the method. Rounding adds what `ROUNDINGS` roundings of the
residual's terms move the root by.
"""

import torch

import torchimplicit as ti
from tests.fuzz import verdict
from tests.fuzz.verdict import ROUNDINGS, rms, silent

PLAY = 10.0


def polished(residual, z, steps=60):
    """The root near rows, or None where Newton's method finds none there; each step halved until the residual falls."""
    z = z.clone()
    for _ in range(steps):
        r = residual(z).detach()
        if not r.isfinite().all():
            return None
        jacobian = verdict.dense(residual, z)
        if not jacobian.isfinite().all():
            return None
        step = torch.linalg.lstsq(jacobian, r.flatten(), driver="gelsd").solution.view_as(z)
        length = 1.0
        while length > 1e-4 and not residual(z - length * step).norm() <= r.norm():
            length /= 2
        if length <= 1e-4:
            return z
        z = z - length * step
        if bool((step.abs() <= 1e-15 * z.abs()).all()):
            return z
    return z


def roots(call, rows, solution):
    """The distance to the root beside the tolerance, `atol + rtol * rms(z)`."""
    faults = verdict.statuses(call, rows, solution)
    if faults or call.condition.nowhere:
        return faults
    condition, form, args = call.condition, call.form, verdict.exact(call)
    arrived = solution.status == ti.Status.CONVERGED
    if not bool(arrived.any()):
        return []
    keep = arrived if form.batch_dims else torch.ones(len(rows), dtype=torch.bool)
    own = [arg[keep] for arg in args[: condition.own]] + args[condition.own :]
    z = rows[keep]
    residual = lambda z: condition.residual(z, *own)  # noqa: E731
    near = polished(residual, z)
    if near is None:
        return [silent(f"converged, at {z.flatten()[:4].tolist()}, where the slope is not finite")]
    jacobian = verdict.dense(residual, z)
    terms = verdict.terms(condition, z, own)
    inverse = torch.linalg.pinv(jacobian).abs()
    floor = (inverse @ (ROUNDINGS * form.eps * terms + verdict.denormal(call)).flatten()).view_as(
        z
    ) + form.eps * z.abs()
    left = residual(near).detach().abs() > 1e-3 * residual(z).abs() + ROUNDINGS * 2.2e-16 * terms
    solver = call.solver
    z, near, floor, left = form.groups(z), form.groups(near), form.groups(floor), form.groups(left)
    tolerance, distance = solver.atol + solver.rtol * rms(near), rms(z - near)
    faults = []
    for i, b in enumerate(torch.nonzero(arrived).flatten().tolist()):
        if bool(left[i].any()):
            faults.append(silent(f"converged, and there is no root near {z[i][:4].tolist()}", b))
        elif not distance[i] <= PLAY * tolerance[i] + rms(floor)[i]:
            words = f"converged, {float(distance[i]):.3g} from the root, tolerance {float(tolerance[i]):.3g}"
            faults.append(silent(words, b))
    return faults


def minima(call, rows, solution):
    """The distance to the minimum, in the norm of the Hessian, beside the tolerance's part of the point's own norm."""
    faults = verdict.statuses(call, rows, solution)
    if faults or call.condition.nowhere:
        return faults
    condition, form, args = call.condition, call.form, verdict.exact(call)
    arrived = solution.status == ti.Status.CONVERGED
    if not bool(arrived.any()):
        return []
    keep = arrived if form.batch_dims else torch.ones(len(rows), dtype=torch.bool)
    own = [arg[keep] for arg in args[: condition.own]] + args[condition.own :]
    z = rows[keep]
    residual = lambda z: condition.residual(z, *own)  # noqa: E731
    numbers = torch.nonzero(arrived).flatten().tolist()
    hessian = verdict.dense(residual, z)
    if not hessian.isfinite().all():
        return [silent(f"converged, at {z.flatten()[:4].tolist()}, where the slope is not finite")]
    units = condition.extra["units"].expand_as(z).flatten()
    scaled = hessian * units[:, None] * units
    if condition.extra["minimum"]:
        bends = torch.linalg.eigvalsh(scaled)
        if bends[0] < -0.01 * bends.abs().max():
            faults.append(silent(f"converged, where the energy falls to a side: curvatures {bends[[0, -1]].tolist()}"))
    near = polished(residual, z)
    if near is None:
        return faults
    rough = form.eps * ROUNDINGS * (verdict.terms(condition, z, own) + scaled.abs().max() / units.view_as(z) * 1.0)
    solver = call.solver
    step = z - near
    fall = (step * (hessian @ step.flatten()).view_as(z)).abs()
    whole = near.abs() * (hessian.abs() @ near.abs().flatten()).view_as(z) + 1e-300
    floor = (torch.linalg.pinv(scaled).abs() @ (rough * units.view_as(z)).flatten()).view_as(z) * units.view_as(z)
    fall, whole = form.groups(fall).sum(1).sqrt(), form.groups(whole).sum(1).sqrt()
    step, floor, near = form.groups(step), form.groups(floor), form.groups(near)
    distance, bound = rms(step), PLAY * (solver.atol + solver.rtol * rms(near)) + rms(floor)
    for i, b in enumerate(numbers):
        if not (distance[i] <= bound[i] or fall[i] <= PLAY * solver.rtol * whole[i]):
            words = f"converged, {float(distance[i]):.3g} from the minimum (bound {float(bound[i]):.3g}), "
            faults.append(silent(words + f"in the Hessian's norm {float(fall[i] / whole[i]):.3g} of itself", b))
    return faults
