"""Geometric programs: convex in the logarithms of their variables, with data affine in those of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.public import public
from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.convex import ConvexProgram, ConvexSolution
from torchimplicit.optim.cone.parameters import ParameterRule


class Logarithmic(NamedTuple):
    """A geometric program by cvxpy's reduction to a convex one.

    Attributes:
        problem: the convex one.
        parameters: its parameters.
        entries: for each of them, which of the geometric program's it is, and whether it is its logarithm.
        variables: the logarithms of the variables that are wanted.
        duals: the constraints whose multipliers are wanted.
    """

    problem: Any
    parameters: list[Any]
    entries: list[tuple[int, bool]]
    variables: list[Any]
    duals: list[Any]


def in_logarithms(
    cvxpy: Any, problem: Any, parameters: Sequence[Any], variables: Sequence[Any], duals: Sequence[Any]
) -> Logarithmic:
    """Reduces a geometric program; a parameter that is a factor and an exponent, too, is there twice.

    Source: A. Agrawal, S. Diamond, S. Boyd, Disciplined geometric programming, Optimization Letters 13 (2019) 961.
    """
    reduction = cvxpy.reductions.Dgp2Dcp()
    reduced, inverse = reduction.apply(problem)
    logarithms, ids = reduction.canon_methods._parameters, {p.id for p in reduced.parameters()}
    entries, given = [], []
    for i, parameter in enumerate(parameters):
        if parameter in logarithms:
            given.append(logarithms[parameter])
            entries.append((i, True))
        if parameter.id in ids:
            given.append(parameter)
            entries.append((i, False))
    constraints = {constraint.id: constraint for constraint in reduced.constraints}
    return Logarithmic(
        reduced,
        given,
        entries,
        [reduction.canon_methods._variables[variable] for variable in variables],
        [constraints[inverse.cons_id_map[constraint.id]] for constraint in duals],
    )


@dataclass(frozen=True)
class GeometricProgram:
    """A geometric program as the exponential of a convex one. Made by `canonicalise(..., gp=True)`.

    Attributes:
        program: the convex one, in logarithms.
        rules: what every parameter must be like.
        entries: for each parameter of `program`, which of this one's it is, and whether it is its logarithm.
    """

    program: ConvexProgram
    rules: tuple[ParameterRule, ...]
    entries: tuple[tuple[int, bool], ...]

    @property
    def cones(self) -> Cones:
        """Those of the convex program."""
        return self.program.cones

    @public
    def solve(self, values: Sequence[Tensor], **options: Any) -> ConvexSolution:
        """Solves for these values of the parameters; see `ConvexProgram.solve`.

        The multipliers are those of the convex program: by how much, relatively, the optimum falls with the relative
        room that a constraint is given.

        Raises:
            ConvergenceError: some program was not solved (with `on_failure="raise"`).
            ValueError: values do not fit the parameters' shapes or domains, or are not positive.
        """
        if len(values) != len(self.rules):
            names = ", ".join(rule.name for rule in self.rules)
            raise ValueError(f"got {len(values)} parameters, expected {len(self.rules)}: {names}")
        for rule, value in zip(self.rules, values, strict=True):
            rule.check_shape(value)
        for i, logarithm in self.entries:
            if logarithm:
                _check_positive(self.rules[i], values[i])
        given = [values[i].double().log() if logarithm else values[i].double() for i, logarithm in self.entries]
        found = self.program.solve(given, **options)
        dtype = values[0].dtype if values else torch.get_default_dtype()
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)
        duals = tuple(
            tuple(part.to(dtype) for part in dual) if isinstance(dual, tuple) else dual.to(dtype)
            for dual in found.duals
        )
        return replace(found, variables=tuple(one.exp().to(dtype) for one in found.variables), duals=duals)


def _check_positive(rule: ParameterRule, value: Tensor) -> None:
    """Refuses what has no logarithm; NaN is for the solver to report."""
    if transforms.active():
        return
    if not value.numel():
        return
    plain = value.detach().reshape(1, -1) if value.dim() == len(rule.shape) else value.detach().reshape(len(value), -1)
    least = plain.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(1)
    rows = torch.nonzero(least <= 0).flatten()
    if len(rows):
        row = int(rows[0])
        where = f" at batch index {row}" if value.dim() > len(rule.shape) else ""
        raise ValueError(
            f"parameter {rule.name}: got {float(least[row]):.3g}{where}, expected > 0, for a geometric program is "
            "solved in its logarithm; try softplus or exp"
        )
