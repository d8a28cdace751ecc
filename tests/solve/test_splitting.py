"""Splittings of monotone maps: the cell's own fixed point and gradient, and the contraction that theory promises."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import torchimplicit as ti
from torchimplicit.solve import monotonicity
from torchimplicit.testing import MonotoneCell

TIGHT = {"rtol": 1e-12, "atol": 1e-12, "max_steps": 3000}
SPLITS = {"forward-backward": (ti.ForwardBackward, 0.05), "Peaceman-Rachford": (ti.PeacemanRachford, 0.3)}


def cell_of(scale, width=12, strength=0.5):
    torch.manual_seed(0)
    return MonotoneCell(5, width, strength, scale).double()


def inputs(width=12):
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.zeros(4, width, dtype=torch.float64)


def output(split, state):
    return split.output(state) if isinstance(split, ti.PeacemanRachford) else state


def bound(split, m, size):
    """The contraction factor that theory promises."""
    step = split.step
    if isinstance(split, ti.PeacemanRachford):
        return (1 - 4 * step * m / (1 + step * size) ** 2) ** 0.5
    return (1 - 2 * step * m + (step * size) ** 2) ** 0.5


class Soft(nn.Module):
    """An odd cell: its activation, a soft threshold, is another at every step, and its resolvent is its own."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([-0.5, 0.6, -0.6], dtype=torch.float64))  # of a circular convolution

    def spectrum(self, width):
        return torch.fft.fft(self.kernel, width)

    def affine(self, z, x):
        return torch.fft.ifft(self.spectrum(z.shape[-1]) * torch.fft.fft(z)).real + x

    def prox(self, z, step):
        return torch.sign(z) * (z.abs() - 0.1 * step).relu()

    def resolvent(self, v, step, x):
        size = v.shape[-1]
        return torch.fft.ifft(torch.fft.fft(v + step * x) / (1 + step - step * self.spectrum(size))).real

    def forward(self, z, x):
        return self.prox(self.affine(z, x), 1.0)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("solver", [ti.Picard(**TIGHT), ti.Anderson(window=10, **TIGHT), ti.Newton(**TIGHT)], ids=str)
def test_the_fixed_point_is_the_cell_s(name, solver):
    (kind, step), cell, (x, z0) = SPLITS[name], cell_of(1.5), inputs()
    own = ti.fixed_point(cell, z0, x, solver=ti.Picard(max_steps=200), on_failure="ignore")
    assert not own.report.converged, "iterating the cell itself does not lead there"
    split = kind(cell, step)
    z = output(split, ti.fixed_point(split, z0, x, solver=solver).value)
    assert torch.allclose(cell(z, x), z, atol=1e-10)
    assert (z > 0).any()
    assert (z == 0).any()


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_contraction_is_within_the_bound_of_theory(name, scale):
    kind, _ = SPLITS[name]
    cell, (x, _) = cell_of(scale), inputs()
    m, size = (float(value) for value in monotonicity(cell.weight))
    assert m == pytest.approx(0.5, abs=1e-6) or m > 0.5
    best = m / size**2 if kind is ti.ForwardBackward else 1 / size
    generator = torch.Generator().manual_seed(2)
    for step in (0.5 * best, best, 1.5 * best):
        split = kind(cell, step)
        factor = bound(split, m, size)
        assert factor < 1
        largest = 0.0
        for _ in range(20):
            a, b = torch.randn(2, 4, 12, dtype=torch.float64, generator=generator)
            for _ in range(10):  # along the iteration, where differences turn to the slow directions
                gap = (a - b).norm(dim=1)
                a, b = split(a, x).detach(), split(b, x).detach()
                largest = max(largest, float(((a - b).norm(dim=1) / gap).max()))
        assert largest <= factor + 1e-9
        assert largest > 0.5 * factor, "the bound is not idle"


def test_forward_backward_attains_its_bound_and_diverges_beyond_it():
    """A rotation, m = 0.5 and L^2 = m^2 + 9: for it the bound is an equality, while no unit is cut off."""
    cell = cell_of(0.0, width=2)
    with torch.no_grad():
        cell.parametrizations.weight.original[1, 0] = 3.0
        centre = torch.full((1, 2), 10.0).double()
        cell.inject.bias.copy_((centre - centre @ cell.weight.mT).squeeze(0))
    m, size = (float(value) for value in monotonicity(cell.weight))
    assert (m, size**2) == pytest.approx((0.5, 9.25))
    cell.requires_grad_(False)
    x, z0 = torch.zeros(1, 5).double(), centre + 1
    limit = 2 * m / size**2
    for step in (0.3 * limit, 0.9 * limit, 1.1 * limit):
        split = ti.ForwardBackward(cell, step)
        gap = split(z0 + 0.1, x) - split(z0, x)
        assert float(gap.norm() / (0.1 * 2**0.5)) == pytest.approx(bound(split, m, size), rel=1e-9)
    solution = ti.fixed_point(split, z0, x, solver=ti.Picard(max_steps=2000, rtol=1e-9), on_failure="ignore")
    assert not solution.report.converged
    inside = ti.ForwardBackward(cell, 0.7 * limit)
    assert ti.fixed_point(inside, z0, x, solver=ti.Picard(max_steps=2000, rtol=1e-9)).report.converged


