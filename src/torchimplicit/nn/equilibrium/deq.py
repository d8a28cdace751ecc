"""The deep equilibrium layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Implicit, Unrolled
from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.status import OnFailure, Report, Solution
from torchimplicit.equations import fixed_point
from torchimplicit.linear import GMRES
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.nn.parts.coupling import warn_of_batch_norm
from torchimplicit.point import check_options
from torchimplicit.solve import Polyalgorithm, Solver
from torchimplicit.solve.compiled.engine import check_compile


class DEQ(ImplicitLayer):
    r"""A deep equilibrium layer: the fixed point $z^* = \mathrm{cell}(z^*, x)$, differentiated through it.

    An infinitely deep weight-tied network whose training memory is that of one layer. The cell must treat samples
    independently (GroupNorm or LayerNorm, not BatchNorm) and be deterministic within a solve (no plain dropout).
    The layer behaves the same in `train()` and `eval()` mode; only the cell may differ.

    Source: S. Bai, J. Z. Kolter, V. Koltun, NeurIPS 2019, arXiv 1909.01377.

    Args:
        cell: `cell(z, x, ...) -> z`, a module, or a plain function of its arguments alone.
        solver: how to find the fixed point. The default is `Anderson`, and `Broyden` for samples that 60 steps of it
            have not solved. That, and the limits of the defaults here and in `adjoint`, is for cells at the edge of
            contracting, where training drives most; a cell that contracts well never comes near them.
        adjoint: how to differentiate it.
        init: `init(x, ...) -> z0`, a function or module, where the state is not like `x`; None starts at zeros.
        warm_start: start from the last solution when its shapes fit, and with what `Broyden` learnt on the way there:
            for inputs that change little between calls.
        batched_args: positions of those inputs of the layer that carry the batch in dimension 0, `x` being 0. None
            takes `(0,)` where `x` is the only input and all of it does, so that a large batch goes on without the
            samples that have arrived; with more inputs, name them to have that. See `fixed_point`.
        on_failure: "warn" (default), "raise" or "ignore" samples that do not converge, forward and backward.
        compile: False, True or "auto": make the first steps by `torch.compile`, see `fixed_point`; not with `Unrolled`,
            nor in calls with `save_steps`.

    Attributes:
        report: how the last forward solve went, in whichever thread, and in `report.backward` its backward solve; None
            before the first. Threads that want one each take `copy.copy(layer)`, which shares the parameters.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(16, 16)
        ...
        ...     def forward(self, z, x):
        ...         return torch.tanh(self.linear(z) + x)
        >>> layer = ti.nn.DEQ(Cell())
        >>> layer(torch.randn(4, 16)).shape, layer.report.converged
        (torch.Size([4, 16]), True)
    """

    report: Report | None
    advice = (
        "A cell stops contracting while it trains unless something keeps it: try nn.jacobian_penalty in the loss, "
        "nn.ContractiveLinear and ContractiveConv2d in the cell, or, while training, the tolerances "
        "solver=Polyalgorithm(rtol=1e-2), adjoint=Implicit(GMRES(rtol=0.1, restart=20)) (the guide's page, "
        "docs/guide.md, under Stability)."
    )

    def __init__(
        self,
        cell: Callable,
        solver: Solver = Polyalgorithm(),
        adjoint: Adjoint = Implicit(GMRES(restart=20, max_steps=200)),
        init: Callable | None = None,
        warm_start: bool = False,
        batched_args: Sequence[int] | None = None,
        on_failure: OnFailure = "warn",
        compile: Compile = False,
    ):
        """Keeps the cell and the options; solves nothing."""
        super().__init__()
        if not callable(cell):
            raise TypeError(f"DEQ(cell=...): got a {type(cell).__name__}, expected a module or function cell(z, x)")
        check_options(solver, adjoint, on_failure)
        check_compile(compile, solver, plain=not isinstance(adjoint, Unrolled))
        if not (init is None or callable(init)):
            raise TypeError(f"DEQ(init=...): got a {type(init).__name__}, expected a module or function init(x, ...)")
        if warm_start and isinstance(adjoint, Unrolled):
            raise ValueError(
                "DEQ(warm_start=True, adjoint=Unrolled()): a start at the solution takes no steps, and so has no "
                "gradient; try Implicit() or Phantom()"
            )
        _check_cell(cell)
        self.cell, self.init = cell, init
        self.solver, self.adjoint = solver, adjoint
        self.warm_start = warm_start
        self.batched_args = batched_args
        self.compiled: Compile = compile
        self.on_failure: OnFailure = on_failure
        self._last: Solution | None = None
        warn_of_batch_norm("DEQ", "cell", cell, "fixed points")

    def forward(self, x: Any, *args: Any, z0: Any = None, save_steps: Sequence[int] = (), **keywords: Any) -> Any:
        """The fixed point for input `x`, like `z0`.

        Args:
            x: input, `(B, ...)`, or a nest of such; the initial state is like it unless `init` or `z0` is given.
            *args: further arguments of the cell.
            z0: where to start, in place of `init` and of a warm start.
            save_steps: steps whose iterates to return, too; see `fixed_point`.
            **keywords: further arguments of the cell by name, `layer(x, mask=mask)`; tensors among them get gradients.
                `z0` and `save_steps` are the layer's own names, and no cell's.

        Returns:
            The fixed point; with `save_steps`, the fixed point and the tuple of iterates.
        """
        last = self._last  # read once: other threads may write it
        if z0 is None:
            z0 = self.initial_state(x, *args)
        cell = self.cell
        if keywords:  # as arguments, so that their tensors are explicit
            cell, args = partial(_by_name, cell, tuple(keywords)), (*args, *keywords.values())
        solution = self.solve(
            fixed_point,
            cell,
            z0,
            x,
            *args,
            solver=self.solver,
            adjoint=self.adjoint,
            warm_start=last if last is not None and z0 is last.value else None,
            batched_args=self._batched(z0, x, args),
            save_steps=save_steps,
            compile=self.compiled,
        )
        if self.warm_start and not torch.is_inference_mode_enabled():  # whose tensors training could not use
            last = pytree.tree_map(lambda leaf: leaf.detach().clone(), solution.value)  # the caller may write into it
            self._last = replace(solution, value=last, trajectory=())
        return (solution.value, solution.trajectory) if save_steps else solution.value

    def initial_state(self, x: Any, *args: Any) -> Any:
        """Where a solve for these inputs would start: at the last solution, at what `init` gives, or at zero."""
        last = self._last
        z0 = pytree.tree_map(torch.zeros_like, x) if self.init is None else self.init(x, *args)
        if last is not None:
            leaves, known = pytree.tree_leaves(z0), pytree.tree_leaves(last.value)
            if [(t.shape, t.dtype, t.device) for t in leaves] == [(t.shape, t.dtype, t.device) for t in known]:
                return last.value
        return z0

    def _batched(self, z0: Any, x: Any, args: tuple) -> Sequence[int] | None:
        if self.batched_args is not None or args:
            return self.batched_args
        sizes = {tuple(leaf.shape[:1]) for leaf in pytree.tree_leaves((z0, x)) if isinstance(leaf, torch.Tensor)}
        return (0,) if len(sizes) == 1 else None

    def reset(self) -> None:
        """Forgets the last solution, so that the next warm start is a cold one."""
        self._last = None

    def extra_repr(self) -> str:
        """The options, for `print(layer)`."""
        options = f"warm_start={self.warm_start}, on_failure={self.on_failure!r}"
        return f"solver={self.solver}, adjoint={self.adjoint}, {options}"


def _by_name(cell: Callable, names: tuple[str, ...], z: Any, *args: Any) -> Any:
    """The cell at `z`, its last arguments by these names."""
    first = len(args) - len(names)
    return cell(z, *args[:first], **dict(zip(names, args[first:], strict=True)))


def _check_cell(cell: Callable) -> None:
    """Refuses a cell that cannot be called with a state and an input.

    Raises:
        TypeError: says what it takes, and what to do.
    """
    try:
        signature = inspect.signature(cell.forward if isinstance(cell, nn.Module) else cell)
    except (TypeError, ValueError):  # a builtin that does not say
        return
    try:
        signature.bind_partial(None, None)
    except TypeError:
        name = type(cell).__name__ if isinstance(cell, nn.Module) else getattr(cell, "__name__", repr(cell))
        raise TypeError(
            f"DEQ(cell={name}): takes {signature}, expected cell(z, x, ...), the state and the layer's input; try "
            f"lambda z, x, inner: torch.tanh(inner(z) + x) with layer(x, inner), or a module with such a forward"
        ) from None
