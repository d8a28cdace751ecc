"""Convex programs modelled in cvxpy, canonicalised once: cone programs whose data are affine in the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.optim.cone.accepted import check_class, check_geometric, check_members, not_dpp
from torchimplicit.optim.cone.affine import Affine, selection
from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.convex import ConvexProgram
from torchimplicit.optim.cone.geometric import GeometricProgram, in_logarithms
from torchimplicit.optim.cone.parameters import ParameterRule

_ATTRIBUTES = (
    "nonneg", "pos", "nonpos", "neg", "PSD", "NSD", "symmetric", "diag", "sparsity", "bounds", "integer", "boolean",
)  # fmt: skip
CANONICAL = "CLARABEL"  # whose form of cones, equal to that of `Cones`, cvxpy is asked for


def import_cvxpy() -> Any:
    """The modelling language, or an error that says how to install it."""
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError(
            "convex programs are modelled in cvxpy, which is not installed; try pip install torchimplicit[optim]"
        ) from error
    return cvxpy


def canonicalise(
    problem: Any,
    parameters: Sequence[Any],
    variables: Sequence[Any],
    duals: Sequence[Any] = (),
    *,
    gp: bool = False,
) -> ConvexProgram | GeometricProgram:
    r"""Turns a cvxpy problem, which must follow its rules for parameters (DPP), into a cone program.

    By these rules the data of $\min \tfrac12 x^\top P x + q^\top x$, $A x + s = b$, $s \in K$ are affine functions of
    the parameters; they are taken from cvxpy as sparse maps, as is the map from `x` to the variables, and from the
    multipliers to those of the user's constraints. The problem is not needed any more afterwards, and is left as it
    was. (A. Agrawal et al., Differentiable convex optimization layers, arXiv 1910.12430.)

    Args:
        problem: the `cvxpy.Problem`.
        parameters: all its parameters, in the order in which their values will be given.
        variables: those of its variables whose values are wanted.
        duals: those of its constraints whose multipliers are wanted.
        gp: whether it is a geometric program (DGP), which is solved in logarithms.

    Returns:
        A `ConvexProgram`, or a `GeometricProgram` that has one inside.

    Raises:
        TypeError: something is not what cvxpy makes.
        ValueError: the problem is not convex (geometric) by cvxpy's rules, not DPP, has integer, boolean or complex
            variables or cones that are not supported; parameters, variables or constraints do not belong to it.
        ImportError: cvxpy or Clarabel is not installed.
    """
    cvxpy = import_cvxpy()
    check_members(cvxpy, problem, parameters, variables, duals)
    if gp:
        check_geometric(problem)
        logs = in_logarithms(cvxpy, problem, parameters, variables, duals)
        program: Any = canonicalise(logs.problem, logs.parameters, logs.variables, logs.duals)
        return GeometricProgram(program, tuple(_rule(parameter) for parameter in parameters), tuple(logs.entries))
    check_class(problem)
    data, chain, inverse_data = _problem_data(cvxpy, problem)
    program = data["param_prob"]
    names = ("lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor")  # and dir_cones, from 1.9.3 on
    elsewhere = [getattr(program, name, None) for name in names]
    if any(part is not None for part in elsewhere) or getattr(program, "dir_cones", None):
        raise ValueError(
            "this version of cvxpy keeps constraints apart from the rows of the cone program, where they would be "
            "lost; try cvxpy 1.9"
        )
    n, m = program.x.size, program.constr_size
    stacked = _stacked(program, chain, parameters)
    matrix = torch.arange(m * n, device="cpu").reshape(n, m).T  # cvxpy counts entries column by column
    square = torch.arange(n * n, device="cpu").reshape(n, n).T
    blocks = {
        "q": _block(program.q, torch.arange(n, device="cpu")),
        "A": _block(program.A, matrix, sign=-1),
        "b": _block(program.A, torch.arange(m, device="cpu") + m * n),
    }
    if program.P is not None:
        blocks["P"] = _block(program.P, square)
    return ConvexProgram(
        rules=tuple(_rule(parameter) for parameter in parameters),
        blocks={name: block.after(stacked) for name, block in blocks.items()},
        cones=_cones(program),
        outputs=tuple(_variable(program, chain, variable) for variable in variables),
        multipliers=tuple(_multiplier(chain, inverse_data, n, m, constraint) for constraint in duals),
    )


def _problem_data(cvxpy: Any, problem: Any) -> tuple[dict, Any, Any]:
    """What cvxpy's solver interface is given, the chain of reductions to there, and how to invert it."""
    unset = [p for p in problem.parameters() if (p.value_sparse if p.attributes["sparsity"] else p.value) is None]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cvxpy on its own reading of sparse parameters
            for parameter in unset:  # cvxpy evaluates the data once; what at does not matter
                parameter.value = parameter.project(
                    torch.ones(parameter.shape, dtype=torch.float64, device="cpu").numpy()
                )
            return problem.get_problem_data(CANONICAL, enforce_dpp=True, solver_opts={})
    except cvxpy.error.DPPError as error:
        raise ValueError(not_dpp(problem)) from error
    except cvxpy.error.SolverError as error:
        raise ValueError(
            f"the problem has no form that Clarabel solves ({error}); supported are zero, nonnegative, second-order, "
            "semidefinite, exponential and power cones"
        ) from error
    finally:
        for parameter in unset:
            parameter.value = None


