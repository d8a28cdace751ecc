"""The multiscale equilibrium: its cell, the backbone around it, and the heads that read it."""

import copy

import pytest
import torch

import torchimplicit as ti
from torchimplicit.diagnose import spectral_radius

SOLVER, ADJOINT = ti.Anderson(rtol=1e-11, atol=0, max_steps=300), ti.Implicit(ti.GMRES(rtol=1e-12))
CHANNELS = (4, 6, 8)


def cell(**options):
    torch.manual_seed(0)
    return ti.nn.MultiscaleCell(**{"channels": CHANNELS, "groups": 2, **options}).double()


def layer_of(f, solver=SOLVER, adjoint=ADJOINT):
    return ti.nn.DEQ(f, solver, adjoint, init=f.start, on_failure="raise")


def image(batch=3, channels=4, height=9, width=12):
    torch.manual_seed(1)
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def states(f, x):
    return tuple(torch.randn_like(part) for part in f.start(x))


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [(8, 12, [(8, 12), (4, 6), (2, 3)]), (9, 13, [(9, 13), (5, 7), (3, 4)]), (4, 5, [(4, 5), (2, 3), (1, 2)])],
)
def test_every_resolution_is_half_of_the_one_before(height, width, sizes):
    x, f = image(height=height, width=width), cell()
    start = f.start(x)
    assert [tuple(part.shape) for part in start] == [(3, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    assert all(not part.any() for part in start)
    assert [part.shape for part in f(start, x)] == [part.shape for part in start]


def test_the_cell_is_its_formula():
    f, x = cell(), image()
    z = states(f, x)
    y = [f.blocks[0](z[0], x), *(f.blocks[i](z[i], torch.zeros_like(z[i])) for i in (1, 2))]
    down, up = f.fusion.paths[2][0], f.fusion.paths[0][2]
    strided, pixel = [m for m in down if isinstance(m, torch.nn.Conv2d)], up.weight
    assert [m.stride for m in strided] == [(2, 2), (2, 2)]
    lowest = y[2] + strided[1](torch.relu(strided[0](y[0]))) + f.fusion.paths[2][1](y[1])
    nearest = torch.einsum("oi,bihw->bohw", pixel[:, :, 0, 0], y[2])
    rows, columns = torch.arange(9) * 3 // 9, torch.arange(12) * 3 // 12
    middle = f.fusion.paths[0][1](y[1])[:, :, torch.arange(9) * 5 // 9][..., torch.arange(12) * 6 // 12]
    top = y[0] + middle + nearest[:, :, rows][..., columns]
    value = f(z, x)
    assert torch.allclose(value[2], f.norms[2](lowest), atol=1e-12)
    assert torch.allclose(value[0], f.norms[0](top), atol=1e-12)


def test_the_input_enters_at_the_top_and_reaches_all():
    f, x, other = cell(), image(), image() + 1
    other[:, 0] *= 2
    z = states(f, x)
    blocks = [[], []]
    for record, each in zip(blocks, (x, other), strict=True):
        handles = [block.register_forward_hook(lambda m, i, o, r=record: r.append(o)) for block in f.blocks]
        record.append(f(z, each))
        for handle in handles:
            handle.remove()
    assert not torch.allclose(blocks[0][0], blocks[1][0])
    assert torch.equal(blocks[0][1], blocks[1][1])
    assert torch.equal(blocks[0][2], blocks[1][2])
    assert all(not torch.allclose(a, b) for a, b in zip(blocks[0][3], blocks[1][3], strict=True))


def test_the_solution_is_fixed_at_every_resolution():
    f, x = cell(), image()
    z = layer_of(f)(x)
    for after, before in zip(f(z, x), z, strict=True):
        assert before.std() > 0.1
        assert (after - before).norm() <= 1e-9 * before.norm()


@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_agree_with_unrolling(normalise):
    f, x = cell(normalise=normalise), image()
    plain = layer_of(f, ti.Picard(rtol=1e-12, atol=0, max_steps=400), ti.Unrolled())
    found = []
    for layer in (layer_of(f), plain):
        y = x.clone().requires_grad_()
        loss = torch.stack([part.sin().sum() for part in layer(y)]).sum()
        found.append(torch.autograd.grad(loss, [y, *layer.parameters()]))
    for got, expected in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 1e-7 * max(expected.abs().max(), 1)
    assert sum(bool(expected.any()) for expected in found[1]) > 0.9 * len(found[1])


def test_samples_are_independent():
    x, layer = image(), layer_of(cell())
    value = layer(x)
    other = x.clone()
    other[1] *= -5
    changed = layer(other)
    for a, b in zip(value, changed, strict=True):
        assert (a[[0, 2]] - b[[0, 2]]).abs().max() <= 1e-9
        assert (a[1] - b[1]).abs().max() > 1e-2


def test_at_first_the_default_cell_contracts_and_solves_are_short():
    torch.manual_seed(0)
    f = ti.nn.MultiscaleCell()
    layer, x = ti.nn.DEQ(f, ti.Anderson(rtol=1e-3), init=f.start), torch.randn(2, 24, 16, 16)
    layer(x)
    assert layer.report.converged
    assert layer.report.steps.max() <= 12
    assert spectral_radius(layer, x).max() < 0.9


def test_weight_normalisation_is_of_every_convolution():
    plain, normal = (cell(normalise=normalise) for normalise in (False, True))
    count = sum(isinstance(module, torch.nn.Conv2d) for module in plain.modules())
    x = image()
    assert sum(name.endswith("original0") for name, _ in normal.named_parameters()) == count
    for a, b in zip(plain(states(plain, x), x), normal(states(normal, x), x), strict=True):
        assert a.shape == b.shape
    copied = copy.deepcopy(normal)
    z = states(normal, x)
    assert torch.equal(copied(z, x)[0], normal(z, x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, r"MultiscaleCell\(channels=\(\)\): expected one integer >= 1 a resolution"),
        ({"channels": (4, 5)}, r"MultiscaleCell\(channels=\(4, 5\)\): expected multiples of groups=2"),
        ({"channels": (4, 0)}, r"MultiscaleCell\(channels=\(4, 0\)\): expected one integer >= 1 a resolution"),
        ({"groups": 0}, r"MultiscaleCell\(groups=0\): expected an integer >= 1"),
        ({"expansion": 1.5}, r"MultiscaleCell\(expansion=1.5\): expected an integer >= 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cell(**options)


@pytest.mark.parametrize("x", [image(height=3), image(channels=6), image()[0]])
def test_images_that_do_not_fit_are_refused_before_the_solve(x):
    f = cell()
    calls = []
    f.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(
        ValueError, match=r"got an input of shape .*expected \(B, 4, H, W\) with H and W >= 4.*Try larger"
    ):
        layer_of(f)(x)
    assert not calls


def test_one_resolution_is_enough():
    z = layer_of(cell(channels=(4,)))(image())
    assert [part.shape for part in z] == [(3, 4, 9, 12)]


def backbone(**options):
    torch.manual_seed(0)
    return ti.nn.MDEQ(**{"in_channels": 2, "channels": (4, 6), "groups": 2, **options})


@pytest.mark.parametrize(
    ("strides", "sizes"), [((1,), [(15, 12), (8, 6)]), ((2,), [(8, 6), (4, 3)]), ((2, 2), [(4, 3), (2, 2)])]
)
def test_the_backbone_and_both_heads(strides, sizes):
    model, x = backbone(strides=strides), torch.randn(3, 2, 15, 12)
    z = model(x)
    assert [tuple(part.shape[2:]) for part in z] == sizes
    assert model.equilibrium.report.converged
    labels = ti.nn.ClassificationHead(model.channels, classes=5, pool=2)(z)
    pixels = ti.nn.SegmentationHead(model.channels, classes=3, width=4, groups=2)(z, x.shape[2:])
    assert labels.shape == (3, 5)
    assert pixels.shape == (3, 3, 15, 12)
    (labels.square().sum() + pixels.square().sum()).backward()
    assert model.equilibrium.report.backward.converged
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_heads_read_every_resolution():
    z = tuple(torch.randn(2, c, n, n) for c, n in ((4, 8), (6, 4)))
    for head in (ti.nn.ClassificationHead((4, 6), 3), ti.nn.SegmentationHead((4, 6), 3, 4, 2)):
        read = (lambda states, head=head: head(states, (8, 8))) if hasattr(head, "mix") else head
        for scale in range(2):
            other = tuple(part.flip(0) if i == scale else part for i, part in enumerate(z))
            assert not torch.allclose(read(z), read(other))


def test_options_reach_the_layer():
    layer = backbone(solver=ti.Broyden(), adjoint=ti.Phantom(steps=2), warm_start=True, on_failure="ignore").equilibrium
    assert (layer.solver, layer.adjoint) == (ti.Broyden(), ti.Phantom(steps=2))
    assert layer.warm_start
    assert layer.on_failure == "ignore"


def test_a_warm_start_continues_at_all_resolutions():
    model, x = backbone(warm_start=True, solver=ti.Anderson(rtol=1e-3)), torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        model(x)
        cold = model.equilibrium.report.steps.max()
        model(x)
    assert model.equilibrium.report.steps.max() < cold


def test_autocast_to_bfloat16_keeps_the_states_in_float32():
    model, x = backbone(), torch.randn(2, 2, 12, 12)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        value = model(x)
    torch.stack([part.sin().sum() for part in value]).sum().backward()
    assert model.equilibrium.report.converged
    assert model.equilibrium.report.backward.converged
    for a, b in zip(value, exact, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).abs().max() < 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: backbone(strides=()), r"ConvolutionalStem\(strides=\(\)\): expected one integer >= 1 or more"),
        (lambda: backbone(in_channels=0), r"ConvolutionalStem\(in_channels=0\): expected an integer >= 1"),
        (lambda: ti.nn.ClassificationHead((), 3), r"ClassificationHead\(channels=\(\)\): expected one integer"),
        (lambda: ti.nn.ClassificationHead((4,), 0), r"ClassificationHead\(classes=0\): expected an integer >= 1"),
        (lambda: ti.nn.ClassificationHead((4,), 3, 0), r"ClassificationHead\(pool=0\): expected an integer >= 1"),
        (
            lambda: ti.nn.SegmentationHead((4,), 3, 5, 2),
            r"SegmentationHead\(width=5\): expected a multiple of groups=2",
        ),
    ],
)
def test_impossible_models_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype):
    model = ti.nn.MDEQ(1, (4, 8), groups=2, solver=ti.Anderson(rtol=5e-2)).to(dtype)
    states = model(torch.randn(2, 1, 8, 8).to(dtype))
    assert model.equilibrium.report.converged
    assert all(state.dtype == dtype for state in states)
    states[1].float().square().sum().backward()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ti.nn.ConvolutionalStem(3, 10, groups=4),
            r"ConvolutionalStem\(channels=10\): expected a multiple of gr",
        ),
        (lambda: ti.nn.ConvolutionalStem(3, 8, groups=0), r"ConvolutionalStem\(groups=0\): expected an integer >= 1"),
        (lambda: ti.nn.ConvolutionalStem(3, 0), r"ConvolutionalStem\(channels=0\): expected an integer >= 1"),
    ],
)
def test_stems_that_no_norm_fits_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_heads_refuse_states_of_other_channels():
    states = (torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3))
    for head, rest in ((ti.nn.ClassificationHead((4, 4), 3), ()), (ti.nn.SegmentationHead((4,), 3), ((6, 6),))):
        for wrong in (states, states[0], states[:1] * 3):
            with pytest.raises(ValueError, match=r"Head\(channels=.*got states of shapes"):
                head(wrong, *rest)
