"""The public functions of points under fuzz: what is called, and what is looked at afterwards, in float64."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

import torchimplicit as ti
from tests.fuzz import slopes, verdict
from tests.fuzz.forms import Form
from tests.fuzz.watch import Fault, watched


@dataclass
class Condition:
    """What a point must satisfy, on rows `(B, n)`, in plain torch.

    The first argument is a probe of zeros that is added to the residual, so that its gradient is the solution of the
    adjoint system itself. The next belong to the samples (`own` of them, the probe included), the others to all.

    Attributes:
        function: what the public function takes, of rows: a map, a residual, an energy, or terms.
        residual: `(z, *args) -> (B, n)`, which vanishes at the solution.
        args: float64, the probe first.
        start: float64 rows.
        units: of the unknowns, `(n,)`.
        size: of the residual's slope by each unknown, `(n,)`, for where functions saturate, and rounding does not.
        steep: the largest slope of the function in units of its own.
        invalid: which samples hold something that is not finite, `(B,)`.
        coupled: whether the samples are not independent.
        nowhere: whether there is no solution at all.
    """

    title: str
    function: object
    residual: object
    args: list
    start: torch.Tensor
    units: torch.Tensor
    size: torch.Tensor
    steep: float = 1.0
    own: int = 2
    invalid: torch.Tensor | None = None
    coupled: bool = False
    nowhere: bool = False
    extra: dict = field(default_factory=dict)


@dataclass
class Call:
    """One call of a public function and its options."""

    public: object
    condition: Condition
    form: Form
    options: dict
    module: bool
    returns: str  # what the function gives: a "state", a "number" a sample, or "rows" of any width
    cotangent: torch.Tensor
    warm: bool = False  # whether an earlier solution is the start

    def __post_init__(self):
        dtype, condition = self.form.dtype, self.condition
        self.args = [arg.to(dtype).clone().requires_grad_() for arg in condition.args]
        self.start = condition.start.to(dtype)
        self.cell = Cell(self, self.args[condition.own :]) if self.module else None

    @property
    def title(self):
        words = ", ".join(f"{name}={value}" for name, value in self.options.items())
        kind = "module" if self.module else "function"
        kind += ", warm" if self.warm else ""
        return f"{self.public.__name__} of {self.condition.title}, {self.form.name} {self.form.dtype} ({kind}), {words}"

    def evaluate(self, state, *args):
        """The user's function."""
        value = self.condition.function(self.form.unpack(state), *args)
        if self.returns == "number":
            return value if self.form.batch_dims else value.sum()
        return value if self.returns == "rows" else self.form.pack(value)

    def solve(self):
        args = self.args[: self.condition.own] if self.module else self.args
        solve = partial(self.public, self.cell or self.evaluate, self.form.pack(self.start), *args)
        if not self.warm:
            return solve(**self.options)
        with torch.no_grad():
            earlier = solve(**self.options | {"on_failure": "ignore"})
        return solve(**self.options, warm_start=earlier)

    @property
    def solver(self):
        """The solver, also where the public function chooses."""
        return self.options["solver"] or ti.LBFGS()

    @property
    def tensors(self):
        """The tensors to differentiate by, the module's own in the place of the last ones."""
        own = self.condition.own
        return self.args if self.cell is None else [*self.args[:own], *self.cell.weights]


class Cell(nn.Module):
    """The function as a module, with the shared arguments for its parameters."""

    def __init__(self, call, weights):
        super().__init__()
        self.weights = nn.ParameterList([weight.detach().clone() for weight in weights])
        object.__setattr__(self, "call", call)

    def forward(self, state, *args):
        return self.call.evaluate(state, *args, *self.weights)


def slope(energy):
    """The derivative of an energy `(z, *args) -> (B,)` by the state, itself differentiable."""

    def residual(z, *args):
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            return torch.autograd.grad(energy(z, *args).sum(), z, create_graph=True)[0]

    return residual


def play(call, judge):
    """Solves, differentiates and judges one call.

    Args:
        call: the call.
        judge: `(call, rows, solution) -> faults` of the value alone.

    Returns:
        The verdict's word ("converged", "failed", "refused", "broken") and the faults.
    """
    before = None if call.cell is None else [(id(w), w.detach().clone()) for w in call.cell.weights]
    outcome = watched(call.solve)
    faults, said = list(outcome.faults), list(outcome.said)
    solution, error = outcome.value, outcome.error
    if isinstance(error, ti.ConvergenceError):
        solution = error.solution
    if solution is None:
        return "refused" if not faults else "broken", faults
    faults += verdict.reactions(call, outcome, solution)
    rows = call.form.unpack(solution.value).detach().double()
    wrong = judge(call, rows, solution)
    if not faults and (not wrong or call.condition.coupled) and call.form.unpack(solution.value).requires_grad:
        loss = (call.form.unpack(solution.value) * call.cotangent.to(call.form.dtype)).sum()
        outcome = watched(lambda: torch.autograd.grad(loss, call.tensors, allow_unused=True))
        said += outcome.said
        faults += outcome.faults
        if outcome.value is not None:
            grads = [torch.zeros_like(a) if g is None else g for g, a in zip(outcome.value, call.tensors, strict=True)]
            faults += slopes.gradients(call, rows, solution, [grad.double() for grad in grads], said)
        elif not faults and not isinstance(outcome.error, ti.ConvergenceError | NotImplementedError | ValueError):
            faults.append(Fault("exception", f"backward: {outcome.error!r}"))
    if not call.condition.coupled or solution.backward is None or solution.backward.converged:
        faults += wrong  # samples that are not independent are told in the backward pass
    if before is not None:
        for (identity, value), now in zip(before, call.cell.weights, strict=True):
            if id(now) != identity or not torch.equal(now, value) or not now.requires_grad:
                faults.append(Fault("exception", "a parameter was changed"))
    return "converged" if solution.report.converged else "failed", faults
