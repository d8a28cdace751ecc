"""Model-predictive control as a layer: plans ahead at every call, and hands out the first action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.status import OnFailure
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.optim.control import BoxDDP, ControlReport, ControlSolution, ilqr
from torchimplicit.optim.control.bounds import Bound
from torchimplicit.optim.control.ilqr import check_options


class MPC(ImplicitLayer):
    """Acts by planning: of the controls that are best over a horizon, the first, or all of them.

    Dynamics and cost are functions or modules, whose parameters learn through the plan. The gradient is that of the
    plan's minimum (`torchimplicit.optim.ilqr`), so a controller can be fitted to what an expert did, or to what came of
    its actions. For linear dynamics and quadratic costs, `lqr` is exact in one step and takes bounds on states.

    Args:
        dynamics: `dynamics(x, u, *args) -> (B, nx)`; see `ilqr`, as for what follows.
        cost: `cost(x, u, *args) -> (B,)`.
        horizon: number of steps.
        lower: lower bounds of the controls.
        upper: upper bounds of the controls.
        final_cost: `final_cost(x, *args) -> (B,)`.
        controls: the number of controls, where bounds do not tell.
        solver: tolerances and limits.
        whole: return the whole plan, `(B, T, nu)`, rather than its first action, `(B, nu)`.
        warm_start: start from the last plan, one step on, where the batch is of the same size: for a controller in its
            loop. Not for training on other states at every call.
        on_failure: "raise", "warn" or "ignore" samples without a plan.

    Attributes:
        report: how the last call went; None before the first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> cart = lambda x, u, weight: torch.stack(
        ...     (x[:, 0] + 0.1 * x[:, 1], x[:, 1] + 0.1 * u[:, 0]), 1
        ... )
        >>> cost = lambda x, u, weight: x.square().sum(1) + weight * u.square().sum(1)
        >>> controller = ti.nn.MPC(cart, cost, horizon=20, lower=-1.0, upper=1.0)
        >>> weight = torch.tensor(0.1, requires_grad=True)
        >>> action = controller(torch.tensor([[0.5, 0.0], [-0.2, 0.1]]), weight)
        >>> action.shape
        torch.Size([2, 1])
        >>> action.sum().backward()
    """

    lower: Bound
    upper: Bound
    on_failure: OnFailure
    report: ControlReport | None
    last: Tensor | None

    def __init__(
        self,
        dynamics: Callable,
        cost: Callable,
        horizon: int,
        lower: Bound = None,
        upper: Bound = None,
        *,
        final_cost: Callable | None = None,
        controls: int | None = None,
        solver: BoxDDP = BoxDDP(),
        whole: bool = False,
        warm_start: bool = False,
        on_failure: OnFailure = "warn",
    ):
        super().__init__()
        for name, value in (("whole", whole), ("warm_start", warm_start)):
            if not isinstance(value, bool):
                raise ValueError(f"MPC({name}={value!r}): expected True or False")
        check_options({"dynamics": dynamics, "cost": cost, "final_cost": final_cost}, horizon, solver, on_failure)
        self.dynamics, self.cost, self.final_cost = dynamics, cost, final_cost
        self.horizon, self.controls, self.solver, self.on_failure = horizon, controls, solver, on_failure
        self.whole, self.warm_start = whole, warm_start
        for name, bound in (("lower", lower), ("upper", upper)):
            if isinstance(bound, nn.Parameter) or not isinstance(bound, Tensor):
                setattr(self, name, bound)
            else:
                self.register_buffer(name, bound)
        self.last = None

    def plan(self, x: Tensor, *args: Any, sequences: tuple = (), u0: Tensor | None = None) -> ControlSolution:
        """The whole plan from states `(B, nx)`: controls, states, cost, status.

        Args:
            x: states, `(B, nx)`.
            *args: handed to dynamics and costs.
            sequences: see `ilqr`.
            u0: start, `(B, T, nu)`.
        """
        last = self.last  # read once: other threads may write it
        if u0 is None and self.warm_start and last is not None and len(last) == len(x):
            u0 = torch.cat((last[:, 1:], last[:, -1:]), 1)
        options = {"final_cost": self.final_cost, "controls": self.controls, "solver": self.solver}
        solution = self.solve(
            ilqr, self.dynamics, self.cost, x, self.horizon, self.lower, self.upper,
            args=args, sequences=sequences, u0=u0, **options,
        )  # fmt: skip
        self.last = solution.value.detach() if self.warm_start else None
        return solution

    def forward(self, x: Tensor, *args: Any, sequences: tuple = (), u0: Tensor | None = None) -> Tensor:
        """The first action `(B, nu)`, or with `whole` every action, `(B, T, nu)`; see `plan`."""
        controls = self.plan(x, *args, sequences=sequences, u0=u0).value
        return controls if self.whole else controls[:, 0]
