"""What every adjoint must keep."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint
from torchimplicit.equations import fixed_point
from torchimplicit.solve import Anderson, Solver
from torchimplicit.testing.cases import CASES, Case, total

TIGHT = Anderson(rtol=1e-13, atol=1e-13, max_steps=200)


def check_adjoint(
    adjoint: Adjoint, solver: Solver = TIGHT, cases: list[Case] | None = None, exact: bool = True, second: bool = True
) -> None:
    """Holds an adjoint to the contract.

    An exact one agrees with plain unrolling to 1e-9 in float64 and passes `gradcheck` and `gradgradcheck`; an
    approximate one is a descent direction. None changes the value. Where samples are coupled, against the rules, an
    exact one is right all the same or reports that it is not.

    Args:
        adjoint: the adjoint, with its linear solver at a tight tolerance.
        solver: a solver at a tight tolerance.
        cases: contractions; all of `CASES` by default.
        exact: hold it to exactness.
        second: also to exact second derivatives.

    Raises:
        AssertionError: something does not hold; `gradcheck` raises its own error.
    """
    for copied in (copy.deepcopy(adjoint), pickle.loads(pickle.dumps(adjoint))):
        assert copied == adjoint, "an adjoint is a plain value"
    for case in CASES if cases is None else cases:
        args = [arg.clone().requires_grad_() for arg in case.args]

        def value(*args: Tensor, case: Case = case) -> Any:
            return case.solve(*args, solver=solver, adjoint=adjoint, on_failure="ignore").value

        with torch.no_grad():
            plain = value(*args)
        same = zip(pytree.tree_leaves(value(*args)), pytree.tree_leaves(plain), strict=True)
        assert all(torch.allclose(a, b, 1e-12, 1e-12) for a, b in same), f"{case.name}: the adjoint changes the value"
        grads = torch.autograd.grad(total(value(*args)), args)
        reference = torch.autograd.grad(total(case.unrolled(*args)), args)
        if not exact:
            cosine = sum(torch.vdot(a.flatten(), b.flatten()).real for a, b in zip(grads, reference, strict=True))
            assert cosine > 0, f"{case.name}: not a descent direction"
            continue
        for grad, expected in zip(grads, reference, strict=True):
            gap = float((grad - expected).abs().max())
            assert gap < 1e-9, f"{case.name}: gradient off by {gap:.1e} from unrolling"
        flat = lambda *args: tuple(pytree.tree_leaves(value(*args)))  # noqa: E731
        assert gradcheck(flat, args, fast_mode=True)
        assert not second or gradgradcheck(flat, args, fast_mode=True)
    if exact and cases is None:
        _check_coupled(adjoint, solver)


def _check_coupled(adjoint: Adjoint, solver: Solver) -> None:
    """Samples that depend on each other: no backward solve may claim to have converged beside a wrong gradient."""
    case = next(case for case in CASES if case.batch_dims == 0)
    weight, x = case.args
    weight = weight.clone().requires_grad_()
    factors = torch.logspace(-2, 2, x.numel(), dtype=x.dtype).view_as(x)
    (expected,) = torch.autograd.grad((case.unrolled(weight, x) * factors).sum(), weight)
    solution = fixed_point(case.f, case.z0, weight, x, solver=solver, adjoint=adjoint, on_failure="ignore")
    (grad,) = torch.autograd.grad((solution.value * factors).sum(), weight)
    off = float((grad - expected).norm() / expected.norm())
    backward = solution.backward
    told = backward is not None and not backward.converged
    assert off < 1e-4 or told, f"samples are coupled, the gradient is off by {off:.1e}, and the report says: {backward}"


def check_transforms(adjoint: Adjoint, solver: Solver = TIGHT, vmap: bool = True, tolerance: float = 1e-9) -> None:
    """Checks `torch.func` transforms and derivatives up to the third order against plain unrolling.

    Args:
        adjoint: an exact adjoint at a tight tolerance.
        solver: a solver at a tight tolerance.
        vmap: whether the adjoint works under `torch.vmap` (and so under `jacrev` and `jacfwd`).
        tolerance: largest difference of any entry.

    Raises:
        AssertionError: a derivative differs.
    """
    from torch.func import grad, hessian, jacfwd, jacrev, jvp

    case = CASES[0]
    weight, x = case.args

    def solved(weight: Tensor) -> Tensor:
        return case.solve(weight, x, solver=solver, adjoint=adjoint, on_failure="ignore").value

    def ours(weight: Tensor) -> Tensor:
        return total(solved(weight))

    def plain(weight: Tensor) -> Tensor:
        return total(case.unrolled(weight, x, steps=80))

    def directional(f: Any) -> Any:
        return lambda weight: jvp(f, (weight,), (torch.ones_like(weight),))[1]

    def third(f: Any) -> Any:
        return grad(lambda w: grad(lambda w: grad(f)(w).sin().sum())(w).sin().sum())

    def reverse_over_reverse(f: Any) -> Any:
        return grad(lambda w: grad(f)(w).sin().sum())

    named = {"grad": grad, "jvp": directional, "grad of grad": reverse_over_reverse, "third order": third}
    if vmap:
        named |= {
            "hessian": hessian,
            "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
            "jacrev": jacrev,
            "jacfwd": jacfwd,
        }
    for name, transform in named.items():
        gap = float((transform(ours)(weight) - transform(plain)(weight)).abs().max())
        assert gap < tolerance, f"{name}: off by {gap:.1e} from unrolling"
    if vmap:
        _check_vmap(adjoint, solver, case)


def _check_vmap(adjoint: Adjoint, solver: Solver, case: Case) -> None:
    from torch.func import vmap

    weight, x = case.args
    xs = torch.stack([x, -x, 2 * x])
    weights = torch.stack([weight, weight.T, -weight])

    def ours(weight: Tensor, x: Tensor) -> Tensor:
        return case.solve(weight, x, solver=solver, adjoint=adjoint, on_failure="ignore").value

    for name, dims in {"shared weight": (None, 0), "shared input": (0, None), "nothing shared": (0, 0)}.items():
        args = (weight if dims[0] is None else weights, x if dims[1] is None else xs)
        for transform in (lambda f: f, _gradients):
            got = vmap(transform(ours), in_dims=dims)(*args)
            expected = vmap(transform(case.unrolled), in_dims=dims)(*args)
            for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
                gap = float((a - b).abs().max())
                assert gap < 1e-9, f"vmap with {name}: off by {gap:.1e}"


def _gradients(f: Any) -> Any:
    return torch.func.grad(lambda *args: total(f(*args)), argnums=(0, 1))
