"""Monotone cells: one fixed point whatever the weights, found by both splittings, differentiated, and certified."""

import copy
import io
import itertools

import pytest
import torch

import torchimplicit as ti
from torchimplicit.diagnose import certify
from torchimplicit.nn import MonotoneConv, MonotoneDEQ, MonotoneLinear, MonotoneTiers
from torchimplicit.nn.equilibrium.monotone_convolution import convolve, symbol

PLAIN = ti.Picard(rtol=1e-11, atol=1e-11, max_steps=20_000)
CELLS = {
    "linear": lambda **options: MonotoneLinear(6, **options),
    "conv": lambda **options: MonotoneConv(2, (4, 3), **options),
    "tiers": lambda **options: MonotoneTiers((2, 3), (6, 8), coupling=0.7, **options),
}


def make(name, scale=0.5, strength=0.5, seed=0):
    torch.manual_seed(seed)
    cell = CELLS[name](scale=scale, strength=strength).double()
    for coupling in getattr(cell, "down", ()):  # far above the bound, which must hold them
        coupling.parametrizations.weight.original.data.mul_(100)
    return cell


def state(name, batch=3, seed=1):
    shape = {"linear": (6,), "conv": (2, 4, 3), "tiers": (2 * 48 + 3 * 12,)}[name]
    return torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(function, like):
    """The matrix of a linear map of states, by its values at the unit vectors."""
    unit = torch.eye(like[0].numel(), dtype=like.dtype).view(-1, *like.shape[1:])
    return function(unit).flatten(1).mT.detach()


def weight(cell, name):
    zero = torch.zeros_like(state(name, 1))
    return dense(lambda z: cell.affine(z, zero), zero)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", CELLS)
def test_it_is_strongly_monotone_for_every_weight(name, scale):
    for seed, strength in itertools.product(range(3), (0.1, 2.0)):
        cell = make(name, scale, strength, seed)
        operator = -weight(cell, name)
        operator.diagonal().add_(1)
        least = float(torch.linalg.eigvalsh((operator + operator.mT) / 2)[0])
        size = float(torch.linalg.matrix_norm(operator, 2))
        m, bound = (float(value) for value in cell.bounds())
        assert m == strength
        assert least >= strength - 1e-12 * size
        assert size <= bound * (1 + 1e-9), "the bound is one"
        assert bound <= 1.5 * size or name == "tiers", "and not idle"


@pytest.mark.parametrize("name", ["conv", "tiers"])
def test_the_strength_is_attained(name):
    """Without A nothing is added to it: in a tier, but for what it keeps for its neighbours."""
    cell = make(name, 1.0)
    for kernels in [module.kernels for module in cell.modules() if isinstance(module, MonotoneConv)]:
        kernels.data[0] = 0
    operator = -weight(cell, name)
    operator.diagonal().add_(1)
    least = float(torch.linalg.eigvalsh((operator + operator.mT) / 2)[0])
    assert 0.5 - 1e-9 <= least <= (0.5 if name == "conv" else 1.2) + 1e-9


