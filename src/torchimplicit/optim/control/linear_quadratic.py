"""Linear-quadratic data as a user gives it, brought to one form."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.optim.control.bounds import Bound, as_bound, check_order, check_start, expanded
from torchimplicit.optim.control.riccati import Stages

SYMMETRIC = 1e4  # roundings


@dataclass(frozen=True)
class Given:
    """The arguments of `lqr` as they came; see there."""

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    x0: Tensor
    horizon: int | None
    c: Tensor | None
    S: Tensor | None
    q: Tensor | None
    r: Tensor | None
    P: Tensor | None
    p: Tensor | None
    lower: Bound
    upper: Bound
    state_lower: Bound
    state_upper: Bound

    def tensors(self) -> dict[str, Tensor]:
        """Those arguments that are tensors, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class LinearQuadratic:
    """A batch of linear-quadratic problems with bounds, in float64.

    Attributes:
        stages: dynamics and costs.
        x0: first states, `(B, nx)`.
        control_bounds: lower and upper, `(B, T, nu)`; None where there is none.
        state_bounds: lower and upper of `x_1` to `x_T`, `(B, T, nx)`; None where there is none.
        nonfinite: samples with NaN or infinity in their data, `(B,)`; placeholders stand in for theirs.
    """

    stages: Stages
    x0: Tensor
    control_bounds: tuple[Tensor, Tensor] | None
    state_bounds: tuple[Tensor, Tensor] | None
    nonfinite: Tensor


def assemble(given: Given) -> LinearQuadratic:
    """One form of all that `lqr` takes.

    Raises:
        TypeError: something is no tensor, or of another dtype.
        ValueError: shapes do not fit, costs are not symmetric, or bounds cross.
    """
    check_start(given.x0)
    batch, nx = given.x0.shape
    for name in ("A", "B", "Q", "R"):
        value = getattr(given, name)
        if not isinstance(value, Tensor) or value.dim() < 2:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"{name}: got {got}, expected a matrix, or (T, ...) or (B, T, ...) of them")
    nu, T = given.B.shape[-1], _horizon(given)
    zero = given.x0.new_zeros(())

    def part(name: str, *shape: int) -> Tensor:
        value = getattr(given, name)
        return expanded(name, zero.expand(shape) if value is None else value, (batch, *shape), given.x0).double()

    Q, R, S = part("Q", T, nx, nx), part("R", T, nu, nu), part("S", T, nx, nu)
    P = Q[:, -1] if given.P is None else part("P", nx, nx)
    for name, cost in (("Q", Q), ("R", R), ("P", P)):
        check_symmetric(name, cost, given.x0.dtype)
    F = torch.cat((part("A", T, nx, nx), part("B", T, nx, nu)), -1)
    H = torch.cat((torch.cat((Q, S), -1), torch.cat((S.mT, R), -1)), -2)
    g = torch.cat((part("q", T, nx), part("r", T, nu)), -1)
    p = part("q", T, nx)[:, -1] if given.p is None else part("p", nx)
    c = None if given.c is None else part("c", T, nx)
    stages = Stages(F, c, H, g, P, p)
    control_bounds = _pair(given, "lower", "upper", (batch, T, nu))
    state_bounds = _pair(given, "state_lower", "state_upper", (batch, T, nx))
    return _healthy(
        LinearQuadratic(stages, given.x0.double(), control_bounds, state_bounds, ~given.x0[:, 0].isfinite())
    )


def check_symmetric(name: str, matrix: Tensor, dtype: torch.dtype) -> None:
    """Refuses a cost that is not symmetric, beyond rounding.

    Raises:
        ValueError: names the first sample, and time.
    """
    matrix = matrix.detach()
    gap = (matrix - matrix.mT).abs().amax((-2, -1))
    wrong = torch.nonzero(gap > SYMMETRIC * torch.finfo(dtype).eps * matrix.abs().amax((-2, -1)))
    if len(wrong):
        where = dict(zip(("sample", "time"), wrong[0].tolist(), strict=False))
        raise ValueError(
            f"{name}: got a matrix that is not symmetric for {', '.join(f'{k} {v}' for k, v in where.items())}, "
            f"expected {name} = {name}.mT; try 0.5 * ({name} + {name}.mT)"
        )


def _horizon(given: Given) -> int:
    """The number of steps: as given, or as long as what varies in time.

    Raises:
        ValueError: nothing tells it.
    """
    horizon = given.horizon
    if horizon is not None:
        require_count("lqr", horizon=horizon)
        return horizon
    own = {"A": 2, "B": 2, "Q": 2, "R": 2, "S": 2}  # dimensions without time and batch; of all others 1
    for name, value in given.tensors().items():
        dims = own.get(name, 1)
        if name not in ("x0", "P", "p") and value.dim() > dims and value.shape[-dims - 1] > 1:
            return value.shape[-dims - 1]
    raise ValueError("lqr: got nothing that varies in time and horizon=None; expected the number of steps, horizon=T")


def _pair(given: Given, low_name: str, high_name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    given_low, given_high = getattr(given, low_name), getattr(given, high_name)
    if given_low is None and given_high is None:
        return None
    low = as_bound(low_name, given_low, -torch.inf, shape, given.x0)
    high = as_bound(high_name, given_high, torch.inf, shape, given.x0)
    check_order(low_name, high_name, low, high)
    return low.double(), high.double()


def _healthy(data: LinearQuadratic) -> LinearQuadratic:
    """The same with placeholders for the samples that have NaN or infinity in theirs."""
    bounds = [*(data.control_bounds or ()), *(data.state_bounds or ())]
    nonfinite = ~data.x0.isfinite().all(1)
    for part in data.stages:
        nonfinite = nonfinite if part is None else nonfinite | ~part.flatten(1).isfinite().all(1)
    for bound in bounds:
        nonfinite = nonfinite | bound.flatten(1).isnan().any(1)
    if not bool(nonfinite.any()):
        return replace(data, nonfinite=nonfinite)

    def within(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        return None if pair is None else (put(nonfinite, pair[0], -1.0), put(nonfinite, pair[1], 1.0))

    pairs = within(data.control_bounds), within(data.state_bounds)
    return LinearQuadratic(trivial(data.stages, nonfinite), put(nonfinite, data.x0, 0.0), *pairs, nonfinite)


def trivial(stages: Stages, which: Tensor) -> Stages:
    """The stages, for some samples, `(B,)` bool, those of a trivial problem whose solution is zero."""
    F, c, H, g, P, p = stages
    n, nx = H.shape[-1], p.shape[-1]
    eye = torch.eye(n, dtype=H.dtype, device=H.device)
    c = None if c is None else put(which, c, 0.0)
    costs = put(which, H, eye), put(which, g, 0.0), put(which, P, eye[:nx, :nx]), put(which, p, 0.0)
    return Stages(put(which, F, 0.0), c, *costs)


def put(which: Tensor, values: Tensor, other: Tensor | float) -> Tensor:
    """Values `(B, ...)`, and others for some samples, `(B,)` bool."""
    return torch.where(which.reshape(-1, *(1,) * (values.dim() - 1)), other, values)
