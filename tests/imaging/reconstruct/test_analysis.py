"""Priors of few coefficients: their conjugates, proximal maps, slopes, and learned filters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit.imaging import Analysis, Differences, Filters, Ridge, Wavelets

FRAMES = {
    "isotropic": lambda: Differences(),
    "anisotropic": lambda: Differences(joint=False),
    "wavelets": lambda: Wavelets(2, 2),
    "filters": lambda: Filters(filters=4, taps=3).double(),
}
CASES = st.tuples(
    st.sampled_from(list(FRAMES)),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([torch.float64, torch.complex128]),
    st.integers(0, 10**6),
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def prior(name, width=0.0, weight=0.7):
    return Analysis(FRAMES[name](), weight=weight, width=width).double()


def inner(a, b):
    return (a.conj() * b).real.flatten(1).sum(1)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_frames_have_their_adjoint_and_their_norm(name, dtype):
    frame, x = FRAMES[name](), draw(2, 3, 6, 7, dtype=dtype)
    c = frame.analyse(x)
    v = draw(*c.shape, seed=1, dtype=dtype)
    torch.testing.assert_close((c.conj() * v).sum(), (x.conj() * frame.adjoint(v)).sum())
    torch.testing.assert_close(frame.gram(x), frame.adjoint(c))
    matrix = frame.analyse(torch.eye(42, dtype=torch.float64).reshape(42, 6, 7)).reshape(42, -1)
    square = torch.linalg.matrix_norm(matrix, 2) ** 2
    assert 0.75 * frame.bound < square <= frame.bound * (1 + 1e-12)
    assert frame.analyse(x[:0]).shape == c[:0].shape


@settings(max_examples=30)
@given(CASES)
def test_fenchel_and_young(case):
    """`g(c) + g*(p) >= <c, p>`, with equality where `p` is a slope, which cut coefficients of a proximal step are."""
    name, width, dtype, seed = case
    one, x = prior(name, width), draw(2, 6, 7, seed=seed, dtype=dtype)
    c = one.frame.analyse(x)
    p = one.feasible(3 * draw(*c.shape, seed=seed + 1, dtype=dtype))
    assert bool((one.misfit(x, p) > 0).all())
    gap = one.penalty(c) + one.conjugate(p) - inner(c, p)
    torch.testing.assert_close(one.misfit(x, p), gap)
    torch.testing.assert_close(one.feasible(p), p)
    sigma, scale = (torch.tensor(v, dtype=torch.float64).reshape(2, 1, 1) for v in ([0.5, 2.0], [1.0, 0.1]))
    found = one.dual(scale.unsqueeze(-1) * p, sigma, scale) / scale.unsqueeze(-1)
    torch.testing.assert_close(one.feasible(found), found)
    slope = (p - found) / sigma.unsqueeze(-1)  # of g* at the proximal point: then both are a pair
    torch.testing.assert_close(one.penalty(slope) + one.conjugate(found), inner(slope, found), rtol=1e-9, atol=1e-9)


@settings(max_examples=20)
@given(CASES)
def test_a_width_rounds_the_penalty_off_and_gives_it_a_slope(case):
    name, _, dtype, seed = case
    sharp, smooth = prior(name), prior(name, 0.3)
    x = draw(2, 6, 7, seed=seed, dtype=dtype).requires_grad_()
    energy = smooth.energy(x)
    count = smooth.frame.analyse(x)[0].numel()
    assert bool((energy <= sharp.energy(x)).all())
    assert bool((energy >= sharp.energy(x) - 0.7 * 0.15 * count).all())
    (slope,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(smooth.slope(x), slope)
    z = draw(2, 6, 7, seed=seed + 1, dtype=dtype)
    steep, far = smooth.slope(x) - smooth.slope(z), x - z
    assert bool((inner(steep, far) >= inner(steep, steep) / smooth.lipschitz() - 1e-12).all())
    torch.testing.assert_close(smooth(x), x - smooth.slope(x) / smooth.lipschitz())


def test_total_variation_is_counted_by_jumps():
    x = torch.zeros(1, 8, 8, dtype=torch.float64)
    x[:, 2:, 3:] = 2
    assert prior("anisotropic").energy(x).item() == pytest.approx(0.7 * 2 * (5 + 6))
    assert prior("isotropic").energy(x).item() == pytest.approx(0.7 * 2 * (5 + 6))
    x[:, 2, 3] = 0  # the pixel there now sees both jumps
    assert prior("anisotropic").energy(x).item() == pytest.approx(0.7 * 2 * (5 + 6))
    assert prior("isotropic").energy(x).item() == pytest.approx(0.7 * 2 * (4 + 5 + 2**0.5))


def test_filters_start_at_total_variation():
    x = torch.zeros(1, 12, 12, dtype=torch.float64)
    x[:, 4:8, 3:9] = 1
    filters = Analysis(Filters(filters=8, taps=3), weight=1.0).double()
    assert filters.energy(x).item() == pytest.approx(20, rel=0.2)
    with torch.no_grad():
        filters.frame.weight[2:] = 0
    assert filters.energy(x).item() == pytest.approx(20)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Analysis(torch.nn.ReLU(), weight=1.0), TypeError, "got a ReLU.*try Differences"),
        (lambda: Analysis(Ridge(), weight=1.0), TypeError, "got a Ridge"),
        (lambda: Analysis(Differences(), weight=0.0), ValueError, "weight=0.0"),
        (lambda: Analysis(Differences(), weight=1.0, width=-1.0), ValueError, "width=-1.0"),
        (lambda: prior("isotropic")(torch.zeros(1, 4, 4)), ValueError, "PrimalDual, or a width > 0"),
        (lambda: prior("isotropic").slope(torch.zeros(1, 4, 4)), ValueError, "PrimalDual, or a width > 0"),
        (lambda: Filters(filters=1), ValueError, "filters=1"),
        (lambda: Filters(taps=4), ValueError, "odd"),
        (lambda: Filters().analyse(torch.zeros(4, 4)), ValueError, r"Filters: got images of shape \(4, 4\)"),
    ],
)
def test_impossible_options_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