def test_the_symbol_is_that_of_a_circular_convolution():
    torch.manual_seed(0)
    for size, taps in (((4, 4), 3), ((5, 7), 3), ((6, 5), 5), ((3, 3), 3), ((4, 6), 1)):
        kernel, z = torch.randn(3, 2, taps, taps).double(), torch.randn(2, 2, *size).double()
        padded = torch.nn.functional.pad(z, (taps // 2,) * 4, mode="circular")
        expected = torch.nn.functional.conv2d(padded, kernel)
        assert torch.allclose(convolve(symbol(kernel, size), z), expected, atol=1e-12)


def test_the_weight_is_made_of_the_kernels():
    cell = make("conv", 1.0)
    like = state("conv", 1)
    a, b = (dense(lambda z, k=kernel: convolve(symbol(k, cell.size), z), like) for kernel in cell.kernels)
    expected = 0.5 * torch.eye(len(a)).double() - a.mT @ a + b - b.mT
    assert torch.allclose(weight(cell, "conv"), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["conv", "tiers"])
@pytest.mark.parametrize("step", [0.01, 0.7, 20.0])
def test_the_resolvent_is_the_dense_inverse(name, step):
    cell, v, x = make(name, 2.0), state(name), state(name, seed=2)
    matrix = weight(cell, name)
    eye = torch.eye(len(matrix)).double()
    right = (v + step * x).flatten(1)
    expected = torch.linalg.solve((1 + step) * eye - step * matrix, right.mT).mT.view_as(v)
    assert torch.allclose(cell.resolvent(v, step, x, cell.inverse(step)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_both_splittings_find_the_point_where_the_cell_diverges(name):
    cell, x = make(name, 3.0 if name == "linear" else 1.5), state(name)
    plain = ti.fixed_point(cell, torch.zeros_like(x), x, solver=ti.Picard(max_steps=300), on_failure="ignore")
    assert not plain.report.converged
    found = []
    for splitting in ("peaceman-rachford", "forward-backward"):
        layer = MonotoneDEQ(cell, splitting, solver=PLAIN, on_failure="raise")
        z = layer(x)
        assert torch.allclose(cell(z, x), z, atol=1e-7)
        found.append((z.detach(), int(layer.report.steps.max())))
    (one, few), (other, many) = found
    assert torch.allclose(one, other, atol=1e-6)
    assert (one > 0).any()
    assert (one == 0).any()
    assert few < many


def test_huge_weights():
    cell, x = make("conv", 1e3), state("conv")
    size = float(cell.bounds()[1])
    solver = ti.Picard(rtol=1e-9, atol=1e-15, max_steps=8000)
    layer = MonotoneDEQ(cell, solver=solver, on_failure="raise")
    again = MonotoneDEQ(cell, step=30 / size, solver=solver, on_failure="raise")
    assert size > 1e5
    assert float(layer(x).detach().max()) > 1e-6
    assert torch.allclose(layer(x), again(x), rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("splitting", ["peaceman-rachford", "forward-backward"])
@pytest.mark.parametrize("name", CELLS)
def test_the_chosen_step_contracts_as_predicted(name, splitting):
    cell, x = make(name, 1.0), state(name)
    layer = MonotoneDEQ(cell, splitting)
    m, size = (float(value) for value in cell.bounds())
    symmetric, skew = (float(value) for value in cell.parts())
    size = min(size, (m * symmetric) ** 0.5 + skew)
    best = {"peaceman-rachford": 1 / size, "forward-backward": m / size**2}[splitting]
    factor = {"peaceman-rachford": ((size - m) / (size + m)) ** 0.5, "forward-backward": (1 - (m / size) ** 2) ** 0.5}
    assert layer.cell.step == pytest.approx(best)
    assert layer.contraction() == pytest.approx(factor[splitting])
    a, b = state(name, seed=5), state(name, seed=6)
    largest = 0.0
    for _ in range(30):
        gap = (a - b).flatten(1).norm(dim=1)
        a, b = layer.cell(a, x).detach(), layer.cell(b, x).detach()
        largest = max(largest, float(((a - b).flatten(1).norm(dim=1) / gap).max()))
    assert 0.5 * layer.contraction() < largest <= layer.contraction() + 1e-9


def test_the_step_follows_the_weights_and_a_given_one_stays():
    cell, x = make("conv"), state("conv")
    layer, given = MonotoneDEQ(cell), MonotoneDEQ(cell, step=0.3)
    before = layer.cell.step
    cell.kernels.data.mul_(4)
    layer(x)
    given(x)
    assert layer.cell.step < before / 3
    assert layer.cell.step == MonotoneDEQ(cell).cell.step
    assert given.cell.step == 0.3


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("splitting", ["peaceman-rachford", "forward-backward"])
def test_the_gradient_is_that_of_finite_differences(name, splitting):
    cell, x = make(name, 0.7), state(name, 2)
    layer = MonotoneDEQ(cell, splitting, solver=PLAIN, adjoint=ti.Implicit(ti.GMRES(rtol=1e-12, max_steps=500)))
    mix = torch.linspace(-1, 1, x.numel()).double().view_as(x)

    def loss():
        return (layer(x) * mix).sum()

    x.requires_grad_()
    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for tensor in (x, *cell.parameters()):
        along, epsilon = torch.randn(tensor.shape, generator=generator).double(), 1e-5
        with torch.no_grad():
            tensor += epsilon * along
            above = loss()
            tensor -= 2 * epsilon * along
            below = loss()
            tensor += epsilon * along
        assert float((tensor.grad * along).sum()) == pytest.approx(float(above - below) / (2 * epsilon), rel=1e-4)


@pytest.mark.parametrize("name", CELLS)
def test_the_gradient_is_that_of_the_unrolled_steps(name):
    gradients = []
    for adjoint in (ti.Implicit(ti.GMRES(rtol=1e-12, max_steps=500)), ti.Unrolled(), ti.Phantom(steps=400)):
        cell, x = make(name, 0.5), state(name).requires_grad_()
        layer = MonotoneDEQ(cell, solver=ti.Picard(rtol=1e-12, atol=1e-12, max_steps=500), adjoint=adjoint)
        (layer(x).sin() * torch.linspace(1, 2, x.numel()).double().view_as(x)).sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in cell.parameters())])
    for own, unrolled, phantom in zip(*gradients, strict=True):
        assert torch.allclose(own, unrolled, rtol=1e-6, atol=1e-8)
        assert torch.allclose(own, phantom, rtol=1e-6, atol=1e-8)
        assert (own != 0).any()


def test_second_derivatives_through_the_symbol():
    cell, x = make("conv", 0.5), state("conv", 1).requires_grad_()
    layer = MonotoneDEQ(cell, solver=PLAIN, adjoint=ti.Implicit(ti.GMRES(rtol=1e-12, max_steps=500)))
    kernels = cell.kernels.detach().clone().requires_grad_()

    def call(x, kernels):
        return torch.func.functional_call(layer, {"cell.cell.kernels": kernels}, (x,))

    assert torch.autograd.gradcheck(call, (x, kernels), atol=1e-5)
    slope = torch.autograd.grad(call(x, kernels).square().sum(), kernels, create_graph=True)[0]
    assert torch.autograd.grad(slope.square().sum(), kernels)[0].isfinite().all()


@pytest.mark.parametrize("name", ["conv", "tiers"])
def test_symbol_and_inverse_are_computed_once_a_solve(name, monkeypatch):
    cell, x = make(name, 1.0), state(name)
    layer, calls = MonotoneDEQ(cell), []
    invert = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: calls.append(1) or invert(matrix))
    layer(x).sum().backward()
    assert layer.report.nfev > 5
    assert layer.report.backward.converged
    assert len(calls) == (1 if name == "conv" else 2)


@pytest.mark.parametrize("name", CELLS)
def test_samples_are_independent(name):
    layer, x = MonotoneDEQ(make(name, 1.0), solver=PLAIN), state(name)
    other = x.clone()
    other[1] += 3
    one, two = layer(x), layer(other)
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert not torch.allclose(one[1], two[1])


@pytest.mark.parametrize("name", CELLS)
def test_copies_and_states(name):
    layer, x = MonotoneDEQ(make(name, 1.0), solver=PLAIN), state(name)
    before, twin = layer(x), copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data.mul_(1.5)
    changed = layer(x)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(twin(x), before), "a copy has its own symbol, inverse and step"
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file))
    assert torch.equal(twin(x), changed)
    layer.solver = ti.Anderson()
    assert layer.float()(x.float()).dtype == torch.float32