def _cones(program: Any) -> Cones:
    dims = program.cone_dims
    power = [(float(alpha), 1 - float(alpha)) for alpha in dims.p3d] + [tuple(map(float, alpha)) for alpha in dims.pnd]
    soc, psd = tuple(dims.soc), tuple(dims.psd)
    return Cones(zero=dims.zero, nonneg=dims.nonneg, soc=soc, psd=psd, exp=dims.exp, power=tuple(power))


def _block(tensor: Any, places: Tensor, sign: float = 1.0) -> Affine:
    """Those rows of cvxpy's map from `(parameters, 1)` to its data, as a map of the parameters in its order."""
    entries = tensor.tocoo()
    rows = torch.tensor(entries.row.tolist(), dtype=torch.long, device="cpu")
    columns = torch.tensor(entries.col.tolist(), dtype=torch.long, device="cpu")
    weights = sign * torch.tensor(entries.data.tolist(), dtype=torch.float64, device="cpu")
    target = torch.full((tensor.shape[0],), -1, device="cpu")
    target[places.flatten()] = torch.arange(places.numel(), device="cpu")
    rows = target[rows]
    wanted, constant = rows >= 0, columns == tensor.shape[1] - 1
    offset = torch.zeros(places.numel(), dtype=torch.float64, device="cpu")
    offset.index_add_(0, rows[wanted & constant], weights[wanted & constant])
    kept = wanted & ~constant
    return Affine(offset, places.shape, rows[kept], columns[kept], weights[kept])


def _stacked(program: Any, chain: Any, parameters: Sequence[Any]) -> Affine:
    """From all parameters' entries, row by row, one after another, to cvxpy's vector of parameters.

    Of a symmetric one cvxpy keeps the upper triangle. Here it is the mean of both, so that the gradient is symmetric.
    """
    from cvxpy.reductions.cvx_attr2constr import lower_value

    places, sources, weights, offset = [], [], [], 0
    renamed = _renamed(chain, "param_id_map")
    for parameter in parameters:
        index = torch.arange(parameter.size, device="cpu").reshape(parameter.shape)
        mirrored = index.mT if any(parameter.attributes[name] for name in ("symmetric", "PSD", "NSD")) else index
        column = program.param_id_to_col.get(renamed.get(parameter.id, parameter.id))
        for half in (index, mirrored):
            lowered = torch.tensor(
                lower_value(parameter, half.numpy()).flatten(order="F").tolist(), dtype=torch.long, device="cpu"
            )
            if column is not None:
                places.append(column + torch.arange(len(lowered), device="cpu"))
                sources.append(offset + lowered)
                weights.append(torch.full((len(lowered),), 0.5, dtype=torch.float64, device="cpu"))
        offset += parameter.size
    total = program.total_param_size
    nothing = torch.zeros(0, dtype=torch.long, device="cpu")
    return Affine(
        torch.zeros(total, dtype=torch.float64, device="cpu"),
        (total,),
        torch.cat([nothing, *places]),
        torch.cat([nothing, *sources]),
        torch.cat([nothing.double(), *weights]),
    )


