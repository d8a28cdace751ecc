"""The transformer cell: what it sees, what it remembers, and how its equilibrium is differentiated."""

import copy
import pickle

import pytest
import torch

import torchimplicit as ti
from torchimplicit.nn import DEQ, TransformerCell, TransformerInjection, jacobian_penalty
from torchimplicit.nn.cells.attention import DistanceBias, causal, rotated

TIGHT = {"solver": ti.Anderson(rtol=1e-12, atol=1e-14, max_steps=200), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12))}
KINDS = [{"positions": "relative", "length": 12}, {"positions": "rotary"}]


def parts(width=4, heads=2, inputs=3, **options):
    """An injection and a cell; positions that matter."""
    torch.manual_seed(0)
    cell = TransformerCell(width, heads, **(options or KINDS[0])).double()
    if cell.distances is not None:
        torch.nn.init.normal_(cell.distances.bias)
    return TransformerInjection(inputs, width).double(), cell


def sequence(batch=2, length=6, inputs=3):
    torch.manual_seed(1)
    return torch.randn(batch, length, inputs, dtype=torch.float64)


def layer_of(cell, **options):
    return DEQ(cell, init=cell.start, on_failure="raise", **{**TIGHT, **options})


@pytest.mark.parametrize("options", KINDS)
def test_the_future_changes_nothing_before_it(options):
    inject, cell = parts(**options)
    layer, x = layer_of(cell), sequence()
    later = x.clone()
    later[:, 4:] += 1
    z, changed = layer(inject(x)), layer(inject(later))
    assert (z[:, :4] - changed[:, :4]).abs().max() <= 1e-10
    assert (z[:, 4:] - changed[:, 4:]).abs().amin(-1).max() > 1e-3


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_cell_on_a_segment_that_remembers_is_the_cell_on_the_whole(options, norm):
    inject, cell = parts(**options, norm=norm)
    x = inject(sequence(length=10))
    z = torch.randn(2, 10, 4, dtype=torch.float64)
    memory = cell.recall(z[:, :7], x[:, :7])
    whole, segment = cell(z, x), cell(z[:, 7:], x[:, 7:], memory)
    assert (whole[:, 7:] - segment).abs().max() <= 1e-12
    assert (cell(z[:, 7:], x[:, 7:]) - segment).abs().max() > 1e-3


@pytest.mark.parametrize("options", KINDS)
def test_so_is_the_equilibrium(options):
    inject, cell = parts(**options)
    layer, x = layer_of(cell), inject(sequence(length=10))
    whole = layer(x)
    first = layer(x[:, :5])
    second = layer(x[:, 5:], cell.recall(first, x[:, :5]))
    assert (whole - torch.cat((first, second), 1)).abs().max() <= 1e-10


@pytest.mark.parametrize("options", KINDS)
def test_what_is_seen_depends_on_the_distance_alone(options):
    """The same tokens behind others that are masked away by a memory of none: no position is absolute."""
    _, cell = parts(**options)
    z = torch.randn(1, 5, 4, dtype=torch.float64)
    memory = cell.recall(z[:, :3])
    longer = cell.recall(torch.cat((torch.randn(1, 2, 4, dtype=torch.float64), z[:, :3]), 1))[:, 2:]
    assert (memory - longer).abs().max() <= 1e-12
    assert (cell(z[:, 3:], None, memory) - cell(z, None)[:, 3:]).abs().max() <= 1e-12


def test_distances_are_laid_out_by_distance():
    bias = DistanceBias(1, 9)
    with torch.no_grad():
        bias.bias.copy_(torch.arange(9.0))
    inf = float("inf")
    assert bias(3, 3)[0].tolist() == [[0, -inf, -inf], [1, 0, -inf], [2, 1, 0]]
    assert bias(2, 4)[0].tolist() == [[2, 1, 0, -inf], [3, 2, 1, 0]]
    assert causal(2, 4, bias.bias).tolist() == [[0, 0, 0, -inf], [0, 0, 0, 0]]


def test_heads_begin_with_slopes_of_their_own():
    falls = DistanceBias(4, 6).bias.diff(dim=1)
    assert torch.allclose(falls, -torch.tensor([1, 1 / 4, 1 / 16, 1 / 64])[:, None].expand(4, 5))


