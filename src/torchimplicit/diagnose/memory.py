"""What a forward pass keeps for its backward pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from torchimplicit import picture
from torchimplicit.adjoint import Adjoint, Implicit, Unrolled
from torchimplicit.core.options import is_count
from torchimplicit.core.problem import Residual
from torchimplicit.diagnose.probe import modules_of, require_layer, requiring_grad, untouched
from torchimplicit.equations import fixed_point
from torchimplicit.nn import DEQ
from torchimplicit.picture import in_bytes
from torchimplicit.solve import Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Memory:
    """Bytes that a forward pass keeps for its backward pass, by the number of solver steps.

    Attributes:
        steps: numbers of solver steps, increasing.
        implicit: bytes with the layer's adjoint (with `Implicit()` when the layer's is `Unrolled`).
        unrolled: bytes when every step is recorded.
        adjoints: the two adjoints.
        solver: the layer's solver.
    """

    steps: tuple[int, ...]
    implicit: tuple[int, ...]
    unrolled: tuple[int, ...]
    adjoints: tuple[Adjoint, Adjoint]
    solver: Solver

    @property
    def ratio(self) -> float:
        """How many times as much unrolling keeps, at the largest number of steps."""
        return self.unrolled[-1] / self.implicit[-1] if self.implicit[-1] else torch.inf

    @property
    def names(self) -> tuple[str, str]:
        """The adjoints' names."""
        implicit, unrolled = self.adjoints
        return type(implicit).__name__, type(unrolled).__name__

    def __str__(self) -> str:
        """One line with the ratio."""
        implicit, unrolled = self.names
        return (
            f"{unrolled} keeps {self.ratio:.3g} times the memory of {implicit} for the backward pass at "
            f"{self.steps[-1]} {type(self.solver).__name__} steps: "
            f"{in_bytes(self.unrolled[-1])} against {in_bytes(self.implicit[-1])}"
        )

    def table(self) -> str:
        """Bytes and their ratio by number of steps, as plain text."""
        implicit, unrolled = self.names
        lines = [f"{'steps':>8}{implicit:>14}{unrolled:>14}{'ratio':>10}"]
        for steps, ours, theirs in zip(self.steps, self.implicit, self.unrolled, strict=True):
            ratio = f"{theirs / ours:.3g}" if ours else "-"
            lines.append(f"{steps:>8}{in_bytes(ours):>14}{in_bytes(theirs):>14}{ratio:>10}")
        return "\n".join(lines)

    def plot(self, target: Any = None) -> Figure:
        """Bytes against solver steps for both, the ratio at the right end; logarithmic where the range asks for it.

        Args:
            target: path or binary file to save to; None only returns the figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = picture.new_figure(6.4, 4.2)
        axes = figure.subplots()
        last, implicit, unrolled = self.steps[-1], self.implicit, self.unrolled
        axes.plot(self.steps, unrolled, "o-", color=picture.ORANGE, lw=2, label=f"{self.names[1]}: every step is kept")
        ours = "Implicit: the solution is kept" if isinstance(self.adjoints[0], Implicit) else self.names[0]
        axes.plot(self.steps, implicit, "o-", color=picture.BLUE, lw=2, label=ours)
        wide = min(implicit) > 0 and max(unrolled) > 10 * min(implicit)
        if wide and self.steps[0] > 0:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_ylim(min(implicit) / 2, max(unrolled) * 2.5)
            axes.set_xticks(self.steps, [str(step) for step in self.steps])
            axes.minorticks_off()
        else:
            axes.set_ylim(0, max(*unrolled, 1) * 1.3)
            axes.locator_params(axis="x", integer=True)
        if implicit[-1]:
            middle = (implicit[-1] * unrolled[-1]) ** 0.5 if wide else (implicit[-1] + unrolled[-1]) / 2
            arrow = {"arrowstyle": "<->", "color": "black", "lw": 1.1, "shrinkA": 5, "shrinkB": 5}
            axes.annotate("", (last, unrolled[-1]), (last, implicit[-1]), arrowprops=arrow)
            axes.annotate(
                f"{self.ratio:.3g} times",
                (last, middle),
                (-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontweight="bold",
            )
        axes.yaxis.set_major_formatter(lambda value, _: in_bytes(value))
        picture.tidy(axes, "Memory kept for the backward pass", f"{type(self.solver).__name__} steps", "bytes kept")
        axes.legend(frameon=False, loc="upper left")
        return picture.save(figure, target)


def memory(layer: DEQ, x: Any, *args: Any, steps: Sequence[int] = (1, 2, 5, 10, 20, 50)) -> Memory:
    """Counts the bytes that forward passes keep for their backward pass, implicit against unrolled.

    Runs the layer's solver for exactly the given numbers of steps, converged or not, and adds up the distinct storages
    that autograd holds afterwards (`torch.autograd.graph.saved_tensors_hooks`), parameters and buffers excluded.
    Floating inputs count as requiring grad, as they do inside a network. This is what the graph holds: the peak of a
    forward pass also has the solver's own history (`2 * window` states for `Anderson`), that of a backward pass one
    evaluation's activations and the linear solver's basis, both whatever the number of steps.

    Args:
        layer: the layer; stays as it is.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.
        steps: numbers of solver steps to compare, >= 1.

    Returns:
        A `Memory`: print it, its `table()`, or draw its `plot()`.

    Raises:
        TypeError: `layer` is no `DEQ`.
        ValueError: no or impossible numbers of steps, an empty batch, or a cell that returns another shape than the
            state's.
        NotImplementedError: the layer's solver cannot be unrolled (`Newton` with a Krylov method).

    Examples:
        >>> import torch
        >>> from torchimplicit import Picard, diagnose, nn
        >>> layer = nn.DEQ(lambda z, x: torch.tanh(0.5 * z + x), solver=Picard())
        >>> result = diagnose.memory(layer, torch.randn(64, 32), steps=(10, 100))
        >>> result.implicit[0] == result.implicit[1], result.ratio > 40
        (True, True)
    """
    layer = require_layer(layer, "memory")
    counts = sorted(set(steps)) if isinstance(steps, Sequence) else []
    if not counts or not all(map(is_count, counts)):
        raise ValueError(f"memory(steps={steps!r}): expected a sequence of integers >= 1, such as (1, 10, 100)")
    unrolls = isinstance(layer.adjoint, Unrolled)
    adjoints = (Implicit(), layer.adjoint) if unrolls else (layer.adjoint, Unrolled())
    modules = modules_of(layer, (x, *args)).values()
    shared = {_storage(t)[0] for module in modules for t in (*module.parameters(), *module.buffers())}

    def measure(adjoint: Adjoint, count: int) -> int:
        solver = _Exactly(solver=replace(layer.solver, max_steps=count), rtol=0, atol=0, max_steps=count)

        def forward() -> Any:
            inputs = pytree.tree_map(requiring_grad, (x, args))
            z0 = pytree.tree_map(_detached, layer.initial_state(inputs[0], *inputs[1]))
            return fixed_point(
                layer.cell, z0, inputs[0], *inputs[1], solver=solver, adjoint=adjoint, on_failure="ignore"
            ).value

        with untouched(layer, (x, *args)), torch.enable_grad():
            return _kept(forward, shared)

    sizes = [tuple(measure(adjoint, count) for count in counts) for adjoint in adjoints]
    return Memory(tuple(counts), sizes[0], sizes[1], adjoints, layer.solver)


class _Held(NamedTuple):
    """Another solver's state, with a residual for the loop that always falls and never vanishes."""

    z: Tensor
    residual: Tensor
    state: Any
    count: int