def _rule(parameter: Any) -> ParameterRule:
    attributes = {name: parameter.attributes[name] for name in _ATTRIBUTES if parameter.attributes.get(name)}
    zeros = None
    if "diag" in attributes or "sparsity" in attributes:
        zeros = torch.ones(parameter.shape, device="cpu")
        if "diag" in attributes:
            zeros.fill_diagonal_(0)
        else:
            zeros[tuple(torch.tensor(index.tolist(), device="cpu") for index in parameter.sparse_idx)] = 0
        zeros = zeros.flatten()
    if "bounds" in attributes:
        attributes["bounds"] = [getattr(bound, "tolist", lambda bound=bound: bound)() for bound in attributes["bounds"]]
    return ParameterRule(parameter.name(), tuple(parameter.shape), attributes, zeros)


def _renamed(chain: Any, which: str) -> dict[int, int]:
    """The leaves that a reduction has put in the place of the user's, by their numbers."""
    renamed: dict[int, int] = {}
    for reduction in chain.reductions:
        mapping = getattr(reduction, which, None) or {}
        renamed |= {old: new[0] for old, new in mapping.items() if len(new) == 1}
    return renamed


def _variable(program: Any, chain: Any, variable: Any) -> Affine:
    """From `x` to a variable, whole again where cvxpy keeps its triangle or its diagonal."""
    from cvxpy.reductions.cvx_attr2constr import recover_value_for_leaf

    name = _renamed(chain, "var_id_map").get(variable.id, variable.id)
    column, size = program.var_id_to_col[name], program.id_to_var[name].size
    numbers = torch.arange(1, size + 1, dtype=torch.float64, device="cpu").numpy()
    if not variable._has_dim_reducing_attr:
        numbers = numbers.reshape(variable.shape, order="F")
    whole: Any = recover_value_for_leaf(variable, numbers, project=False)
    whole = whole.toarray() if hasattr(whole, "toarray") else whole
    index = torch.tensor(whole.tolist(), device="cpu").round().long().reshape(variable.shape)
    return selection(torch.where(index > 0, index - 1 + column, -1))


def _multiplier(chain: Any, inverse_data: Any, n: int, m: int, constraint: Any) -> tuple[Affine, ...]:
    """From `y` to the multipliers of one of the user's constraints.

    Each of their entries is one entry of `y`, times a number. Sending `y = (1, 2, 3, ...)` and its square through
    cvxpy's way back shows which and which; a third vector shows whether that is all.
    """

    def sent(y: Tensor) -> list[Tensor]:
        nothing = torch.zeros(n, dtype=torch.float64, device="cpu").numpy()
        found = SimpleNamespace(status="Solved", x=nothing, z=y.numpy(), obj_val=0.0, solve_time=0.0, iterations=0)
        values = chain.invert(found, inverse_data).dual_vars
        if constraint.id not in values:
            raise ValueError(f"duals: cvxpy gives no multipliers for the constraint {constraint}")
        held = [variable.value for variable in constraint.dual_variables]
        constraint.save_dual_value(values[constraint.id])
        result = [
            torch.as_tensor(variable.value, dtype=torch.float64, device="cpu") for variable in constraint.dual_variables
        ]
        for variable, value in zip(constraint.dual_variables, held, strict=True):
            variable.save_value(value)
        return result

    count = torch.arange(1, m + 1, dtype=torch.float64, device="cpu")
    maps = []
    for once, twice in zip(sent(count), sent(count.square()), strict=True):
        index = torch.where(once == 0, 0, twice / torch.where(once == 0, 1, once)).round().long()
        maps.append(selection(index - 1, (once / index.clamp(min=1)).flatten()))
    check = torch.sin(count)
    for one, value in zip(maps, sent(check), strict=True):
        if not torch.allclose(one(check.unsqueeze(0)).reshape(value.shape), value, rtol=1e-9, atol=1e-9):
            raise ValueError(f"duals: the multipliers of the constraint {constraint} are not entries of the program's")
    return tuple(maps)
