"""What other libraries call things, and what they are called here: for messages, and for those who come over."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Any, Self

# What to write in place of a keyword; `{}` is its value. The libraries are torchdeq, torchdiffeq, torchdyn, torchsde,
# qpth, cvxpylayers, jaxopt and scipy.
_POINTS = {
    "f_solver": "solver=Anderson() or another solver",
    "f_max_iter": "solver=Anderson(max_steps={})",
    "f_tol": "solver=Anderson(rtol={})",
    "max_iter": "solver=Anderson(max_steps={})",
    "maxiter": "solver=Anderson(max_steps={})",
    "max_steps": "solver=Anderson(max_steps={})",
    "tol": "solver=Anderson(rtol={})",
    "rtol": "solver=Anderson(rtol={})",
    "atol": "solver=Anderson(atol={})",
    "m": "solver=Anderson(window={})",
    "f_stop_mode": "solver=Anderson(rtol=..., atol=0), relative, or Anderson(rtol=0, atol=...), absolute",
    "stop_mode": "solver=Anderson(rtol=..., atol=0), relative, or Anderson(rtol=0, atol=...), absolute",
    "b_solver": "adjoint=Implicit(linear_solver=GMRES()) or another linear solver",
    "b_max_iter": "adjoint=Implicit(linear_solver=GMRES(max_steps={}))",
    "b_tol": "adjoint=Implicit(linear_solver=GMRES(rtol={}))",
    "ift": "adjoint=Implicit()",
    "hook_ift": "adjoint=Implicit()",
    "implicit_diff": "adjoint=Implicit()",
    "grad": "adjoint=Phantom(steps=...)",
    "tau": "adjoint=Phantom(damping={})",
    "n_states": "save_steps=(...)",
    "indexing": "save_steps={}",
}
_PATHS = {
    "method": "solver=Tsit5(), Dopri5(), RK4(dt=...) or another solver",
    "rtol": "solver=Tsit5(rtol={})",
    "atol": "solver=Tsit5(atol={})",
    "tol": "solver=Tsit5(rtol={})",
    "max_steps": "solver=Tsit5(max_steps={})",
    "max_num_steps": "solver=Tsit5(max_steps={})",
    "first_step": "solver=Tsit5(dt0={})",
    "step_size": "solver=RK4(dt={})",
    "dt": "solver=RK4(dt={})",
    "dt0": "solver=Tsit5(dt0={})",
    "options": "solver=RK4(dt=...), Tsit5(dt0=..., max_steps=...), and jumps=(...) for jump_t",
    "jump_t": "jumps={}",
    "event_fn": "event=Event(condition)",
    "events": "event=[Event(condition), ...]",
    "t_span": "the times themselves, as the third argument or `ts`",
    "t": "the times themselves, as the third argument or `ts`",
    "sensitivity": 'adjoint=Checkpointed(), Backsolve() ("adjoint") or Direct() ("autograd")',
    "adjoint_method": "adjoint=Backsolve(solver=...)",
    "adjoint_rtol": "adjoint=Backsolve(solver=Tsit5(rtol={}))",
    "adjoint_atol": "adjoint=Backsolve(solver=Tsit5(atol={}))",
    "adjoint_options": "adjoint=Backsolve(seminorm=True), its default, for norm='seminorm'",
    "adjoint_params": "the parameters as further arguments, or in an nn.Module as the field",
}
_STOCHASTIC = {
    "method": "solver=sde.EulerMaruyama(dt=...), sde.Heun() or another solver",
    "dt": "solver=sde.EulerMaruyama(dt={})",
    "adaptive": "solver=sde.Heun(rtol=...), adaptive, or sde.Heun(dt=...)",
    "rtol": "solver=sde.Heun(rtol={})",
    "atol": "solver=sde.Heun(atol={})",
    "dt_min": "solver=sde.Heun(dt_min={})",
    "bm": "brownian=sde.Brownian(seed=...), whose seeds are of samples",
    "logqp": "prior=..., the drift of the prior; the report has the divergence",
    "sde_type": "calculus={}",
    "noise_type": "noise={}",
    "names": "the functions themselves: sdeint(drift, diffusion, y0, ts)",
    "adjoint_method": "adjoint=Checkpointed() or Reversible(), which are exact for every method",
    "adjoint_params": "the parameters as further arguments, or in an nn.Module as drift or diffusion",
    "options": "options of the solver, sde.Heun(...)",
}
_PROGRAMS = {
    "p": "q, the linear term",
    "eps": "max_steps=...: a program is solved to rounding",
    "tol": "max_steps=...: a program is solved to rounding",
    "maxIter": "max_steps={}",
    "max_iter": "max_steps={}",
    "lb": "l={}",
    "ub": "u={}",
    "verbose": "the report of the solution",
    "solver_args": "max_steps=...",
}
_OPTIONS = {
    "tol": "rtol={}",
    "tolerance": "rtol={}",
    "max_iter": "max_steps={}",
    "maxiter": "max_steps={}",
    "max_iters": "max_steps={}",
    "m": "window={}",
    "history_size": "window={}",
    "beta": "damping={}",
    "lam": "ridge={}",
    "step_size": "dt={}",
    "first_step": "dt0={}",
    "max_num_steps": "max_steps={}",
}
KEYWORDS: Mapping[str, Mapping[str, str]] = {
    "fixed_point": _POINTS,
    "root": _POINTS,
    "odeint": _PATHS,
    "sdeint": _STOCHASTIC,
    "qp": _PROGRAMS,
}
LAYERS: Mapping[str, str] = {  # and the functions that they call
    **dict.fromkeys(("DEQ", "MonotoneDEQ"), "fixed_point"),
    **dict.fromkeys(("NeuralODE", "CNF"), "odeint"),
    "NeuralSDE": "sdeint",
    "QP": "qp",
}

NAMES: Mapping[str, str] = {
    "get_deq": "nn.DEQ(cell)",
    "anderson_solver": "Anderson()",
    "broyden_solver": "Broyden()",
    "fixed_point_iter": "Picard()",
    "jac_reg": "nn.jacobian_penalty",
    "power_method": "diagnose.spectral_radius(cell, z, x)",
    "odeint_adjoint": "odeint(f, y0, ts, adjoint=Backsolve())",
    "odeint_event": "odeint(f, y0, ts, event=Event(condition))",
    "sdeint_adjoint": "sdeint(drift, diffusion, y0, ts, adjoint=Reversible())",
    "BrownianInterval": "sde.Brownian(seed=...), or sde.Tree(seed=...) for the same path at other steps",
    "BrownianTree": "sde.Tree(seed=...)",
    "SDEIto": "sdeint(drift, diffusion, y0, ts)",
    "SDEStratonovich": 'sdeint(drift, diffusion, y0, ts, calculus="stratonovich")',
    "QPFunction": "qp(Q, q, G, h, A, b)",
    "CvxpyLayer": "optim.ConvexProgram, which takes a cvxpy problem, or nn.Convex",
}


def explain(name: str, call: Callable, args: tuple, keywords: Mapping[str, Any]) -> None:
    """Says in words what is wrong with a call that does not fit its signature; nothing of one that does.

    Args:
        name: what was called.
        call: the function or class.
        args: positional arguments.
        keywords: those by name.

    Raises:
        TypeError: which keyword is of another name and what it is here, or what is missing.
    """
    signature = inspect.signature(call)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
        return
    known = [name for name, each in signature.parameters.items() if each.kind is not inspect.Parameter.VAR_POSITIONAL]
    unknown = next((keyword for keyword in keywords if keyword not in known), None)
    if unknown is not None:
        value = keywords[unknown]
        short = repr(value) if isinstance(value, bool | int | float | str) else "..."
        raise TypeError(f"{name}({unknown}={short}): no such option; {_instead(name, unknown, short, known)}")
    if name == "sdeint" and args and all(hasattr(args[0], part) for part in ("f", "g")):
        raise TypeError(
            f"sdeint({type(args[0]).__name__}, ...): got one object for drift and diffusion, expected two functions; "
            "try sdeint(sde.f, sde.g, y0, ts), the noise and calculus as options"
        )
    try:
        signature.bind(*args, **keywords)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; expected {name}({', '.join(known)})") from None


def _instead(name: str, unknown: str, short: str, known: list[str]) -> str:
    """What to try in place of an unknown option."""
    function = LAYERS.get(name, name)
    answer = KEYWORDS.get(function, _OPTIONS).get(unknown)
    option = answer.partition("=")[0] if answer else ""
    if answer and (option in known or not option.isidentifier()):
        return f"try {answer.format(short)}"
    if answer and function != name:
        return f"{function} has it, as {answer.format(short)}"
    close = get_close_matches(unknown, known, 1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"


def missing(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error for a name that a module does not have, with what it is called here where that is known."""
    text = f"module {module!r} has no attribute {name!r}"
    if name.startswith("_"):  # what tools look for
        return AttributeError(text, name=name)
    if name in NAMES:
        return AttributeError(f"{text}; try torchimplicit.{NAMES[name]}", name=name)
    close = _closest_place(module, name, tuple(known))
    return AttributeError(f"{text}; did you mean {close}?" if close else text, name=name)


@lru_cache(maxsize=1024)  # parsers of command lines look for the same names in every module, over and over
def _closest_place(module: str, name: str, known: tuple[str, ...]) -> str | None:
    """Where a name that is like another one stands, its module in front."""
    places = {each.lower(): f"{module}.{each}" for each in known}
    for other in ("nn", "optim", "sde", "ode", "diagnose"):
        home = f"torchimplicit.{other}"
        places |= {each.lower(): f"{home}.{each}" for each in import_module(home).__all__ if each.lower() not in places}
    close = get_close_matches(name.lower(), places, 1)
    return places[close[0]] if close else None


class Explained:
    """Mixin of classes of options: a keyword that they do not have is answered by what it is called here."""

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """The object; `__init__` takes the options."""
        code = getattr(cls.__init__, "__code__", None)
        if code and (len(args) >= code.co_argcount or not keywords.keys() <= set(code.co_varnames)):
            explain(cls.__name__, cls, args, keywords)
        return super().__new__(cls)
