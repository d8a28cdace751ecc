import io
from itertools import pairwise

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose
from torchimplicit.diagnose.graph_layout import place


def graphs(make_layer, x, adjoint):
    x = x.clone().requires_grad_()
    solvers = [ti.Picard(max_steps=steps, rtol=0, atol=0) for steps in (2, 4, 8)]
    return [
        diagnose.gradient_graph(make_layer(solver=solver, adjoint=adjoint, on_failure="ignore")(x))
        for solver in solvers
    ]


def test_the_implicit_graph_does_not_grow_with_the_steps(make_layer, x):
    few, more, most = graphs(make_layer, x, ti.Implicit())
    assert few == more == most
    assert few.operations == 2  # the solve, and the copy that is the caller's
    assert few.saved == 2  # the solution and the input
    assert few.bytes == 2 * x.numel() * 4
    assert few.leaves == 3
    assert str(few) == "gradient graph: 2 operations, 2 deep; 2 saved tensors, 240 B; 3 leaf tensors"


def test_the_unrolled_graph_grows_by_the_same_with_every_step(make_layer, x):
    few, more, most = graphs(make_layer, x, ti.Unrolled())
    assert most.operations - more.operations == 2 * (more.operations - few.operations) > 0
    assert most.saved - more.saved == 2 * (more.saved - few.saved) == 8  # two a step
    assert most.bytes - more.bytes == 2 * (more.bytes - few.bytes)
    assert most.depth > more.depth > few.depth
    assert few.leaves == most.leaves == 3


def test_nodes_of_a_small_known_graph():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    x = torch.ones(2, 3, requires_grad=True)
    h = torch.tanh(x @ weight)
    graph = diagnose.gradient_graph((h * h).sum())
    assert [node.label for node in graph.nodes if node.kind == "operation"] == ["Sum", "Mul", "Tanh", "Mm"]
    assert sorted(node.label for node in graph.nodes if node.kind == "leaf") == ["input 2x3", "parameter 3x3"]
    # h is saved twice, by tanh and by the product, and counts once; the weight is saved, too, and does not count.
    assert sorted(node.label for node in graph.nodes if node.kind == "saved") == ["2x3 24 B", "2x3 24 B"]
    assert graph.bytes == 48
    labels = [(graph.nodes[start].label, graph.nodes[end].label) for start, end in graph.edges]
    assert ("Tanh", "Mul") in labels
    assert ("parameter 3x3", "Mm") in labels
    assert sum(start == "2x3 24 B" for start, _ in labels) == 3
    assert graph.depth == 4


def test_memory_and_graph_count_the_same_bytes(make_layer, x):
    layer = make_layer(solver=ti.Picard(max_steps=6, rtol=0, atol=0), adjoint=ti.Unrolled(), on_failure="ignore")
    graph = diagnose.gradient_graph(layer(x.clone().requires_grad_()))
    assert graph.bytes == diagnose.memory(layer, x, steps=(6,)).unrolled[0]


def test_layout_keeps_nodes_apart_and_edges_pointing_right(make_layer, x):
    for graph in graphs(make_layer, x, ti.Unrolled()):
        placed = place(graph)
        for path in placed.paths:
            assert all(before[0] < after[0] for before, after in pairwise(path))
        columns = {}
        for left, height in placed.nodes:
            columns.setdefault(round(left, 3), []).append(height)
        for heights in columns.values():
            assert all(after - before > 0.99 for before, after in pairwise(sorted(heights)))


def test_a_long_graph_goes_on_in_further_rows(make_layer, x):
    value = x.clone().requires_grad_()
    for _ in range(200):
        value = value.sin()
    graph = diagnose.gradient_graph(value)
    placed = place(graph)
    assert placed.width < 70
    assert len({round(height) for _, height in placed.nodes}) >= 4
    assert len(placed.paths) > len(graph.edges)  # edges that leave a row are drawn as two ends


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled()])
def test_plot_draws_each_kind_and_says_how_many(make_layer, x, adjoint):
    graph = graphs(make_layer, x, adjoint)[0]
    target = io.BytesIO()
    figure = graph.plot(target)
    assert target.getvalue().startswith(b"\x89PNG")
    (axes,) = figure.axes
    drawn = [len(points.get_offsets()) for points in axes.collections[1:]]
    assert drawn == [graph.operations, graph.saved, graph.leaves]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0].startswith(f"{graph.operations} operation")


def test_bad_outputs():
    with pytest.raises(TypeError, match="expected a tensor"):
        diagnose.gradient_graph("layer")
    with pytest.raises(ValueError, match="without a graph"):
        diagnose.gradient_graph(torch.ones(2))
    x = torch.ones(2, requires_grad=True)
    output = x.exp().sum()
    output.backward()
    with pytest.raises(ValueError, match="freed by a backward pass"):
        diagnose.gradient_graph(output)