def test_products_of_rotated_vectors_depend_on_the_distance():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64).expand(2, 1, 1, 8, 6)
    products = rotated(a)[0, 0] @ rotated(b)[0, 0].T
    for distance in range(-4, 5):
        line = products.diagonal(distance)
        assert (line - line[0]).abs().max() <= 1e-12
    assert (rotated(a, 3)[..., :5, :] - rotated(a)[..., 3:, :]).abs().max() <= 1e-12
    assert products.diagonal(1)[0] != products.diagonal(2)[0]


@pytest.mark.parametrize("options", KINDS)
def test_the_gradient_is_that_of_the_unrolled_solve(options):
    inject, cell = parts(**options)
    x, weight = sequence(), torch.randn(2, 3, 4, dtype=torch.float64)
    gradients = []
    for adjoint in (ti.Implicit(ti.GMRES(rtol=1e-13)), ti.Unrolled()):
        layer = layer_of(cell, adjoint=adjoint, solver=ti.Picard(rtol=1e-14, atol=1e-15, max_steps=500))
        injected = inject(x)
        first = layer(injected[:, :3])
        second = layer(injected[:, 3:], cell.recall(first, injected[:, :3]))
        wanted = [*cell.parameters(), *inject.parameters()]
        gradients.append(torch.autograd.grad((second * weight).sum(), wanted))
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).abs().max() <= 1e-9 * max(1.0, float(expected.abs().max()))


def test_the_gradient_can_be_differentiated():
    inject, cell = parts(width=2, heads=1)
    layer, x = layer_of(cell), inject(sequence(batch=1, length=3)).detach().requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x, atol=1e-4)


def test_a_penalty_has_a_gradient_by_every_weight_that_bends_the_map():
    inject, cell = parts()
    x = inject(sequence())
    jacobian_penalty(cell, torch.randn(2, 6, 4, dtype=torch.float64), x).backward()
    assert cell.project.weight.grad.abs().max() > 0
    assert cell.distances.bias.grad.abs().max() > 0


def test_samples_are_independent():
    inject, cell = parts()
    layer, x = layer_of(cell), inject(sequence(batch=3))
    together, alone = layer(x), layer(x[1:2])
    assert (together[1:2] - alone).abs().max() <= 1e-10
    other = x.clone()
    other[0] += 1
    assert torch.equal(layer(other)[1:], together[1:])


def test_it_contracts_when_training_begins():
    torch.manual_seed(0)
    inject, cell = TransformerInjection(32, 32), TransformerCell(32, 4, length=64)
    layer = DEQ(cell, ti.Anderson(rtol=1e-2), init=cell.start, on_failure="raise")
    layer(inject(torch.randn(4, 64, 32)))
    assert layer.report.steps.max() <= 6


def test_without_the_residual_injection_it_hardly_does():
    """What the docstring says of the paper's injection."""
    torch.manual_seed(0)
    inject, cell = TransformerInjection(32, 32), TransformerCell(32, 4, length=64)
    x = inject(torch.randn(4, 64, 32)).detach()
    radius = []
    for share in (1.0, 0.0):
        scaled = torch.cat((x[..., :96], share * x[..., 96:]), -1)
        z = DEQ(cell, ti.Anderson(rtol=1e-4, max_steps=200), init=cell.start, on_failure="ignore")(scaled).detach()
        v = torch.randn_like(z)
        for _ in range(15):
            _, v = torch.func.jvp(lambda z, x=scaled: cell(z, x), (z,), (v / v.norm(),))
        radius.append(float(v.detach().norm()))
    assert radius[0] < 0.8 < 0.9 < radius[1]


def test_bfloat16_by_autocast_gives_nearly_the_same():
    torch.manual_seed(0)
    inject, cell = TransformerInjection(8, 16), TransformerCell(16, 2, length=24)
    layer, x = DEQ(cell, ti.Anderson(rtol=1e-2), init=cell.start, on_failure="raise"), torch.randn(2, 12, 8)
    exact = layer(inject(x))
    with torch.autocast("cpu", torch.bfloat16):
        injected = inject(x)
        first = layer(injected)
        second = layer(injected, cell.recall(first.detach(), injected.detach()))
    assert (first.float() - exact).abs().max() <= 0.1
    (first.float().sum() + second.float().square().sum()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in cell.parameters() if weight.grad is not None)


