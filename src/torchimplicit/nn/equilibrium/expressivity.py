r"""One equilibrium layer is all there is: it expresses every feed-forward network, and every stack of equilibria.

Both statements have one construction. Of layers $z_i = f_i(z_i, z_{i-1})$, $z_0 = x$, the state is all of
$z_1 \dots z_L$ at once, and the cell applies every $f_i$ to what its predecessor had before. The Jacobian is block
lower triangular, with the layers' own Jacobians on the diagonal and so with their eigenvalues. Where the layers are no
equilibria, $z_i = f_i(z_{i-1})$, the diagonal is zero and the Jacobian nilpotent: $L$ steps reach the fixed point from
anywhere, $L$ terms are the whole Neumann series, and nothing is approximated.

Source: S. Bai, J. Z. Kolter, V. Koltun, NeurIPS 2019, arXiv 1909.01377, theorems 1 and 2.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.status import OnFailure, Report
from torchimplicit.linear import Neumann
from torchimplicit.nn.equilibrium.deq import DEQ
from torchimplicit.nn.parts.coupling import couples
from torchimplicit.solve import PeacemanRachford, Picard, Solver


@dataclass(frozen=True, kw_only=True)
class _Shift(Picard):
    """Picard's iteration that never gives up: a signal that passes through layers need not get smaller on its way."""

    patience: ClassVar[int] = 1_000_000


class Chain(nn.Module):
    """Layers, each fed by the one before, as one equilibrium of all their states; see `as_equilibrium` and `stack`.

    Attributes:
        equilibrium: the `DEQ`, whose state is the tuple of all layers' states.
    """

    def __init__(self, cell: nn.Module, init: Callable, **options: Any):
        """Wraps the cell."""
        super().__init__()
        self.equilibrium = DEQ(cell, init=init, **options)

    @property
    def report(self) -> Report | None:
        """How the last solves went; see `DEQ`."""
        return self.equilibrium.report

    def forward(self, x: Any) -> Any:
        """The last layer's state.

        Raises:
            ValueError: a layer couples samples or is random, as batch norm and dropout are in training; or its output
                is no state.
        """
        _refuse_random(self)
        cell: Any = self.equilibrium.cell
        return cell.output(self.equilibrium(x))


def as_equilibrium(
    network: nn.Sequential,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "warn",
) -> Chain:
    r"""A feed-forward network of $L$ layers as one equilibrium layer, with the same parameters and the same output.

    The state holds what every layer puts out, of whatever shapes; one application of the cell moves everything on by
    one layer. A proof in code, not a way to compute: every step evaluates all layers, so the work is $L$ times that of
    the network, and the memory the same. Values and gradients are the network's but for rounding.

    Args:
        network: its children are the layers: each takes and gives one tensor with the batch in dimension 0. Its
            modules are used, not copied.
        solver: None takes `L` steps of Picard's iteration. Others arrive too, but may call a network of many layers
            stagnated, or stop early where one layer's output is small beside another's: they judge all together.
        adjoint: None takes `Implicit(Neumann(terms=L))`, which is backpropagation, exactly.
        on_failure: see `DEQ`.

    Returns:
        A module `x -> network(x)` with attributes `equilibrium` (the `DEQ`) and `report`.

    Raises:
        TypeError: not an `nn.Sequential`, or a layer that needs more than one input.
        ValueError: no layers, or layers that couple samples or are random: batch norm and dropout in training. The
            same when the result is called after `train()`.

    Source: arXiv 1909.01377, theorem 1.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        ... )
        >>> layer, x = ti.nn.as_equilibrium(network), torch.randn(5, 3)
        >>> torch.allclose(layer(x), network(x), atol=1e-6), layer.report.steps.tolist()
        (True, [3, 3, 3, 3, 3])
    """
    if not isinstance(network, nn.Sequential):
        raise TypeError(
            f"as_equilibrium: got a {type(network).__name__}, expected an nn.Sequential, whose children are the layers"
        )
    if not len(network):
        raise ValueError("as_equilibrium: got an empty nn.Sequential, expected at least one layer")
    for number, layer in enumerate(network):  # `named_children` leaves a layer's second place out
        _refuse_more_inputs(number, layer)
    _refuse_random(network)
    depth = len(network)
    # Looked at after L steps only: before, what is small beside the largest layer's output may be another layer's all.
    solver = solver or _Shift(rtol=1e-6, atol=0, max_steps=depth + 1, check_every=depth)
    adjoint = adjoint or Implicit(Neumann(terms=depth))
    return Chain(_Shifted(network), _Zeros(network), solver=solver, adjoint=adjoint, on_failure=on_failure)