@pytest.mark.parametrize("step", [0.01, 0.3, 3.0, 100.0])
def test_peaceman_rachford_contracts_at_every_step(step):
    cell, (x, z0) = cell_of(3.0), inputs()
    assert float(monotonicity(cell.weight)[1]) > 10
    split = ti.PeacemanRachford(cell, step)
    u = ti.fixed_point(split, z0, x, solver=ti.Picard(rtol=1e-10, atol=1e-10, max_steps=30_000)).value
    reference = ti.PeacemanRachford(cell, 0.1)
    again = ti.fixed_point(reference, z0, x, solver=ti.Picard(**TIGHT)).value
    assert torch.allclose(split.output(u), reference.output(again), atol=1e-6)


@pytest.mark.parametrize("name", SPLITS)
def test_a_cell_with_its_own_resolvent_and_an_activation_of_the_step(name):
    (kind, step), cell = SPLITS[name], Soft()
    x = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    split = kind(cell, step)
    z = output(split, ti.fixed_point(split, torch.zeros_like(x), x, solver=ti.Picard(**TIGHT)).value)
    assert torch.allclose(cell(z, x), z, atol=1e-10)
    assert (z != 0).any()


def gradients(function, cell, x, z0, **options):
    cell.zero_grad()
    x = x.clone().requires_grad_()
    z = output(function, ti.fixed_point(function, z0, x, **options).value)
    (z.sin() * torch.linspace(1, 2, z.numel()).to(z).view_as(z)).sum().backward()
    return [x.grad, *(parameter.grad.clone() for parameter in cell.parameters())]


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("make", [lambda: cell_of(1.0), Soft], ids=["relu", "soft"])
def test_gradients_are_those_of_the_cell_s_own_condition(name, make):
    (kind, step), cell = SPLITS[name], make()
    x = torch.randn(4, 9 if isinstance(cell, Soft) else 5, generator=torch.Generator().manual_seed(4)).double()
    z0 = torch.zeros(4, 9 if isinstance(cell, Soft) else 12).double()
    split = kind(cell, step)
    with torch.no_grad():
        start = ti.fixed_point(split, z0, x, solver=ti.Picard(**TIGHT)).value
    solver, adjoint = ti.Newton(rtol=1e-14, atol=1e-14), ti.Implicit(ti.LU())
    expected = gradients(cell, cell, x, output(split, start).detach(), solver=solver, adjoint=adjoint)
    for how in (adjoint, ti.Implicit(ti.GMRES(rtol=1e-12)), ti.Implicit(ti.Neumann(terms=1500))):
        got = gradients(split, cell, x, start, solver=solver, adjoint=how)
        for mine, own in zip(got, expected, strict=True):
            assert torch.allclose(mine, own, rtol=1e-9, atol=1e-9)
            assert (own != 0).any()


class Layer(nn.Module):
    def __init__(self, split):
        super().__init__()
        self.split = split

    def forward(self, x, z0):
        options = {"solver": ti.Anderson(**TIGHT), "adjoint": ti.Implicit(ti.LU())}
        return output(self.split, ti.fixed_point(self.split, z0, x, **options).value)


@pytest.mark.parametrize("name", SPLITS)
def test_gradcheck(name):
    (kind, step), (x, z0) = SPLITS[name], inputs(4)
    layer = Layer(kind(cell_of(0.7, width=4), step))
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, z0))

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *values))
    assert torch.autograd.gradgradcheck(call, (x, *values), atol=1e-4)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("terms", [1, 10, 60])
