"""Public functions whose answer a formula in float64 says, derivatives included: programs, plans, projections.

A value may be off by `ROUNDINGS` = 100 roundings times the condition number, in units of its own; a gradient by
`GRADIENT` = 10 times that, relative to its own size or to what a change of a tensor by its size is worth.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

import torchimplicit as ti
from tests.fuzz.verdict import ROUNDINGS, reactions, silent
from tests.fuzz.watch import Fault, watched

GRADIENT = 10.0


@dataclass
class Formula:
    """One call and what it must give.

    Attributes:
        title: words.
        solve: `(*tensors) -> Solution`, or a tensor alone.
        exact: `(solution, *tensors) -> (B, ...)`, float64, differentiable.
        tensors: float64; the samples are in dimension 0 of the answer.
        dtype: that the library gets.
        look: `(solution, *tensors) -> words` of what else is wrong, or "".
        condition: by which rounding may be magnified, `(B,)` or a number.
        unit: of what the answer is a difference of, `(B,)`: its own rounding, too, is no fault.
        slope: the function's largest, where it is known: a gradient is a difference of terms of that size.
        accuracy: what is promised beyond rounding, relative; as the condition.
        options: `on_failure` among them, where there is one.
        invalid: which samples hold something that is not finite, or have no solution, `(B,)`.
    """

    title: str
    solve: object
    exact: object
    tensors: list
    dtype: torch.dtype
    cotangent: torch.Tensor
    look: object = lambda solution, *tensors: ""
    condition: object = 1.0
    unit: object = 0.0
    slope: float = 0.0
    accuracy: object = 0.0
    options: dict = field(default_factory=lambda: {"on_failure": "ignore"})
    invalid: torch.Tensor | None = None


def play(formula):
    """Solves, compares, differentiates, compares."""
    given = [tensor.to(formula.dtype).requires_grad_() for tensor in formula.tensors]
    outcome = watched(lambda: formula.solve(*given))
    faults = list(outcome.faults)
    solution = outcome.error.solution if isinstance(outcome.error, ti.ConvergenceError) else outcome.value
    if solution is None:
        return "broken" if faults else "refused", faults
    if isinstance(solution, torch.Tensor):
        solution = SimpleNamespace(value=solution, status=torch.zeros(len(solution), dtype=torch.int64), backward=None)
        converged = True
    else:
        converged = solution.report.converged
        faults += reactions(formula, outcome, solution)
    arrived = solution.status == ti.Status.CONVERGED
    if formula.invalid is not None:
        faults += [
            silent("converged, without a solution", b) for b in torch.nonzero(arrived & formula.invalid).flatten()
        ]
        faults += [
            silent(f"has a solution, and is said to be {ti.Status(int(solution.status[b])).name}", b)
            for b in torch.nonzero(~formula.invalid).flatten().tolist()
            if solution.status[b] in (ti.Status.INFEASIBLE, ti.Status.UNBOUNDED, ti.Status.NONCONVEX)
        ]
    if not faults and bool(arrived.any()):
        faults += _compared(formula, given, solution, arrived)
    return "converged" if converged else "failed", faults


def _compared(formula, given, solution, arrived):
    tensors = [tensor.detach().double().requires_grad_() for tensor in given]
    words = formula.look(solution, *(tensor.detach() for tensor in tensors))
    if words:
        return [silent(words)]
    expected, got = formula.exact(solution, *tensors), solution.value.double()
    play = ROUNDINGS * torch.finfo(formula.dtype).eps * torch.as_tensor(formula.condition) + formula.accuracy
    play = play.expand(len(got)).nan_to_num(torch.inf)
    size = expected.detach().flatten(1).abs().amax(1)
    rounding = ROUNDINGS * torch.finfo(formula.dtype).eps * torch.as_tensor(formula.unit).expand(len(got))
    rounding = rounding + torch.finfo(formula.dtype).tiny
    faults = []
    for b in torch.nonzero(arrived).flatten().tolist():
        error = float((got[b] - expected[b]).detach().abs().max())
        if not error <= float(play[b]) * float(size[b]) + float(rounding[b]):
            faults.append(silent(f"off by {error:.3g} of {float(size[b]):.3g}", b))
    if faults or not solution.value.requires_grad:
        return faults
    weights = torch.where(arrived.reshape(-1, *[1] * (got.dim() - 1)), formula.cotangent, 0.0)
    outcome = watched(
        lambda: torch.autograd.grad((solution.value * weights.to(formula.dtype)).sum(), given, allow_unused=True)
    )
    if outcome.value is None:
        kinds = ti.ConvergenceError | NotImplementedError
        broken = not outcome.faults and not isinstance(outcome.error, kinds)
        return outcome.faults + ([Fault("exception", f"backward: {outcome.error!r}")] if broken else [])
    if solution.backward is not None and not solution.backward.converged:
        return outcome.faults
    weights = weights.to(formula.dtype).double()
    kept = torch.where(arrived.reshape(-1, *[1] * (got.dim() - 1)), expected, 0.0)
    wanted = torch.autograd.grad((kept * weights).sum(), tensors, allow_unused=True)
    weight = weights.abs().flatten(1).sum(1)[arrived]
    worth, steep = float((weight * size[arrived]).max()), formula.slope * float(weight.max())
    bound = GRADIENT * float(play[arrived].max())
    for place, (grad, want, tensor) in enumerate(zip(outcome.value, wanted, tensors, strict=True)):
        grad = torch.zeros_like(tensor) if grad is None else grad.double()
        want = torch.zeros_like(tensor) if want is None else want
        healthy = want.isfinite()  # what a formula cannot differentiate it does not judge
        if not bool(healthy.any()):
            continue
        largest = float(tensor.detach()[tensor.isfinite()].abs().max().clamp_min(1e-300))
        error, whole = float((grad - want)[healthy].abs().max()), float(want[healthy].abs().max())
        if not error <= bound * (whole + worth / largest + steep) + 1e-300:
            faults.append(silent(f"the gradient of tensor {place} is off by {error:.3g} of {whole:.3g}"))
    return outcome.faults + faults