def stack(
    *layers: DEQ,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure | None = None,
) -> Chain:
    """Equilibrium layers, each fed by the one before, as one equilibrium with the same output.

    All are solved at once, where the stack solves them one after the other. The spectral radius is the largest of the
    layers', but each has to wait for what feeds it: expect more steps than the slowest layer takes alone, every one of
    them with all cells. The tolerance is on the joint state, and that of forward-backward splittings on their own short
    residual. The layers' cells are used, not copied.

    Args:
        *layers: `DEQ` layers of one input.
        solver: None takes the layers' own, when they all have the same.
        adjoint: likewise.
        on_failure: likewise.

    Returns:
        A module `x -> layers[-1](... layers[0](x))` with attributes `equilibrium` (the `DEQ`) and `report`.

    Raises:
        TypeError: something else than a `DEQ`.
        ValueError: no layer, or options that are not given and differ.

    Source: arXiv 1909.01377, theorem 2.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> first, second = (ti.nn.DEQ(ti.nn.ResidualCell(8, 8, groups=2)) for _ in range(2))
        >>> both, x = ti.nn.stack(first, second), torch.randn(2, 8, 5, 5)
        >>> torch.allclose(both(x), second(first(x)), atol=1e-2)
        True
    """
    if not layers:
        raise ValueError("stack: got no layers, expected at least one DEQ")
    for layer in layers:
        if not isinstance(layer, DEQ):
            raise TypeError(f"stack: got a {type(layer).__name__}, expected DEQ layers; wrap a cell: DEQ(cell)")
    given = {"solver": solver, "adjoint": adjoint, "on_failure": on_failure}
    options = {name: _common(layers, name) if option is None else option for name, option in given.items()}
    return Chain(_Stacked(layers), _Starts(layers), **options)


class _Shifted(nn.Module):
    """Every layer of a network, applied to what the one before had."""

    def __init__(self, network: nn.Sequential):
        super().__init__()
        self.network = network

    def forward(self, z: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        return tuple(_apply(layer, y) for layer, y in zip(self.network, (x, *z), strict=False))

    def output(self, z: tuple[Tensor, ...]) -> Tensor:
        return z[-1]


class _Zeros:
    """Zeros of the shapes that the layers put out, learnt from a pass without numbers, on the meta device."""

    def __init__(self, network: nn.Sequential):
        self.network = network

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = torch.empty_like(x, device="meta"), []
        for number, layer in enumerate(self.network):
            tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            with torch.no_grad():
                y = functional_call(
                    layer, {key: torch.empty_like(t, device="meta") for key, t in tensors.items()}, (y,)
                )
            _refuse_output(number, layer, y, len(x))
            state.append(torch.zeros(y.shape, dtype=y.dtype, device=x.device))
        return tuple(state)


class _Stacked(nn.Module):
    """Every cell, fed by what the one before had."""

    def __init__(self, layers: Sequence[DEQ]):
        super().__init__()
        self.cells = nn.ModuleList(_as_module(layer.cell) for layer in layers)

    def forward(self, z: tuple, x: Any) -> tuple:
        fed = (x, *map(_read, self.cells, z[:-1]))
        return tuple(cell(own, given) for cell, own, given in zip(self.cells, z, fed, strict=True))

    def output(self, z: tuple) -> Any:
        return _read(self.cells[-1], z[-1])


class _Starts(nn.Module):
    """Every layer's start, made from the start of the one before."""

    def __init__(self, layers: Sequence[DEQ]):
        super().__init__()
        self.starts = nn.ModuleList(_as_module(layer.init or _zeros_like) for layer in layers)

    def forward(self, x: Any) -> tuple:
        state: list[Any] = []
        for start in self.starts:
            state.append(start(state[-1] if state else x))
        return tuple(state)


class _Function(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def _as_module(function: Callable) -> nn.Module:
    return function if isinstance(function, nn.Module) else _Function(function)


def _read(cell: nn.Module, z: Any) -> Any:
    """What a layer with this cell puts out: its state, but where a splitting works on another one."""
    return cell.output(z) if isinstance(cell, PeacemanRachford) else z


def _zeros_like(x: Any) -> Any:
    return pytree.tree_map(torch.zeros_like, x)


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output; one that may write into its input gets a copy, for that is part of the solver's iterate."""
    writes = any(getattr(module, "inplace", False) for module in layer.modules())
    return layer(x.clone() if writes else x)


def _common(layers: Sequence[DEQ], name: str) -> Any:
    options = [getattr(layer, name) for layer in layers]
    if any(option != options[0] for option in options):
        raise ValueError(f"stack: the layers have different options {name}: {options}; try stack(..., {name}=...)")
    return options[0]


def _refuse_more_inputs(number: int, layer: nn.Module) -> None:
    parameters = inspect.signature(layer.forward).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise TypeError(
            f"as_equilibrium: layer {number} ({type(layer).__name__}) needs the inputs {', '.join(needed)}; expected "
            "one tensor. Try a module that gets the others from elsewhere"
        )


def _refuse_random(network: nn.Module) -> None:
    for name, module in network.named_modules():
        coupling = couples(module)
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
        if coupling or random:
            what = "couples the samples of a batch" if coupling else "is another function at every evaluation"
            raise ValueError(
                f"'{name}' is a {type(module).__name__} in training, which {what}: there is no equilibrium to find. "
                f"Try eval(), or {'GroupNorm' if coupling else 'ti.nn.VariationalDropout'}"
            )


def _refuse_output(number: int, layer: nn.Module, y: Any, batch: int) -> None:
    if not isinstance(y, Tensor):
        what = f"returns a {type(y).__name__}, expected one tensor"
    elif y.dim() == 0 or len(y) != batch:
        what = f"returns the shape {tuple(y.shape)} for a batch of {batch}, expected the batch in dimension 0"
    else:
        return
    raise ValueError(f"as_equilibrium: layer {number} ({type(layer).__name__}) {what}")
