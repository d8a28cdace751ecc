"""The graph that autograd keeps behind an output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from torchimplicit.diagnose.graph_picture import draw
from torchimplicit.picture import in_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Node:
    """A node of a gradient graph.

    Attributes:
        kind: "operation"; "saved", memory kept for the backward pass; or "leaf", a tensor whose gradient accumulates.
        label: the operation's name, or the tensor's shape.
        bytes: size of the saved memory; 0 for the other kinds.
        depth: longest way from the output, in operations; for saved memory that of the deepest one that uses it.
    """

    kind: Literal["operation", "saved", "leaf"]
    label: str
    bytes: int
    depth: int


@dataclass(frozen=True)
class GradientGraph:
    """What autograd keeps behind an output: operations, the memory saved for them, and the leaves they lead to.

    Attributes:
        nodes: the nodes.
        edges: pairs of indices into `nodes`, in the forward direction (inputs and saved memory to what uses them).
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]

    @property
    def operations(self) -> int:
        """Number of operations."""
        return sum(node.kind == "operation" for node in self.nodes)

    @property
    def saved(self) -> int:
        """Number of distinct pieces of memory saved for the backward pass, parameters not counted."""
        return sum(node.kind == "saved" for node in self.nodes)

    @property
    def leaves(self) -> int:
        """Number of leaf tensors whose gradient accumulates."""
        return sum(node.kind == "leaf" for node in self.nodes)

    @property
    def bytes(self) -> int:
        """Bytes saved for the backward pass, parameters not counted."""
        return sum(node.bytes for node in self.nodes)

    @property
    def depth(self) -> int:
        """Operations on the longest way through the graph."""
        return 1 + max(node.depth for node in self.nodes if node.kind == "operation")

    def __str__(self) -> str:
        """One line of counts."""
        counts = ((self.operations, "operation"), (self.saved, "saved tensor"), (self.leaves, "leaf tensor"))
        operations, saved, leaves = (f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
        return f"gradient graph: {operations}, {self.depth} deep; {saved}, {in_bytes(self.bytes)}; {leaves}"

    def plot(self, target: Any = None) -> Figure:
        """The graph from inputs (left) to output (right): blue operations, yellow saved memory, grey leaves.

        Readable to some hundreds of nodes; names and shapes are written while there are few.

        Args:
            target: path or binary file to save to; None only returns the figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return draw(self, target)


def gradient_graph(output: Any) -> GradientGraph:
    """Walks the graph that a backward pass from `output` would walk.

    Shows where memory goes: an implicit layer is one operation with its solution and inputs saved, an unrolled solve is
    a chain as long as its steps. Call it before `backward()`, which frees the saved memory. Not for
    `Unrolled(checkpoint=True)`: looking at a checkpoint's memory recomputes it; use `memory`.

    Args:
        output: a tensor with a graph, or a nest of such.

    Returns:
        A `GradientGraph`: print it or draw its `plot()`.

    Raises:
        TypeError: no tensor in `output`.
        ValueError: no tensor in `output` has a graph, or its saved memory was freed by a backward pass.

    Examples:
        >>> import torch
        >>> from torchimplicit import Unrolled, diagnose, nn
        >>> x = torch.randn(8, 4, requires_grad=True)
        >>> layer = nn.DEQ(lambda z, x: torch.tanh(0.5 * z + x))
        >>> implicit = diagnose.gradient_graph(layer(x))
        >>> layer.adjoint = Unrolled()
        >>> diagnose.gradient_graph(layer(x)).operations > 10 * implicit.operations
        True
    """
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(f"gradient_graph: got a {type(output).__name__}, expected a tensor, such as layer(x)")
    roots = list(dict.fromkeys(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None))
    if not roots:
        raise ValueError(
            "gradient_graph: got a tensor without a graph, expected one that was computed with grad enabled from a "
            "tensor that requires grad; try x.requires_grad_(), and leave torch.no_grad()"
        )
    order = _from_outputs(roots)
    depth = dict.fromkeys(order, 0)
    for node in order:
        for after in _next(node):
            depth[after] = max(depth[after], depth[node] + 1)
    return _assembled(order, depth)


def _next(node: Any) -> list[Any]:
    """The nodes that a backward pass goes to from here, each once."""
    return list(dict.fromkeys(after for after, _ in node.next_functions if after is not None))


def _from_outputs(roots: list[Any]) -> list[Any]:
    """All nodes, every one before those that its backward pass leads to."""
    finished: dict[Any, None] = {}
    todo = [(root, False) for root in roots]
    entered = set()
    while todo:
        node, left = todo.pop()
        if left:
            finished[node] = None
        elif node not in entered:
            entered.add(node)
            todo.append((node, True))
            todo.extend((after, False) for after in _next(node) if after not in entered)
    return list(reversed(finished))


def _assembled(order: list[Any], depth: dict[Any, int]) -> GradientGraph:
    """Nodes and edges; one node for each distinct storage, however many operations saved a view of it."""
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    place = {node: i for i, node in enumerate(order)}
    variables = [node.variable for node in order if hasattr(node, "variable")]
    parameters = {_address(variable) for variable in variables if isinstance(variable, nn.Parameter)}
    for node in order:
        if hasattr(node, "variable"):
            word = "parameter" if isinstance(node.variable, nn.Parameter) else "input"
            nodes.append(Node("leaf", f"{word} {_shape(node.variable)}", 0, depth[node]))
        else:
            name = node.name().rsplit("::", 1)[-1]
            nodes.append(Node("operation", name.split("Backward")[0] or name, 0, depth[node]))
        edges += [(place[after], place[node]) for after in _next(node)]
    kept: dict[int, int] = {}
    for node in order:
        for tensor in _saved_tensors(node):
            address = _address(tensor)
            size = tensor.untyped_storage().nbytes()
            if size == 0 or address in parameters or isinstance(tensor._base, nn.Parameter):
                continue
            if address not in kept:
                kept[address] = len(nodes)
                nodes.append(Node("saved", f"{_shape(tensor)} {in_bytes(size)}", size, depth[node]))
            elif depth[node] > nodes[kept[address]].depth:  # memory stands before all that use it
                nodes[kept[address]] = replace(nodes[kept[address]], depth=depth[node])
            edges.append((kept[address], place[node]))
    return GradientGraph(tuple(nodes), tuple(dict.fromkeys(edges)))


def _saved_tensors(node: Any) -> list[Tensor]:
    """What one operation saved."""
    name = node.name()
    try:
        if isinstance(node, FunctionCtx):
            values = list(node.saved_tensors)  # type: ignore[attr-defined]
        else:
            values = [getattr(node, field) for field in dir(node) if field.startswith("_saved_")]
    except RuntimeError as error:
        raise ValueError(
            f"gradient_graph: the memory saved by {name} was freed by a backward pass; try it before backward(), or "
            "backward(retain_graph=True)"
        ) from error
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
