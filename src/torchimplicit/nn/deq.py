"""The deep equilibrium layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Implicit, Unrolled
from torchimplicit.core.status import OnFailure, Report, Solution
from torchimplicit.equations import check_options, fixed_point
from torchimplicit.nn.batch_norm import warn_of_batch_norm
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.solve import Anderson, Solver


class DEQ(ImplicitLayer):
    r"""A deep equilibrium layer: the fixed point $z^* = \mathrm{cell}(z^*, x)$, differentiated through it.

    An infinitely deep weight-tied network whose training memory is that of one layer. The cell must treat samples
    independently (GroupNorm or LayerNorm, not BatchNorm) and be deterministic within a solve (no plain dropout).
    The layer behaves the same in `train()` and `eval()` mode; only the cell may differ.

    Source: S. Bai, J. Z. Kolter, V. Koltun, NeurIPS 2019, arXiv 1909.01377.

    Args:
        cell: `cell(z, x, ...) -> z`, a module, or a plain function of its arguments alone.
        solver: how to find the fixed point.
        adjoint: how to differentiate it.
        init: `init(x, ...) -> z0`, a function or module, where the state is not like `x`; None starts at zeros.
        warm_start: start from the last solution when its shapes fit, and with what `Broyden` learnt on the way there:
            for inputs that change little between calls.
        batched_args: positions of those inputs of the layer that carry the batch in dimension 0, `x` being 0. None
            takes `(0,)` where `x` is the only input and all of it does, so that a large batch goes on without the
            samples that have arrived; with more inputs, name them to have that. See `fixed_point`.
        on_failure: "warn" (default), "raise" or "ignore" samples that do not converge, forward and backward.

    Attributes:
        report: how the last forward solve went, and in `report.backward` the last backward solve; None before the
            first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(16, 16)
        ...     def forward(self, z, x):
        ...         return torch.tanh(self.linear(z) + x)
        >>> layer = ti.nn.DEQ(Cell())
        >>> layer(torch.randn(4, 16)).shape, layer.report.converged
        (torch.Size([4, 16]), True)
    """

    report: Report | None
    advice = (
        "A cell stops contracting while it trains unless something keeps it: try nn.jacobian_penalty in the loss, or "
        "nn.ContractiveLinear and ContractiveConv2d in the cell (the guide's page, docs/guide.md, under Stability)."
    )

    def __init__(
        self,
        cell: Callable,
        solver: Solver = Anderson(),
        adjoint: Adjoint = Implicit(),
        init: Callable | None = None,
        warm_start: bool = False,
        batched_args: Sequence[int] | None = None,
        on_failure: OnFailure = "warn",
    ):
        """Keeps the cell and the options; solves nothing."""
        super().__init__()
        if not callable(cell):
            raise TypeError(f"DEQ(cell=...): got a {type(cell).__name__}, expected a module or function cell(z, x)")
        check_options(solver, adjoint, on_failure)
        if not (init is None or callable(init)):
            raise TypeError(f"DEQ(init=...): got a {type(init).__name__}, expected a module or function init(x, ...)")
        if warm_start and isinstance(adjoint, Unrolled):
            raise ValueError(
                "DEQ(warm_start=True, adjoint=Unrolled()): a start at the solution takes no steps, and so has no "
                "gradient; try Implicit() or Phantom()"
            )
        self.cell, self.init = cell, init
        self.solver, self.adjoint = solver, adjoint
        self.warm_start = warm_start
        self.batched_args = batched_args
        self.on_failure: OnFailure = on_failure
        self._last: Solution | None = None
        warn_of_batch_norm("DEQ", "cell", cell, "fixed points")

    def forward(self, x: Any, *args: Any, z0: Any = None, save_steps: Sequence[int] = ()) -> Any:
        """The fixed point for input `x`, like `z0`.

        Args:
            x: input, `(B, ...)`, or a nest of such; the initial state is like it unless `init` or `z0` is given.
            *args: further arguments of the cell.
            z0: where to start, in place of `init` and of a warm start.
            save_steps: steps whose iterates to return, too; see `fixed_point`.

        Returns:
            The fixed point; with `save_steps`, the fixed point and the tuple of iterates.
        """
        if z0 is None:
            z0 = self._start(x, args)
        solution = self.solve(
            fixed_point,
            self.cell,
            z0,
            x,
            *args,
            solver=self.solver,
            adjoint=self.adjoint,
            warm_start=self._last if self._last is not None and z0 is self._last.value else None,
            batched_args=self._batched(z0, x, args),
            save_steps=save_steps,
        )
        if self.warm_start and not torch.is_inference_mode_enabled():  # whose tensors training could not use
            self._last = replace(solution, value=pytree.tree_map(torch.detach, solution.value), trajectory=())
        return (solution.value, solution.trajectory) if save_steps else solution.value

    def _start(self, x: Any, args: tuple) -> Any:
        z0 = pytree.tree_map(torch.zeros_like, x) if self.init is None else self.init(x, *args)
        if self._last is not None:
            leaves, last = pytree.tree_leaves(z0), pytree.tree_leaves(self._last.value)
            if [(t.shape, t.dtype, t.device) for t in leaves] == [(t.shape, t.dtype, t.device) for t in last]:
                return self._last.value
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
