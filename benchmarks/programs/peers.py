"""Libraries that solve quadratic programs and differentiate them, behind one signature; those installed alone."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchimplicit.optim import qp

Tensors = tuple[Tensor, ...]
Found = tuple[Tensor, Tensor | None, Tensor | None]  # solution, multipliers of inequalities and of equations


@dataclass(frozen=True)
class Contestant:
    """A library.

    Attributes:
        name: of the row.
        solve: from `Q, q, G, h, A, b` to the solution and what multipliers it gives.
        bars: how much slower than ours it shall be, forward and backward, by the number of unknowns.
        warm: solves again from what an earlier call found; None where it cannot. Takes the tensors and that call's
            `memory()`.
        memory: what the latest call found, for `warm`.
    """

    name: str
    solve: Callable[..., Found]
    bars: Mapping[int, float] = field(default_factory=dict)
    warm: Callable[..., Found] | None = None
    memory: Callable[[], Any] = lambda: None


def contestants(batch: int, n: int, m: int, p: int, say: bool = True) -> list[Contestant]:
    """This library first; a line for each that is not there, unless told not to `say` so."""
    found = [ours()]
    for make in (moreau, proxsuite, qpth, cvxpylayers):
        name = make.__name__
        try:
            found += make(batch, n, m, p)
        except ImportError as error:
            if say:
                how = "--no-deps qpth==0.0.18 (it asks for an old numpy)" if name == "qpth" else "-e '.[bench]'"
                print(f"{name} is left out, for it cannot be imported ({error}): pip install {how}")
    return found


def ours() -> Contestant:
    """`ti.qp`."""
    latest: list[Any] = []

    def solve(*tensors: Tensor, warm_start: Any = None) -> Found:
        solution = qp(*tensors, warm_start=warm_start)
        latest[:] = [solution]
        return solution.value, solution.duals.inequality, solution.duals.equality

    def warm(tensors: Tensors, earlier: Any) -> Found:
        return solve(*tensors, warm_start=earlier)

    return Contestant("torchimplicit", solve, warm=warm, memory=lambda: latest[0])


def moreau(batch: int, n: int, m: int, p: int) -> list[Contestant]:
    """Its active-set and its interior-point method."""
    import moreau as library  # pyright: ignore[reportMissingImports]
    from moreau.torch import Solver  # pyright: ignore[reportMissingImports]

    def dense(rows: int) -> tuple[Tensor, Tensor]:
        return torch.arange(rows + 1) * n, torch.arange(n).repeat(rows)

    def make(method: str) -> Contestant:
        settings = library.Settings(solver=method, device="cpu", batch_size=batch, enable_grad=True)
        cones = library.Cones(num_zero_cones=p, num_nonneg_cones=m)
        solver, latest = Solver(n, m + p, *dense(n), *dense(m + p), cones, settings), []

        def solve(Q: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor, warm_start: Any = None) -> Found:
            rows, right = torch.cat((A, G), 1), torch.cat((b, h), 1)
            solution = solver.solve(Q.flatten(1), rows.flatten(1), q, right, warm_start=warm_start)
            latest[:] = [solution]
            return solution.x, solution.z[:, p:], solution.z[:, :p]

        def warm(tensors: Tensors, earlier: Any) -> Found:
            return solve(*tensors, warm_start=earlier)

        bars = {10: 1.0, 50: 1.2, 100: 1.2} if method == "active_set" else {}
        name = f"moreau, {method.replace('_', ' ')}"
        return Contestant(name, solve, bars, warm, lambda: latest[0].to_warm_start())

    return [make("active_set"), make("ipm")]


def proxsuite(batch: int, n: int, m: int, p: int) -> list[Contestant]:
    """Its `QPFunction`."""
    from proxsuite.torch.qplayer import QPFunction  # pyright: ignore[reportMissingImports]

    layer, none = QPFunction(), torch.full((batch, m), -1e20, dtype=torch.float64)

    def solve(Q: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Found:
        z, nu, y = layer(Q, q, A, b, G, none, h)
        return z, y, nu

    return [Contestant("proxsuite", solve, {50: 1.5, 100: 1.5})]


def qpth(batch: int, n: int, m: int, p: int) -> list[Contestant]:
    """Its `QPFunction`, which keeps the multipliers to itself."""
    from qpth.qp import QPFunction  # pyright: ignore[reportMissingImports]

    layer = QPFunction(verbose=-1, check_Q_spd=False)

    def solve(*tensors: Tensor) -> Found:
        return layer(*tensors), None, None

    return [Contestant("qpth", solve, {50: 3.0, 100: 3.0})]


def cvxpylayers(batch: int, n: int, m: int, p: int) -> list[Contestant]:
    """Its default, where the objective must be a sum of squares; and its layer over moreau, which takes the form."""
    with quiet():
        import cvxpy as cp  # pyright: ignore[reportMissingImports]
        from cvxpylayers.torch import CvxpyLayer  # pyright: ignore[reportMissingImports]

    z, matrix = cp.Variable(n), cp.Parameter((n, n))
    form = cp.Parameter((n, n), PSD=True)
    others = [cp.Parameter(shape) for shape in (n, (m, n), m, (p, n), p)]
    q, G, h, A, b = others

    def make(name: str, objective: Any, first: Any, prepare: Callable[[Tensor], Tensor], **options: Any) -> Contestant:
        problem = cp.Problem(cp.Minimize(0.5 * objective + q @ z), [A @ z == b, G @ z <= h])
        with quiet():
            layer = CvxpyLayer(problem, parameters=[first, *others], variables=[z], **options)

        def solve(Q: Tensor, *rest: Tensor) -> Found:
            with quiet():
                return layer(prepare(Q), *rest)[0], None, None

        return Contestant(name, solve)

    squares = cp.sum_squares(matrix @ z)
    made = [make("cvxpylayers, default", squares, matrix, lambda Q: torch.linalg.cholesky(Q).mT)]
    if importlib.util.find_spec("moreau") is not None:
        made.append(make("cvxpylayers over moreau", cp.quad_form(z, form), form, lambda Q: Q, solver="MOREAU"))
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Without what it warns of and prints at every import and solve."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