@dataclass(frozen=True, kw_only=True)
class _Exactly(Solver):
    """A solver that the loop does not stop before `max_steps`, neither at convergence nor at stagnation."""

    solver: Solver

    def init(self, problem: Residual, z: Tensor) -> _Held:
        """The other solver's start."""
        return self._held(self.solver.init(problem, z), 0)

    def step(self, problem: Residual, state: _Held) -> _Held:
        """The other solver's step."""
        return self._held(self.solver.step(problem, state.state), state.count + 1)

    def _held(self, state: Any, count: int) -> _Held:
        z = state.z
        if not bool(z.isfinite().all()):  # far beyond convergence, on residuals of zero; nothing but the sizes counts
            z = z.nan_to_num(0, 0, 0)
        return _Held(z, z.new_tensor(1 / (1 + count)).expand_as(z), state, count)


class _Saved:
    """What autograd holds in place of a tensor; gone when its graph is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _kept(forward: Callable[[], Any], excluded: set[int]) -> int:
    """Bytes in distinct storages that are still saved for backward once `forward` has returned its output."""
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach())  # an output that held its own graph would keep it alive for ever
        alive.add(saved)
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved.tensor):
        output = forward()
    gc.collect()  # graphs of solves inside the forward pass
    storages = dict(_storage(saved.tensor) for saved in alive)
    del output
    return sum(size for place, size in storages.items() if place not in excluded)


def _storage(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of a tensor's storage, also inside a `torch.func` transform."""
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
