"""How far a root or a minimum really is: by Newton's method in float64, from the answer, by dense algebra.

`Solver` promises that the Newton step from there is no longer than `atol + rtol |z|`, unknown by unknown, or as short
as rounding makes it. The distance to the root may be `PLAY` = 10 times that: a step tells the distance up to the root's
multiplicity, and a slope that changes on the way. On top comes by how much `ROUNDINGS` roundings of its terms move the
root of the function, for whoever evaluates it in its dtype sees no more.
"""

import torch

from tests.fuzz import verdict
from tests.fuzz.verdict import ROUNDINGS, silent

PLAY = 10.0


def polished(residual, z, slight, steps=60):
    """The root near rows, or None where Newton's method finds none there; each step halved until the residual falls.

    Along a direction in which the slope is `slight` nothing is looked for.
    """
    z = z.clone()
    for _ in range(steps):
        r = residual(z).detach()
        jacobian = verdict.dense(residual, z)
        if not r.isfinite().all() or not jacobian.isfinite().all():
            return None
        step = (inverse(jacobian, slight) @ r.flatten()).view_as(z)
        length = 1.0
        while length > 1e-4 and not residual(z - length * step).detach().norm() <= r.norm():
            length /= 2
        if length <= 1e-4:
            return z
        z = z - length * step
        if bool((step.abs() <= 1e-15 * z.abs()).all()):
            return z
    return z


def inverse(matrix, slight):
    """The (pseudo-)inverse, found in units in which the largest entry of every row and column is one."""
    columns = matrix.abs().amax(0)
    columns = torch.where(columns > 0, columns, 1)
    rows = (matrix / columns).abs().amax(1, keepdim=True)
    rows = torch.where(rows > 0, rows, 1)
    return torch.linalg.pinv(matrix / columns / rows, rtol=slight) / columns[:, None] / rows.T


def roots(call, rows, solution):
    """The distance of every converged sample to its root, unknown by unknown."""
    return _judged(call, rows, solution, lambda jacobian, units: None)


def minima(call, rows, solution):
    """The same for the energy's slope; and whether the energy falls to a side, if that was to be looked at."""
    if not call.condition.extra["minimum"]:
        return roots(call, rows, solution)
    play = PLAY * call.form.eps**0.5  # the public function's own is the root of the rounding

    def falls(hessian, units):
        bends = torch.linalg.eigvalsh(hessian * units[:, None] * units)
        if bends[0] < -play * bends.abs().max():
            return f"converged, where the energy falls to a side: curvatures {bends[[0, -1]].tolist()}"
        return None

    return _judged(call, rows, solution, falls)


def _judged(call, rows, solution, look):
    """`look(jacobian, units)` says what else is wrong at a root, or None."""
    faults = verdict.statuses(call, rows, solution)
    if faults or call.condition.nowhere:
        return faults
    for b, z, args in verdict.arrived(call, rows, solution):
        residual = lambda z, args=args: call.condition.residual(z, *args)  # noqa: E731
        jacobian = verdict.dense(residual, z)
        words = f"converged, at {z.flatten()[:4].tolist()}, where the slope is not finite"
        if jacobian.isfinite().all():
            words = _distance(call, residual, z, args, jacobian)
            words = words or look(jacobian, call.condition.units.expand_as(z).flatten())
        if words:
            faults.append(silent(words, b))
    return faults


def _distance(call, residual, z, args, jacobian):
    eps = call.form.eps
    slight = ROUNDINGS * eps if call.condition.extra.get("flat") else 1e-13
    back = inverse(jacobian, slight)
    near = polished(residual, z, slight)
    terms = verdict.terms(call.condition, z, args) + call.condition.size * call.condition.units  # constants, too
    noise = (ROUNDINGS * eps * terms + verdict.denormal(call)).flatten()
    floor = (back.abs() @ noise).view_as(z)
    if near is None or bool((residual(near).abs() > 1e-3 * residual(z).abs() + 1e-14 * ROUNDINGS * terms).any()):
        near = z - (back @ residual(z).detach().flatten()).view_as(z)  # not found: the step alone, as promised
    size = torch.maximum(near.abs(), z.abs())
    zero = (terms.flatten()[:, None] / jacobian.abs()).amin(0).view_as(z).nan_to_num(0, 0)  # changes some equation
    tolerance = verdict.absolute(call) + call.solver.rtol * (size + eps**0.5 * zero)
    excess = (z - near).abs() / (PLAY * tolerance + floor + eps * size).clamp_min(1e-300)
    if not excess.max() <= 1:
        j = int(excess.argmax())
        distance, allowed = float((z - near).abs().flatten()[j]), float(tolerance.flatten()[j])
        return f"converged, unknown {j} is {distance:.3g} from the root, tolerance {allowed:.3g}"
    return None