def test_dropout_is_the_same_throughout_a_solve():
    inject, cell = parts(positions="rotary", dropout=0.4)
    layer, x = layer_of(cell), inject(sequence())
    torch.manual_seed(0)
    one, two = layer(x), layer(x)
    assert layer.report.converged
    assert not torch.allclose(one, two)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_saved_memory_is_that_of_state_and_injection():
    """A block in a row keeps its scores and its hidden units; the equilibrium keeps neither."""
    inject, cell = TransformerInjection(8, 32), TransformerCell(32, 4, length=64)
    layer = DEQ(cell, ti.Anderson(rtol=1e-2), init=cell.start, on_failure="raise")
    x = inject(torch.randn(2, 64, 8)).detach().requires_grad_()
    z = x.new_zeros(2, 64, 32)
    weights = {weight.untyped_storage().data_ptr() for weight in cell.parameters()}

    def saved(function):
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = function()
        return sum(sizes.values()), value

    implicit, _ = saved(lambda: layer(x))
    explicit, _ = saved(lambda: cell(z, x))
    assert implicit <= 8 * (z.numel() + x.numel())
    assert implicit < explicit / 3


def test_it_can_be_copied_and_compiled():
    inject, cell = parts()
    x, z = inject(sequence()).detach(), torch.randn(2, 6, 4, dtype=torch.float64)
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), torch.compile(cell, backend="aot_eager")):
        assert (twin(z, x) - cell(z, x)).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, r"heads=3.*divisor of width=4"),
        ({"heads": 0}, r"heads=0.*>= 1"),
        ({"hidden": 0}, r"hidden=0"),
        ({"heads": 4, "positions": "rotary"}, r"odd number of features, here 1"),
        ({"positions": "absolute"}, r"'relative' or 'rotary'"),
        ({"norm": "none"}, r"'post' or 'pre'"),
        ({"length": None}, r"length=None.*try positions='rotary'"),
        ({"dropout": 1.5}, r"1.5"),
    ],
)
def test_impossible_options_are_refused(options, words):
    options = {"width": 4, "heads": 2, "length": 8, **options}
    with pytest.raises(ValueError, match=words):
        TransformerCell(options.pop("width"), options.pop("heads"), **options)


def test_shapes_that_do_not_fit_are_refused():
    inject, cell = parts()
    x = inject(sequence())
    z = cell.start(x)
    with pytest.raises(ValueError, match=r"got x of shape \(2, 6, 4\).*expected \(2, 6, 16\).*TransformerInjection"):
        cell(z, z)
    with pytest.raises(ValueError, match=r"got a memory of shape \(2, 6, 4\), expected \(2, M, 8\).*recall"):
        cell(z, x, z)
    with pytest.raises(ValueError, match=r"6 positions and a memory of 7, expected no more than length=12.*length=13"):
        cell(z, x, z.new_zeros(2, 7, 8))


def test_a_sequence_without_a_batch_and_an_injection_of_nothing_are_refused():
    cell = TransformerCell(8, heads=2, length=5)
    with pytest.raises(ValueError, match=r"got a state of shape \(5, 8\), expected \(B, T, 8\); one sequence alone is"):
        cell(torch.zeros(5, 8), torch.zeros(5, 32))
    with pytest.raises(ValueError, match=r"TransformerInjection\(inputs=0\): expected an integer >= 1"):
        TransformerInjection(0, 8)
    with pytest.raises(ValueError, match=r"TransformerInjection\(width=-1\): expected an integer >= 1"):
        TransformerInjection(4, -1)


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_two_segments_are_remembered_together(positions):
    torch.manual_seed(0)
    cell = TransformerCell(8, heads=2, length=9, positions=positions).double()
    z, x = torch.randn(2, 9, 8).double(), torch.randn(2, 9, 32).double()
    memory = cell.recall(torch.cat((z[:, :3], z[:, 3:5]), 1), torch.cat((x[:, :3], x[:, 3:5]), 1))
    assert torch.allclose(cell(z[:, 5:], x[:, 5:], memory), cell(z, x)[:, 5:], atol=1e-12)
