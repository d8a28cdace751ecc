"""The public function of stochastic differential equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.options import require_instance
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.core.tree import Layout
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.checkpointed import Checkpointed, Direct
from torchimplicit.path.adjoint.reversible import Reversible
from torchimplicit.path.options import Options
from torchimplicit.path.pair import PairSolver
from torchimplicit.path.solve import solve
from torchimplicit.sde.brownian import Brownian
from torchimplicit.sde.compiled.engine import check_compile, choose_engine
from torchimplicit.sde.diffusion import Diffusion, NoiseKind
from torchimplicit.sde.driver import Driver
from torchimplicit.sde.dynamics import StochasticDynamics
from torchimplicit.sde.equation import equation
from torchimplicit.sde.methods.heun import Heun
from torchimplicit.sde.relative import Divergence, RelativeDynamics, beside, relative_solution
from torchimplicit.sde.solution import StochasticSolution, solution_of
from torchimplicit.sde.solver import AdaptiveSDESolver, Calculus, SDESolver
from torchimplicit.sde.tree import Tree


@public
@transforms.outside_inference_mode
def sdeint(
    drift: Callable,
    diffusion: Callable,
    y0: Any,
    ts: Tensor,
    *args: Any,
    solver: SDESolver | None = None,
    noise: NoiseKind = "diagonal",
    calculus: Calculus = "ito",
    brownian: int | Tensor | Brownian | Tree | None = None,
    prior: Callable | None = None,
    kl: Divergence = "quadratic",
    adjoint: PathAdjoint = Checkpointed(),
    batched_args: Sequence[int] | None = None,
    dense: bool = False,
    on_failure: OnFailure = "raise",
    compile: Compile = False,
) -> StochasticSolution:
    r"""Solves $dy = f(t, y, a)\,dt + g(t, y, a)\,dW$, $y(t_0) = y_0$, sample by sample, differentiably.

    A sample's path depends on its seed and on nothing else: not on the batch, its order or its size. The derivative is
    that of the computed path, the noise held: by $y_0$, by $a$, and by the times, $W$ being $\sqrt h$ times a normal.

    Every tensor that shall get a gradient must be an argument, or a parameter of a function that is an `nn.Module` or a
    bound method of one; a captured one is refused.

    Args:
        drift: `drift(t, y, *args) -> f`, structure, shapes and dtype as `y`; samples independent. `t` is shaped
            `(B, 1, ...)`, such that it broadcasts against the first leaf of `y`.
        diffusion: `diffusion(t, y, *args) -> g`, of the structure of `y`, its leaves shaped as `noise` says.
        y0: start: a floating or complex tensor `(B, ...)` or a nest of such. The real and the imaginary part of a
            complex number are two unknowns.
        ts: times, the first one that of `y0`, strictly increasing: `(T,)`, or `(T, B)`, see `odeint`. Steps end there.
        *args: further arguments of both functions, nested; tensors and modules among them are differentiated.
        solver: the method and its steps: `EulerMaruyama(dt=0.01)` for example, or `Heun(rtol=1e-2)`, by which every
            sample chooses steps of its own, times then having no gradient. That is the default for Stratonovich
            equations and additive noise; for others there is none, for none chooses its steps.
        noise: "diagonal": a Brownian motion for every unknown, `g` like `y`, and $g_i$ depends on $y_i$ alone;
            "scalar": one for all, `g` is `(B, ..., 1)`; "general": `m` of them, `g` is `(B, ..., m)`; "additive": the
            same, or like `y` with one for every unknown, and `g` does not depend on `y`. That is looked at once a
            solve, by two evaluations: at the start and the end of each path, at a time on its way, another one for
            every sample, and four at least. A dependence that shows nowhere there is not seen.
        calculus: in which the equation is meant, "ito" or "stratonovich"; for additive noise they are the same. A
            solver of the other one is refused: convert the drift, see `to_stratonovich` and `to_ito`.
        brownian: a seed, an int, or int64 `(B,)`, one a sample; a `Brownian`; a `Tree`, which is one
            path at any steps, those included that samples choose, and dearer; None draws a seed from torch's
            generator, which `solution.report.seed` tells.
        prior: `prior(t, y, *args)`, like `drift`: the drift of another process, in the same calculus and with this very
            diffusion, so that there is none with another one. `solution.kl` tells how far that is from it: the
            divergence $KL = E \frac12 \int |u|^2 dt$, $g u = f - p$, sample by sample. It is infinite where the
            drifts differ by what the noise cannot make up for. It counts as an unknown for steps that are chosen.
        kl: "quadratic", $\frac12 \int |u|^2 dt$; or "pathwise", with $\int u \cdot dW$, which is the logarithm of the
            path's density: of the same mean, for one evaluation of all functions more at every step. Not with steps
            that are chosen by the noise, over which sums of $u \cdot dW$ have another limit.
        adjoint: `Checkpointed()`, which asks for the noise again by the steps' numbers, but for that of the last steps
            where `checkpoints` leaves room; `Direct()`; or `Reversible()`, which keeps no states but changes the
            method, unless that is `ReversibleHeun`.
        batched_args: see `odeint`.
        dense: give `solution.path`, the path as a function of time: between the ends of steps by the noise's bridge
            and a step of the same method, see `StochasticPath`. Times then have no gradient.
        on_failure: "raise", "warn" or "ignore" samples that do not reach the last time, forward and backward. Their
            outputs beyond the time reached hold the last finite state.
        compile: True makes steps by `torch.compile`, several a call, the noise inside, forward and backward: where the
            batch is small or the functions are cheap, two to three times as fast, and the first solve takes half a
            minute. Steps of one size to the same times for all samples, on a real tensor. Functions, seeds and steps
            as `odeint` says: none of the latter compiles anything anew, a second batch size does once. The noise is
            that of plain steps, the answer to rounding. What functions do in Python besides, such as counting, and
            what changes in Python while a solve lasts, is seen at its first steps alone. Where a sample fails, and for
            gradients by times or of gradients, steps are plain ones. "auto" begins to once 20 seconds were spent on a
            `drift` and a small state, and goes on without where it cannot.

    Returns:
        A `StochasticSolution`; `solution.value` is like `y0` with the times in front, `(T, B, ...)`; `solution.kl` is
        `(T, B)`, with a prior; `solution.report` is a `StochasticReport`.

    Raises:
        ConvergenceError: some sample did not arrive (with `on_failure="raise"`); carries the solution.
        CaptureError: a function depends on a tensor that requires grad and is neither argument nor parameter.
        TypeError: state or times are not floating, or a function returns another dtype.
        ValueError: the times do not increase, a function returns another structure or shape, the solver is not for this
            noise or this calculus, or "additive" noise depends on the state.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> sol = ti.sdeint(
        ...     lambda t, y, rate: -rate * y,
        ...     lambda t, y, rate: 0.2 * y,
        ...     torch.ones(3, 1),
        ...     torch.linspace(0, 2, 5),
        ...     rate,
        ...     solver=ti.sde.EulerMaruyama(dt=0.01),
        ...     brownian=7,
        ... )
        >>> sol.value.shape
        torch.Size([5, 3, 1])
        >>> sol.value[-1].mean().backward()
        >>> bool(rate.grad < 0)
        True
    """
    solver = _default(noise, calculus) if solver is None else solver
    options = Options(
        name="sdeint", solver=solver, adjoint=adjoint, batched_args=batched_args, dense=dense,
        on_failure=on_failure,
    )  # fmt: skip
    check_words(solver, noise, calculus, adjoint, kl)
    _check_noise(solver, brownian, ts, dense)
    source = _source(brownian)
    check_compile(compile, solver, source, ts, options.plain)
    if isinstance(brownian, Tree) and isinstance(solver, AdaptiveSDESolver):  # a shorter step has no law
        options = replace(options, solver=replace(solver, dt_min=max(solver.dt_min, brownian.cell)))
    y0 = pytree.tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, y0)
    layout, field, made = Layout(y0), StochasticDynamics, solution_of
    shape = Diffusion(noise, layout)
    if prior is not None:
        y0 = beside(y0, layout)
        layout, field, made = Layout(y0), partial(RelativeDynamics, pathwise=kl == "pathwise"), relative_solution
    driver = Driver(source, layout, solver, ts)
    engine = choose_engine(compile, drift, solver, source, ts, layout.batch * layout.width, options.plain)
    field = partial(field, diffusion=shape, driver=driver)
    solution = solve(equation(drift, diffusion, prior), y0, ts, args, layout, options, engine, field, made)
    assert isinstance(solution, StochasticSolution)
    return solution


def _default(noise: Any, calculus: Any) -> SDESolver:
    """The solver where none is given.

    Raises:
        ValueError: there is none for such an equation.
    """
    if calculus == "ito" and noise != "additive":
        raise ValueError(
            "solver: got None for an Ito equation, expected a method with its dt; try ti.sde.EulerMaruyama(dt=0.01), "
            f"or the same equation in other words, drift=ti.sde.to_stratonovich(drift, diffusion, {noise!r}), "
            'calculus="stratonovich", whose default chooses its steps'
        )
    return Heun()


def check_words(solver: Any, noise: Any, calculus: Any, adjoint: PathAdjoint, kl: Any) -> None:
    """Refuses what does not go together.

    Raises:
        TypeError: no solver of stochastic paths.
        ValueError: another word, a solver of the other calculus or for other noise, another adjoint.
    """
    require_instance("solver", solver, SDESolver, "ti.sde.EulerMaruyama(dt=0.01)")
    wanted = (("noise", noise, NoiseKind), ("calculus", calculus, Calculus), ("kl", kl, Divergence))
    for name, word, words in ((name, word, get_args(kind)) for name, word, kind in wanted):
        if word not in words:
            raise ValueError(f"{name}: got {word!r}, expected one of {', '.join(map(repr, words))}")
    name = type(solver).__name__
    if noise not in solver.kinds:
        raise ValueError(
            f"noise: got {noise!r} with {name}, expected one of {', '.join(map(repr, solver.kinds))}; try "
            "EulerMaruyama() for Ito, Heun() for Stratonovich equations, which take all"
        )
    if calculus != solver.calculus and noise != "additive":
        other, to = ("Heun()", "to_ito") if calculus == "stratonovich" else ("EulerMaruyama()", "to_stratonovich")
        raise ValueError(
            f"calculus: got {calculus!r} with {name}, which converges to the {solver.calculus!r} process, another one; "
            f"try {other}, or the same equation in other words: drift=ti.sde.{to}(drift, diffusion, {noise!r}), "
            f"calculus={solver.calculus!r}"
        )
    if not isinstance(adjoint, Checkpointed | Direct | Reversible):
        raise ValueError(
            f"adjoint: got {adjoint!r}, expected Checkpointed(), Direct() or Reversible(), which differentiate the "
            "steps that were taken: another solve backward would be of another process"
        )
    if kl == "pathwise" and (isinstance(adjoint, Reversible) or isinstance(solver, PairSolver)):
        raise ValueError(
            "kl: got 'pathwise' with states in pairs, whose steps do not tell it apart, expected 'quadratic'; try "
            "that, or Heun() with adjoint=Checkpointed()"
        )
    if kl == "pathwise" and solver.adapts:
        raise ValueError(
            f"kl: got 'pathwise' with {name}(rtol=...), which chooses its steps by the noise: sums of u dW over such "
            f"steps are biased, however small they are, expected 'quadratic'; try that, or {name}(dt=...)"
        )


def _check_noise(solver: SDESolver, brownian: Any, ts: Any, dense: bool) -> None:
    """Refuses what only steps of a given size, by their number, can do.

    Raises:
        ValueError: a path that is known at some steps, or times that want a gradient.
    """
    known, name = isinstance(brownian, Tree), type(solver).__name__
    if known and solver.levy:
        raise ValueError(
            f"brownian: got a Tree with {name}, which asks for Levy areas, expected a source that has them; try "
            "Brownian(seed=..., base=...)"
        )
    if dense and solver.levy:
        raise ValueError(
            f"dense: got True with {name}, whose Levy areas are not known over parts of a step, expected False; try "
            "more output times, or Heun(dt=...)"
        )
    if not solver.adapts and not known and not dense:
        return
    if solver.adapts and isinstance(brownian, Brownian) and brownian.base is not None:
        raise ValueError(
            f"brownian: got base={brownian.base!r} with {name}, which chooses its steps, expected none; try "
            f"Brownian(seed=...), Tree(seed=...), which is one path for all steps, or {name}(dt=...)"
        )
    if isinstance(ts, Tensor) and transforms.wants_gradient(ts):
        why, other = f"{name}, which chooses its steps by the noise", f"{name}(dt=...)"
        if dense:
            why, other = "dense=True, whose paths have no derivative by time", "dense=False"
        elif known:
            why, other = "a Tree, whose paths have no derivative by time", "Brownian(seed=...)"
        raise ValueError(f"ts: got times that want a gradient with {why}, expected none; try ts.detach(), or {other}")


def _source(brownian: Any) -> Brownian | Tree:
    """The source of noise.

    Raises:
        TypeError: neither a seed nor a source.
    """
    if isinstance(brownian, Brownian | Tree):
        return brownian
    if isinstance(brownian, Tensor) and transforms.is_mapped(brownian):
        raise ValueError("brownian: got seeds under torch.vmap, expected them in the batch; try a batch in dimension 0")
    return Brownian(seed=brownian)