def test_truncated_backward_solves_are_off_by_the_contraction_to_their_terms(name, terms):
    (kind, _), cell, (x, z0) = SPLITS[name], cell_of(0.6), inputs()
    m, size = (float(value) for value in monotonicity(cell.weight))
    split = kind(cell, m / size**2 if kind is ti.ForwardBackward else 1 / size)
    factor, captured = bound(split, m, size), {}

    def shift_gradient(adjoint):
        """The gradient by a shift of the split map: the solution of the backward solve itself."""
        shift = torch.zeros_like(z0, requires_grad=True)

        def shifted(u, shift, split, x):
            return split(u, x) + shift

        u = ti.fixed_point(shifted, z0, shift, split, x, solver=ti.Anderson(**TIGHT), adjoint=adjoint).value
        incoming = torch.linspace(-1, 1, u.numel()).to(u).view_as(u)
        captured["incoming"] = incoming.norm(dim=1)
        return torch.autograd.grad((u * incoming).sum(), shift)[0]

    exact = shift_gradient(ti.Implicit(ti.LU()))
    for adjoint in (ti.Implicit(ti.Neumann(terms=terms)), ti.Phantom(steps=terms)):
        error = (shift_gradient(adjoint) - exact).norm(dim=1)
        assert (error <= factor**terms * exact.norm(dim=1) + 1e-10).all()
        assert (error > 0).any(), "the bias is real"
    assert (exact.norm(dim=1) <= captured["incoming"] / (1 - factor)).all()


def test_the_inverse_is_computed_once_a_solve(monkeypatch):
    calls = []
    invert = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: calls.append(1) or invert(matrix))
    cell, (x, z0) = cell_of(1.0), inputs()
    split = ti.PeacemanRachford(cell, 0.3)
    calls.clear()
    solution = ti.fixed_point(split, z0, x)
    split.output(solution.value).sum().backward()
    assert solution.nfev > 10
    assert len(calls) == 1
    assert cell.parametrizations.weight.original.grad.abs().sum() > 0


@pytest.mark.parametrize("name", SPLITS)
def test_copies_states_and_dtypes(name):
    (kind, step), cell, (x, z0) = SPLITS[name], cell_of(0.7), inputs()
    split = kind(cell, step)
    twin = copy.deepcopy(split)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(1.5)
    x, z0 = x.float(), z0.float()
    changed, before = ti.fixed_point(split.float(), z0, x).value, ti.fixed_point(twin.float(), z0, x).value
    assert changed.dtype == torch.float32
    assert not torch.allclose(changed, before, atol=1e-3), "a copy has its own cell, its inverse too"
    assert sorted(map(id, split.parameters())) == sorted(map(id, cell.parameters()))
    file = io.BytesIO()
    torch.save(split.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file))
    assert torch.equal(ti.fixed_point(twin, z0, x).value, changed)


def test_as_the_cell_of_a_layer():
    cell, (x, z0) = cell_of(1.0), inputs()
    split = ti.PeacemanRachford(cell, 0.3)
    layer = ti.nn.DEQ(split, init=lambda x: torch.zeros_like(z0))
    z = split.output(layer(x))
    assert torch.allclose(cell(z, x), z, atol=1e-2)
    z.sum().backward()
    assert layer.report.converged
    assert layer.report.backward.converged


def test_the_weight_of_the_test_cell_is_monotone_whatever_its_parameter():
    cell = cell_of(5.0, strength=0.2)
    assert float(monotonicity(cell.weight)[0]) >= 0.2 - 1e-9
    assert parametrize.is_parametrized(cell, "weight")


class NoResolvent(Soft):
    resolvent = property()


@pytest.mark.parametrize("kind", [ti.ForwardBackward, ti.PeacemanRachford])
def test_what_is_no_monotone_cell_is_refused(kind):
    for nothing in (nn.Linear(3, 3), lambda z: z, MonotoneCell):
        with pytest.raises(TypeError, match=r"expected a module with the methods affine\(z, \*args\) and prox"):
            kind(nothing, 0.5)
    for step in (0, -1.0, float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match=r"step=.*expected a finite number > 0"):
            kind(cell_of(0.5), step)


def test_peaceman_rachford_asks_for_a_resolvent():
    with pytest.raises(TypeError, match=r"neither `weight` nor `resolvent`.*try ForwardBackward"):
        ti.PeacemanRachford(NoResolvent(), 0.5)
    assert ti.ForwardBackward(NoResolvent(), 0.5).extra_repr() == "step=0.5"


def test_the_residual_asked_of_forward_backward_is_the_cell_s():
    cell, (x, z0) = cell_of(2.0), inputs()
    exact = ti.fixed_point(ti.PeacemanRachford(cell), z0, x, solver=ti.Picard(**TIGHT))
    for step in (0.002, 0.02):
        split = ti.ForwardBackward(cell, step=step)
        z = ti.fixed_point(split, z0, x, solver=ti.Picard(rtol=1e-2, atol=0, max_steps=9000)).value
        assert ((z - cell(z, x)).norm(dim=1) <= 1.01e-2 * z.norm(dim=1)).all()
        assert (z - ti.PeacemanRachford(cell).output(exact.value)).norm() < 0.02 * z.norm()
    long = ti.ForwardBackward(cell_of(0.3), step=1.5)
    assert long.tolerances(ti.Picard(rtol=1e-3)) == ti.Picard(rtol=1e-3), "a long step asks for no looser one"