def test_the_certificate_claims_uniqueness():
    layer, x = MonotoneDEQ(make("conv", 2.0), solver=PLAIN), state("conv")
    certificate = certify(layer, x)
    assert certificate.ok
    assert certificate.unique is True
    assert certificate.everywhere == layer.contraction() < 1
    assert "unique, from any start" in str(certificate)
    plain = certify(ti.nn.DEQ(lambda z, x: 0.5 * torch.cos(z) + x), torch.zeros(2, 3))
    assert plain.unique is None
    assert plain.everywhere is None


def test_tiers_pack_and_unpack():
    cell, x = make("tiers"), state("tiers")
    parts = cell.unpack(x)
    assert [tuple(part.shape) for part in parts] == [(3, 2, 6, 8), (3, 3, 3, 4)]
    assert torch.equal(cell.pack(parts), x)
    with pytest.raises(ValueError, match=r"pack\(tiers\): got images of \[\(3, 3, 4\), \(2, 6, 8\)\], expected"):
        cell.pack(parts[::-1])


def test_the_coarse_tier_hears_the_fine_one_and_not_the_other_way_round():
    cell, x = make("tiers"), state("tiers")
    layer = MonotoneDEQ(cell, solver=PLAIN)
    fine, coarse = cell.unpack(layer(x))
    louder = cell.unpack(layer(cell.pack([cell.unpack(x)[0] + 1, cell.unpack(x)[1]])))
    other = cell.unpack(layer(cell.pack([cell.unpack(x)[0], cell.unpack(x)[1] + 1])))
    assert not torch.allclose(louder[1], coarse, atol=1e-3)
    assert torch.allclose(other[0], fine, atol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MonotoneLinear(4, strength=0), r"MonotoneLinear\(strength=0\): expected a finite number > 0"),
        (lambda: MonotoneLinear(0), r"MonotoneLinear\(width=0\): expected an integer >= 1"),
        (lambda: MonotoneConv(2, 4, strength=-1.0), r"MonotoneConv\(strength=-1.0\): expected a finite number > 0"),
        (lambda: MonotoneConv(2, 4, strength=float("nan")), r"strength=nan"),
        (lambda: MonotoneConv(2, 8, kernel_size=4), r"MonotoneConv\(kernel_size=4\): expected an odd number"),
        (
            lambda: MonotoneConv(2, (8, 2)),
            r"MonotoneConv\(size=\(8, 2\)\): expected an image no smaller than the kernel",
        ),
        (lambda: MonotoneConv(2, 4, scale=0), r"MonotoneConv\(scale=0\)"),
        (lambda: MonotoneTiers((2, 2), 7), r"MonotoneTiers\(size=\(7, 7\)\): expected numbers divisible by 2"),
        (lambda: MonotoneTiers((2, 2), 4), r"MonotoneConv\(size=\(2, 2\)\): expected an image no smaller"),
        (lambda: MonotoneTiers((2, 2), 6, coupling=0.0), r"MonotoneTiers\(coupling=0.0\)"),
        (lambda: MonotoneTiers((), 6), r"MonotoneTiers\(channels=\(\)\): expected at least one tier"),
        (lambda: MonotoneDEQ(MonotoneLinear(4), step=0), r"PeacemanRachford\(step=0\): expected a finite number > 0"),
        (lambda: MonotoneDEQ(MonotoneLinear(4), "forward-backward", -1.0), r"ForwardBackward\(step=-1.0\)"),
        (lambda: MonotoneDEQ(MonotoneLinear(4), "douglas"), r"MonotoneDEQ\(splitting='douglas'\): expected one of"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class NotMonotone(torch.nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)

    def affine(self, z, x):
        return 2 * z + x

    def prox(self, z, step):
        return z.relu()


def test_cells_that_cannot_be_split_are_refused():
    with pytest.raises(TypeError, match="expected a module with the methods affine"):
        MonotoneDEQ(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"step=None.*neither `bounds` nor `weight`.*try a number"):
        MonotoneDEQ(NotMonotone(), "forward-backward")
    with pytest.raises(ValueError, match=r"not strongly monotone: I - W is so by m=-1, expected m > 0"):
        MonotoneDEQ(NotMonotone(weight=2 * torch.eye(3)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", CELLS)
def test_the_parts_are_bounded_as_well(name, scale):
    cell = make(name, scale)
    operator = -weight(cell, name)
    operator.diagonal().add_(1)
    for sign, bound in zip((1, -1), cell.parts(), strict=True):
        size = float(torch.linalg.matrix_norm((operator + sign * operator.mT) / 2, 2))
        assert size <= float(bound) * (1 + 1e-9)
        assert float(bound) <= 1.5 * size or name == "tiers"


@pytest.mark.parametrize(("name", "scale"), [("linear", 10.0), ("conv", 3.0), ("tiers", 3.0)])
def test_the_parts_give_a_better_step(name, scale):
    cell, x = make(name, scale), state(name)
    norm_alone = 1 / float(cell.bounds()[1])
    ours, theirs = (
        MonotoneDEQ(cell, step=step, solver=ti.Picard(rtol=1e-6, max_steps=5000)) for step in (None, norm_alone)
    )
    assert torch.allclose(ours(x), theirs(x), atol=1e-3)
    assert ours.contraction() < theirs.contraction()
    assert 2 * int(ours.report.steps.max()) < int(theirs.report.steps.max())


@pytest.mark.parametrize("name", CELLS)
def test_forward_backward_stops_where_the_cell_s_residual_is_small(name):
    """Its own residual is small from the start: it used to stop more than half the way from the point."""
    cell, x = make(name, 3.0), state(name)
    exact = MonotoneDEQ(cell, solver=PLAIN)(x)
    for solver in (ti.Picard(rtol=1e-2, max_steps=20_000), ti.Anderson(rtol=1e-2, max_steps=2000)):
        layer = MonotoneDEQ(cell, "forward-backward", solver=solver, on_failure="raise")
        z = layer(x)
        assert layer.cell.step < 0.05
        residual, size = (part.flatten(1).norm(dim=1) for part in (z - cell(z, x), z))
        assert (residual <= 1.01e-2 * size + 1e-4 * z[0].numel() ** 0.5).all()
        assert ((z - exact).flatten(1).norm(dim=1) < 0.03 * exact.flatten(1).norm(dim=1)).all()
        assert torch.equal(certify(layer, x).report.steps, layer.report.steps), "the certificate is of the same solve"


def test_images_of_another_size_are_refused_where_the_symbol_would_fit():
    cell = MonotoneConv(2, (7, 9))
    for shape in ((1, 2, 7, 8), (1, 2, 9, 7), (1, 3, 7, 9), (2, 7, 9)):
        for splitting in ("peaceman-rachford", "forward-backward"):
            with pytest.raises(ValueError, match=r"MonotoneConv\(channels=2, size=\(7, 9\)\): got an input of shape"):
                MonotoneDEQ(cell, splitting)(torch.randn(shape))
    with pytest.raises(
        ValueError, match=r"MonotoneTiers: got a state of shape \(3, 100\), expected \(B, 132\); see pack"
    ):
        MonotoneDEQ(make("tiers"))(torch.randn(3, 100).double())


class Gained(MonotoneLinear):
    """A cell with more arguments than an input."""

    def affine(self, z, x, gain=1.0, shift=0.0):
        return super().affine(z, gain * x + shift)


class Starred(MonotoneLinear):
    def affine(self, z, x, *, gain=1.0):
        return super().affine(z, gain * x)


@pytest.mark.parametrize("splitting", ["peaceman-rachford", "forward-backward"])
def test_arguments_by_name(splitting):
    torch.manual_seed(0)
    cell, x = Gained(6).double(), torch.randn(4, 6, dtype=torch.float64)
    layer = MonotoneDEQ(cell, splitting, solver=ti.Anderson(rtol=1e-10, atol=1e-12, max_steps=200))
    found = []
    for names in (True, False):
        gain, shift = torch.tensor([0.5, -1.0], dtype=torch.float64).requires_grad_(), torch.ones(4, 6).double()
        value = layer(x, gain=gain[0], shift=shift) if names else layer(gain[0].detach() * x + shift)
        found.append(value.detach())
        if names:
            value.sum().backward()
            assert gain.grad[0] != 0
    torch.testing.assert_close(*found)
    assert torch.equal(layer(x, shift=shift), layer(x, 1.0, shift))
    with pytest.raises(TypeError, match=r"affine\(z, x, gain=1\.0, shift=0\.0\): got an unexpected keyword"):
        layer(x, mask=shift)
    with pytest.raises(TypeError, match="got gain by name, expected arguments that"):
        MonotoneDEQ(Starred(6).double(), splitting)(x, gain=2.0)
