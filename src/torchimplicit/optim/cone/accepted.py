"""Which cvxpy problems are accepted, and what is wrong with the others."""

from __future__ import annotations

from typing import Any


def check_members(cvxpy: Any, problem: Any, parameters: Any, variables: Any, duals: Any) -> None:
    """Refuses what does not belong to the problem, and a problem that is none; see `canonicalise`."""
    if not isinstance(problem, cvxpy.Problem):
        raise TypeError(f"problem: got a {type(problem).__name__}, expected a cvxpy.Problem")
    wanted = (
        ("parameters", parameters, cvxpy.Parameter, problem.parameters()),
        ("variables", variables, cvxpy.Variable, problem.variables()),
        ("duals", duals, cvxpy.constraints.constraint.Constraint, problem.constraints),
    )
    for name, given, kind, own in wanted:
        if not isinstance(given, list | tuple) or not all(isinstance(one, kind) for one in given):
            raise TypeError(f"{name}: got {given!r}, expected a list of cvxpy's {kind.__name__}s")
        strangers = [str(one) for one in given if one.id not in {mine.id for mine in own}]
        if strangers:
            listed = ", ".join(str(one) for one in own)
            raise ValueError(f"{name}: got {', '.join(strangers)}, not in the problem, which has: {listed}")
    missing = [p.name() for p in problem.parameters() if p.id not in {given.id for given in parameters}]
    if missing:
        raise ValueError(
            f"parameters: {', '.join(missing)} of the problem missing, expected all of them; try a constant in "
            "place of what shall not change"
        )
    if len({p.id for p in parameters}) < len(parameters):
        raise ValueError(f"parameters: got {[p.name() for p in parameters]}, expected each once")
    if not variables:
        raise ValueError("variables: got none, expected at least one whose value the layer shall return")


def check_class(problem: Any) -> None:
    """Refuses problems that are discrete, complex, or not convex by cvxpy's rules."""
    _check_leaves(problem)
    if not problem.is_dcp():
        faults = [f"constraint {i}: {c}" for i, c in enumerate(problem.constraints) if not c.is_dcp()]
        faults += [] if problem.objective.is_dcp() else [f"the objective: {problem.objective}"]
        log = " It is a geometric program: try gp=True." if problem.is_dgp() else ""
        raise ValueError(f"the problem is not convex by cvxpy's rules (DCP), because of {'; '.join(faults)}.{log}")


def check_geometric(problem: Any) -> None:
    """Refuses problems that are discrete, complex, or not geometric by cvxpy's rules, those for parameters included."""
    _check_leaves(problem)
    if problem.is_dgp(dpp=True):
        return
    faults = [f"constraint {i}: {c}" for i, c in enumerate(problem.constraints) if not c.is_dgp(dpp=True)]
    faults += [] if problem.objective.is_dgp(dpp=True) else [f"the objective: {problem.objective}"]
    unsure = [leaf.name() for leaf in (*problem.variables(), *problem.parameters()) if not leaf.attributes["pos"]]
    hint = f" Not declared positive are {', '.join(unsure)}: try pos=True, but for exponents." if unsure else ""
    hint += " It is convex: try gp=False." if problem.is_dcp(dpp=True) else ""
    raise ValueError(
        "the problem is not geometric by cvxpy's rules (DGP, and DPP for its parameters), because of "
        f"{'; '.join(faults)}.{hint}"
    )


def _check_leaves(problem: Any) -> None:
    discrete = [v.name() for v in problem.variables() if v.attributes["boolean"] or v.attributes["integer"]]
    if discrete or problem.is_mixed_integer():
        raise ValueError(
            f"integer or boolean variables: {', '.join(discrete) or 'implied by a constraint'}; their solution has no "
            "derivative; try the relaxation to an interval, bounds=[0, 1]"
        )
    leaves = [leaf.name() for leaf in (*problem.variables(), *problem.parameters()) if leaf.is_complex()]
    if leaves:
        raise ValueError(f"complex variables or parameters: {', '.join(leaves)}; try their real and imaginary parts")


def not_dpp(problem: Any) -> str:
    """Which parts of a problem break the rules for parameters, and what to try."""
    faults = [f"constraint {i}: {c}" for i, c in enumerate(problem.constraints) if not c.is_dcp(dpp=True)]
    faults += [] if problem.objective.is_dcp(dpp=True) else [f"the objective: {problem.objective}"]
    return (
        f"the problem does not follow cvxpy's rules for parameters (DPP), because of {'; '.join(faults)}. Parameters "
        "may enter affinely only: try a new parameter for a product of parameters, and sum_squares(F @ x) with F a "
        "parameter in place of quad_form(x, F.T @ F)"
    )
