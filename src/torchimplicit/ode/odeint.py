"""The public function of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.core.tree import Layout
from torchimplicit.ode.compiled.engine import check_compile, choose_engine
from torchimplicit.ode.explicit.methods import Tsit5
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.checkpointed import Checkpointed
from torchimplicit.path.events.event import Event
from torchimplicit.path.options import Options, Stepping
from torchimplicit.path.solution import PathSolution
from torchimplicit.path.solve import solve
from torchimplicit.path.solver import PathSolver


@public
@transforms.outside_inference_mode
def odeint(
    f: Callable,
    y0: Any,
    ts: Tensor,
    *args: Any,
    solver: PathSolver = Tsit5(),
    adjoint: PathAdjoint = Checkpointed(),
    stepping: Stepping = "per-sample",
    batched_args: Sequence[int] | None = None,
    on_failure: OnFailure = "raise",
    event: Event | Sequence[Event] | None = None,
    dense: bool = False,
    compile: Compile = False,
    callback: Callable | None = None,
    dt_max: float | Tensor | None = None,
    jumps: Tensor | None = None,
    doses: Any = None,
) -> PathSolution:
    r"""Solves $\dot y = f(t, y, a)$, $y(t_0) = y_0$, sample by sample, differentiably in $y_0$, the times and $a$.

    Every tensor that shall get a gradient must be an argument, or a parameter of `f` when `f` is an `nn.Module` or a
    bound method of one; a captured one is refused. `f` is never evaluated before the first or after the last time.

    Args:
        f: `f(t, y, *args) -> dy/dt`, structure, shapes and dtype as `y`; samples independent. `t` is shaped
            `(B, 1, ...)`, such that it broadcasts against the first leaf of `y`; one number with `stepping="joint"`.
        y0: start: a floating or complex tensor `(B, ...)` or a nest of such.
        ts: times, the first one that of `y0`, strictly increasing or strictly decreasing: `(T,)`, or `(T, B)` for times
            of every sample's own. Series of different lengths are padded with NaN, or with their last time again; the
            outputs there hold the last state, and `solution.mask` says which they are.
        *args: further arguments of `f`, nested; tensors and modules among them are differentiated.
        solver: `Tsit5()`, `Dopri5()`, `RK4(dt=...)`, ... with its tolerances.
        adjoint: `Checkpointed()`, `Direct()`, ...
        stepping: "per-sample" gives each sample step sizes of its own, so that no answer depends on other samples;
            "joint" one step size for all, as if the batch were one system: cheaper where samples are alike.
        batched_args: positions of those `args` that carry the batch in dimension 0, the others being the same for every
            sample; `()` for none. Lets the solve go on without the samples that have arrived, once half of a large
            batch has; None does so where there are no `args`, the method is explicit, and `f` is shown to say the same
            of those alone, bit by bit. With positions the answers of explicit methods stay the same but for rounding,
            those of stiff ones, whose Jacobians are then renewed, within their tolerance.
        on_failure: "raise", "warn" or "ignore" samples that do not reach the last time, forward and backward. Their
            outputs beyond the time reached hold the last state.
        event: ends the solve of every sample where its condition changes sign: outputs at later times hold the event's
            state, `solution.event_time` and `solution.event_state` tell of it. One that never fires is no failure. Of
            several, the first to fire ends the solve; `solution.event_index` says which, `solution.crossings` where
            each was met, those that are not `terminal` included.
        dense: give `solution.path`, the path as a function of time.
        compile: True makes steps by `torch.compile`, several a call: up to ten times faster where the state is small or
            `f` cheap, slower than plain steps where `f` is a large network, and the first solve of an `f` takes half a
            minute or more. Explicit adaptive solvers on a real tensor, times increasing. `f` must be one that
            `torch.compile(f, fullgraph=True)` takes; a module, or a function that is not made anew for each solve, is
            compiled once, and once more, at the same price, for a second batch size and for every new value of an
            attribute that it reads. "auto" begins to once 20 seconds were spent on an `f` and a small state, and goes
            on without where it cannot.
        callback: `callback(t, y, moved)`, called after every step of the forward solve in which some sample has moved:
            times `(B,)` and states like `y0`, copies without a gradient, and which samples moved, bool `(B,)`; `()` for
            times with `stepping="joint"`. For progress, logs and plots: what it returns, or writes into, changes
            nothing, and it is not called in the backward pass. An exception ends the solve and comes out of it; to end
            a sample's solve and keep its path, use an `event`.
        dt_max: the largest step, in the unit of the times: a number, or `(B,)` for every sample's own; None for any.
            For what is shorter than steps that the tolerance allows: a pulse within one is seen by none of its stages,
            and stepped over without a sign. Adaptive solvers.
        jumps: times at which `f` jumps, or a dose is given: `(J,)`, or `(J, B)` for every sample's own; in any order,
            NaN or infinite where a sample has fewer. Steps end there, and begin anew: `f` is asked on either side, a
            few roundings off, and nothing is carried over but the state. Differentiable with every adjoint, by the step
            that `f` makes there and by the dose. An output at a jump, and its derivatives, are those of the side
            before. Jumps before the first time, at the last or after it, change nothing; one at the first has the
            gradient of its dose alone, for there `f` has no side before. `max_steps`, `dt0` and `checkpoints` are
            for each stretch between jumps.
        doses: what is added to the state at the jumps: like `y0` with the jumps in front, `(J, B, ...)`, or what
            broadcasts against that. Where they carry an event's condition to zero or past it, the event happens at that
            time, and the state behind it is the event's. None for nothing.

    Returns:
        A `PathSolution`; `solution.value` is like `y0` with the times in front, `(T, B, ...)`; `solution.mask` `(T, B)`
        is False at padding; `solution.report` is a `PathReport`.

    Raises:
        ConvergenceError: some sample did not arrive (with `on_failure="raise"`); carries the solution.
        CaptureError: `f` depends on a tensor that requires grad and is neither argument nor parameter.
        TypeError: state or times are not floating, or `f` returns another dtype.
        ValueError: the times are not monotone, or `f` returns another structure or shape.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> ts = torch.linspace(0, 2, 5)
        >>> sol = ti.odeint(lambda t, y, rate: -rate * y, torch.ones(3, 1), ts, rate)
        >>> sol.value.shape
        torch.Size([5, 3, 1])
        >>> sol.value[-1].sum().backward()
        >>> torch.allclose(rate.grad, torch.tensor(-6 * 0.36788), rtol=1e-3)
        True
    """
    options = Options(
        name="odeint", solver=solver, adjoint=adjoint, stepping=stepping, batched_args=batched_args,
        on_failure=on_failure, event=event, dense=dense, callback=callback, dt_max=dt_max, jumps=jumps, doses=doses,
    )  # fmt: skip
    check_compile(compile, solver, options.plain)
    layout = Layout(y0, options.batch_dims)
    engine = choose_engine(compile, f, solver, layout.batch * layout.width, options.plain)
    return solve(f, y0, ts, args, layout, options, engine)
