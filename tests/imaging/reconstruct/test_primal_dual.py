"""The primal-dual cell: its minimum is that of other methods, and what its duality gap proves is so."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from tests.imaging.physics.dense import matrix
from tests.imaging.reconstruct.measuring import blur, coils, images
from torchimplicit import diagnose
from torchimplicit.imaging import (
    Analysis,
    Differences,
    Filters,
    Gradient,
    PrimalDual,
    Reconstruction,
    Ridge,
    Sense,
    Wavelets,
    total_variation,
    wavelet,
)

TIGHT = ti.Anderson(window=10, rtol=1e-11, atol=0, max_steps=8000)


def cell(width=0.0, weight=0.02, eps=1e-3, frame=Differences(), **options):
    return PrimalDual(Analysis(frame, weight=weight, width=width), eps=eps, **options).double()


def case(name, n=10):
    """An operator and noisy measurements of two images."""
    op = blur(n=n) if name == "blur" else coils(n=n)
    x = images(2, n) if name == "blur" else torch.complex(images(2, n), images(2, n, seed=1)).squeeze(1)
    y = op.A(x).detach()
    return op, y + 0.01 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))


def energy(cell, x, y, op):
    sizes = (op.A(x) - y).abs().square().flatten(1).sum(1) + cell.eps * x.abs().square().flatten(1).sum(1)
    return 0.5 * sizes + cell.prior.energy(x)


def solved(cell, y, op, solver=TIGHT):
    with torch.no_grad():
        return ti.fixed_point(cell, cell.start(y, op), y, op, solver=solver, on_failure="ignore").value


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("blur", Differences()),
        ("blur", Differences(joint=False)),
        ("blur", Wavelets(1, 2)),
        ("coils", Differences()),
        ("coils", Differences(joint=False)),
    ],
)
def test_the_minimum_is_that_of_alternating_directions(name, frame):
    op, y = case(name)
    found = solved(cell(eps=0.0, frame=frame), y, op)[0]
    if isinstance(frame, Wavelets):
        other = wavelet(y, op, weight=0.02, moments=1, levels=2, solver=TIGHT, on_failure="ignore")
    else:
        other = total_variation(y, op, weight=0.02, isotropic=frame.joint, solver=TIGHT, on_failure="ignore")
    assert (found - other.value).abs().max() < 1e-6 * other.value.abs().max()


@pytest.mark.parametrize("name", ["blur", "coils"])
@pytest.mark.parametrize("frame", [Differences(), Filters(filters=3, taps=3).double()], ids=["iso", "filters"])
def test_with_a_width_it_is_that_of_a_gradients_descent(name, frame):
    op, y = case(name)
    one = cell(0.05, frame=frame)
    descent = Gradient(one.prior, eps=one.eps).double()
    with torch.no_grad():
        other = ti.fixed_point(descent, descent.start(y, op), y, op, solver=TIGHT, on_failure="ignore").value
    assert (solved(one, y, op)[0] - other).abs().max() < 1e-6 * other.abs().max()


def test_it_depends_neither_on_the_steps_nor_on_the_operators_scale():
    op, y = case("blur")
    for width in (0.0, 0.05):
        usual = solved(cell(width), y, op)[0]
        torch.testing.assert_close(solved(cell(width, balance=1.0), y, op)[0], usual, rtol=0, atol=1e-6)

        class Loud:
            """Thrice the operator, of a norm that it does not say."""

            def A(self, x):
                return 3 * op.A(x)

            def A_adjoint(self, y):
                return 3 * op.A_adjoint(y)

        louder = cell(width, weight=9 * 0.02, eps=9e-3)
        torch.testing.assert_close(solved(louder, 3 * y, Loud())[0], usual, rtol=0, atol=1e-6)


def test_plain_steps_converge():
    """The steps keep the bound of Condat's theorem, for a norm known from below by a thousandth, too."""
    op, y = case("coils", 8)
    for balance in (0.05, 0.3, 3.0):
        one = cell(0.05, balance=balance)
        z = one.start(y, op)
        tau, sigma = one._steps(op, z[0])
        steepest = 1.002 * one.square(op, z) + one.eps
        assert bool((1 / tau - 8 * sigma >= steepest.reshape(-1, 1, 1) / 2).all())
        plain = solved(one, y, op, ti.Picard(rtol=1e-9, atol=0, max_steps=4000))[0]
        torch.testing.assert_close(plain, solved(one, y, op)[0], rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(
    st.sampled_from(["blur", "coils"]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([1e-5, 1e-2]),
    st.integers(0, 10**6),
    st.sampled_from([1e-4, 1e-2, 1.0]),
    st.integers(0, 12),
)
def test_the_gap_of_every_state_covers_its_excess_and_its_distance(name, width, eps, seed, size, products):
    op, y = case(name, 6)
    one = cell(width, eps=eps)
    exact = solved(one, y, op)
    generator = torch.Generator().manual_seed(seed)
    z = tuple(each + size * torch.randn(each.shape, dtype=each.dtype, generator=generator) for each in exact)
    gap, best = one.gap(z, y, op, products), energy(one, exact[0], y, op)
    with torch.no_grad():
        assert bool((energy(one, z[0], y, op) - best <= gap * (1 + 1e-9) + 1e-12).all())
        assert bool(((z[0] - exact[0]).abs().square().flatten(1).sum(1) <= 2 * gap / eps * (1 + 1e-9)).all())


@pytest.mark.parametrize("name", ["blur", "coils"])
@pytest.mark.parametrize("width", [0.0, 0.05])
def test_the_gap_is_the_primal_value_minus_the_dual_one(name, width):
    """`P(x) - D(p)` with `D(p) = -f*(-K* p) - g*(p)` and the conjugate of the data term from the dense matrix."""
    op, y = case(name, 6)
    one, eps = cell(width), 1e-3
    z = solved(one, y, op, ti.Picard(max_steps=20))
    tau, sigma = one._steps(op, z[0])
    p = one.prior.feasible(z[1] / (tau / sigma).sqrt().unsqueeze(-1))
    shape = z[0].shape[1:]
    A = matrix(op, shape, z[0].dtype).detach()
    H = A.mH @ A + eps * torch.eye(A.shape[1])
    slope, back = (-one.prior.frame.adjoint(p)).flatten(1), y.flatten(1) @ A.conj()
    point = torch.linalg.solve(H, (back + slope).T).T  # where <s, x> - f(x) is largest
    f = 0.5 * ((point @ A.T - y.flatten(1)).abs().square().sum(1) + eps * point.abs().square().sum(1))
    dual = -((slope.conj() * point).real.sum(1) - f) - one.prior.conjugate(p)
    with torch.no_grad():
        expected = energy(one, z[0], y, op) - dual
    torch.testing.assert_close(one.gap(z, y, op, products=2 * A.shape[1]), expected, rtol=1e-6, atol=1e-12)
    loose = one.gap(z, y, op, products=0)
    assert bool((one.gap(z, y, op, products=4) <= loose * (1 + 1e-9)).all())
    assert bool((loose >= expected * (1 - 1e-9)).all())


def test_the_gap_shrinks_to_nothing_and_is_infinite_without_strong_convexity():
    op, y = case("blur")
    one = cell(0.05)
    gaps = [one.gap(solved(one, y, op, ti.Anderson(rtol=rtol, atol=0)), y, op) for rtol in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert all(bool((b < 0.2 * a).all()) for a, b in itertools.pairwise(gaps))
    assert cell(0.05, eps=0.0).gap(one.start(y, op), y, op).tolist() == [torch.inf] * 2
    nothing = torch.zeros(1, 1, 10, 10, dtype=torch.float64)
    assert one.gap(one.start(nothing, op), nothing, op).tolist() == [0]


def test_what_the_operator_does_not_see_is_bounded_by_eps_alone():
    """There the Ritz values are the bound of the spectrum itself."""
    op = ti.imaging.Inpainting((torch.arange(36) < 18).reshape(1, 6, 6))
    one, x = cell(eps=0.5), torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    u = torch.zeros(1, 1, 6, 6, 2, dtype=torch.float64)
    x[..., 5, :] = 1.0
    gap = one.gap((x, u), op.A(0 * x), op)
    assert gap.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(gap, energy(one, x, op.A(0 * x), op), rtol=0.02, atol=0)
        assert gap >= (1 - 1e-12) * energy(one, x, op.A(0 * x), op)


def test_the_report_has_the_gap_and_what_follows():
    op, y = case("coils")
    layer = Reconstruction(cell(), ti.Anderson(window=10, rtol=1e-5, max_steps=2000), on_failure="raise")
    with torch.no_grad():
        x, exact = layer(y, op), solved(layer.cell, y, op)[0]
    report, width = layer.report, 2 * exact[0].numel()
    true = ((x - exact).abs().square().flatten(1).sum(1) / width).sqrt()
    assert bool((energy(layer.cell, x, y, op) - energy(layer.cell, exact, y, op) <= report.gap).all())
    assert bool((true <= report.bound).all())
    torch.testing.assert_close(report.bound, (2 * report.gap / (layer.cell.eps * width)).sqrt())
    assert bool((report.distance <= report.bound).all())
    assert bool((true < 10 * report.distance).all())
    assert bool((report.distance < 30 * true).all())
    assert f"duality gap up to {report.gap.max():.2e}" in str(report)
    layer(y, op)
    assert layer.report.gap is None  # a step of training does not wait for it
    with torch.no_grad():
        other = Reconstruction(Gradient(Ridge(filters=2, taps=3).double()).double())
        other(y, op)
    assert other.report.gap is None


@pytest.mark.parametrize("count", [3, 40])
def test_every_sample_has_the_image_that_it_has_alone(count):
    op, y = blur(n=12, batch=count), images(count)
    with torch.no_grad():
        y = op.A(y) * torch.logspace(0, 1, count, dtype=y.dtype).reshape(-1, 1, 1, 1)
        layer = Reconstruction(cell(0.05), ti.Anderson(rtol=1e-6, max_steps=500), on_failure="raise")
        together, report = layer(y, op), layer.report
        for i in range(0, count, 9):
            rows = torch.tensor([i])
            torch.testing.assert_close(layer(y[rows], op.take(rows)), together[rows], rtol=1e-8, atol=0)
            assert layer.report.steps.tolist() == report.steps[rows].tolist()
            torch.testing.assert_close(layer.report.gap, report.gap[rows], rtol=1e-4, atol=0)


@pytest.mark.parametrize("frame", [Differences(), Filters(filters=3, taps=3).double()], ids=["iso", "filters"])
def test_the_gradient_is_that_of_the_minimum(frame):
    """By measurement, maps, weight and filters."""
    physics = coils(n=6, count=2)
    lines = physics.mask.unsqueeze(-1)
    one = cell(0.1, weight=0.05, eps=1e-2, frame=frame)
    y = Sense(physics.maps, lines).A(torch.complex(images(1, 6), images(1, 6, seed=1)).squeeze(1)).detach()
    layer = Reconstruction(one, TIGHT, ti.Implicit(ti.GMRES(rtol=1e-9, restart=80, max_steps=400)), on_failure="ignore")
    learned = list(one.parameters())

    def loss(y, maps):
        found = layer(y, Sense(maps, lines))
        return (found * torch.linspace(-1, 1, 36).reshape(1, 6, 6)).real.sum() + found.imag.square().sum()

    leaves = [y, physics.maps.detach()]
    ways = [torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(3)) for v in leaves + learned]
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    slopes = torch.autograd.grad(loss(*inputs), inputs + learned)
    ends = []
    with torch.no_grad():
        for shift in (1e-4, -1e-4):
            for parameter, way in zip(learned, ways[2:], strict=True):
                parameter += shift * way
            ends.append(loss(*(leaf + shift * way for leaf, way in zip(leaves, ways, strict=False))))
            for parameter, way in zip(learned, ways[2:], strict=True):
                parameter -= shift * way
    slope = sum((grad.conj() * way).real.sum() for grad, way in zip(slopes, ways, strict=True))
    assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / 2e-4, rel=1e-4)


def test_certificates_say_what_is_proved():
    op, y = case("blur", 8)
    solver = ti.Anderson(window=10, rtol=1e-8, atol=0, max_steps=3000)
    adjoint = ti.Implicit(ti.GMRES(rtol=1e-8, restart=60, max_steps=600))
    layer = Reconstruction(cell(0.05, eps=1e-2), solver, adjoint)
    certificate = diagnose.certify(layer, y, op, starts=1)
    assert certificate.ok
    assert bool((certificate.report.gap < 1e-8).all())
    assert "duality gap up to" in str(certificate)
    assert len(certificate.as_dict()["duality_gap"]) == 2
    sharp = diagnose.certify(Reconstruction(cell(eps=1e-2), solver, adjoint, on_failure="ignore"), y, op, starts=0)
    assert not sharp.ok  # duals that are not unique: nothing proves the gradient, while the image is proved
    assert bool((sharp.report.gap < 1e-5).all())
    plain = Reconstruction(Gradient(Ridge(filters=2, taps=3).double(), eps=1e-2).double())
    without = diagnose.certify(plain, y, op, starts=0)
    assert "duality gap" not in str(without)
    assert "duality_gap" not in without.as_dict()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: PrimalDual(Ridge()), TypeError, "got a Ridge, expected an Analysis.*or the cell Gradient"),
        (lambda: cell(balance=0.0), ValueError, "balance=0.0"),
        (lambda: cell(eps=-1.0), ValueError, "eps=-1.0"),
        (lambda: Gradient(Analysis(Differences(), weight=1.0)), ValueError, "no known Lipschitz constant"),
    ],
)
def test_impossible_options_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
