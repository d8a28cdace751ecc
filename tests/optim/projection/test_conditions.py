"""Projections at any size: points meet their conditions to their own rounding, masks are exact, failures are told."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev, vmap

import torchimplicit as ti
from torchimplicit.optim import projection, prox
from torchimplicit.optim.projection.batch import Batch

DOUBLE = torch.float64
FAR = st.integers(-30, 30).map(lambda power: 10.0**power)
dtypes = st.sampled_from([torch.float32, DOUBLE])
often = settings(max_examples=60, derandomize=True)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def rounding(dtype, n):
    return 8 * torch.finfo(dtype).eps * (n + 8)


def masked(x, seed, masks):
    """Some entries, of every sample but the first of each, are `-inf`."""
    gone = (random(seed, *x.shape) > 0.5) if masks else torch.zeros(x.shape, dtype=torch.bool)
    gone[..., 0] = False
    return x.masked_fill(gone, -math.inf), gone


def check_obtuse(x, y, support, play):
    """What proves a projection: no point of the set lies in the direction of `x - y` beyond `y`, by its `support`."""
    x, y = x.double(), y.double()
    apart = support(x - y) - ((x - y) * y).sum(-1)
    size = ((x - y).abs() * y.abs()).sum(-1) + support(x - y).abs()
    assert (apart <= play * size).all(), (apart, size)


# --- at any size ------------------------------------------------------------------------------------------------------


@often
@given(seed=st.integers(0, 2**31 - 1), dtype=dtypes, size=FAR, total=FAR, n=st.integers(1, 40), masks=st.booleans())
def test_simplex(seed, dtype, size, total, n, masks):
    x, gone = masked((size * random(seed, 4, n)).to(dtype), seed + 1, masks)
    radius = torch.tensor(total, dtype=dtype)
    y = projection.simplex(x, total)
    assert ((y.sum(1) - radius).abs() <= rounding(dtype, n) * radius).all()
    assert (y >= 0).all()
    assert not y[gone].any()
    kept = x.masked_fill(gone, -1e300 if dtype == DOUBLE else -1e37).double()
    top = kept.amax(1, keepdim=True)
    push = kept - top - y.double()  # the same for all that are not zero, less for the others
    level = push.masked_fill(y == 0, -math.inf).amax(1, keepdim=True)
    play = rounding(dtype, n) * (total + torch.finfo(dtype).tiny)
    assert (push <= level + play).all()
    assert (push >= level - play)[y > 0].all()
    few = projection.sparse_simplex(x, 3, total)
    assert ((few > 0).sum(1) <= 3).all()
    assert ((few.sum(1) - radius).abs() <= rounding(dtype, n) * radius).all()
    assert not few[gone].any()


@often
@given(
    seed=st.integers(0, 2**31 - 1),
    dtype=dtypes,
    size=FAR,
    part=st.floats(0.0, 1.0),
    cap=FAR,
    n=st.integers(1, 40),
    masks=st.booleans(),
)
def test_capped_simplex(seed, dtype, size, part, cap, n, masks):
    x, gone = masked((size * random(seed, 4, n)).to(dtype), seed + 1, masks)
    caps = (cap * (0.1 + random(seed + 2, 4, n).abs())).to(dtype)
    total = part * caps.double().masked_fill(gone, 0).sum(1).to(dtype) * (1 - 4 * torch.finfo(dtype).eps)
    y = projection.capped_simplex(x, total.to(dtype), caps)
    total = total.to(dtype)
    assert ((y.double().sum(1) - total.double()).abs() <= rounding(dtype, n) * total).all()
    assert ((y >= 0) & (y <= caps)).all()
    assert not y[gone].any()
    # The entries between their bounds are moved by the same, those at zero by no less, those at their caps by no more.
    moved = (x.masked_fill(gone, 0).double() - y.double()).masked_fill(gone, math.inf)
    play = 8 * torch.finfo(dtype).eps * (n + 8) * (size * 6 + caps.double().amax(1))
    could_fall = moved.masked_fill((y == 0) | gone, math.inf).amin(1)
    could_rise = moved.masked_fill((y == caps) | gone, -math.inf).amax(1)
    assert (could_rise <= could_fall + play).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("cap", [1.0, 1e6, 1e8, 1e30])
@pytest.mark.parametrize("total", [1e-30, 1e-10, 1.0])
def test_far_caps_and_small_totals_are_the_simplex(dtype, cap, total):
    x = random(0, 8, 12).to(dtype).requires_grad_()
    y, wanted = projection.capped_simplex(x, total, cap), projection.simplex(x, total)
    torch.testing.assert_close(y, wanted, rtol=64 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps * total)
    weight = random(1, 8, 12).to(dtype)
    for mine, theirs in zip(
        torch.autograd.grad((y * weight).sum(), x), torch.autograd.grad((wanted * weight).sum(), x), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    for far in (cap, math.inf):
        section = projection.box_section(x, 0.0, far, torch.ones(12, dtype=dtype), total)
        torch.testing.assert_close(
            section, wanted, rtol=64 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps * total
        )


@often
@given(seed=st.integers(0, 2**31 - 1), dtype=dtypes, size=FAR, width=FAR, normal=FAR, n=st.integers(1, 20))
def test_box_section(seed, dtype, size, width, normal, n):
    tiny = torch.finfo(dtype).tiny
    x, a = (size * random(seed, 4, n)).to(dtype), (normal * random(seed + 1, 4, n)).to(dtype)
    lower = (width * random(seed + 2, 4, n)).to(dtype)
    upper = lower + (width * random(seed + 3, 4, n).abs()).to(dtype)
    inside = lower.double() + torch.rand(4, n, generator=torch.Generator().manual_seed(seed)) * (upper - lower).double()
    b = (a.double() * inside).sum(1)
    if not (b.abs() < torch.finfo(dtype).max / 4).all() or normal * width < 1e4 * tiny:
        return
    y = projection.box_section(x, lower, upper, a, b.to(dtype))
    assert ((lower <= y) & (y <= upper)).all()
    terms = a.double() * y.double()
    reach = terms.abs().sum(1) + (a.double().abs() * torch.maximum(lower.abs(), upper.abs()).double()).sum(1)
    assert ((terms.sum(1) - b).abs() <= rounding(dtype, n) * reach).all()


@often
@given(seed=st.integers(0, 2**31 - 1), dtype=dtypes, size=FAR, radius=FAR, n=st.integers(1, 30))
def test_balls_and_cones(seed, dtype, size, radius, n):
    x, play = (size * random(seed, 4, n)).to(dtype), rounding(dtype, n)
    own = torch.tensor(radius, dtype=dtype).double()
    for ball, length, dual in (
        (projection.l1_ball, lambda v: v.abs().sum(-1), lambda v: v.abs().amax(-1)),
        (projection.l2_ball, lambda v: v.norm(dim=-1), lambda v: v.norm(dim=-1)),
        (projection.linf_ball, lambda v: v.abs().amax(-1), lambda v: v.abs().sum(-1)),
    ):
        y = ball(x, radius)
        assert (length(y.double()) <= own * (1 + play)).all()
        inside = length(x.double()) <= own * (1 - play)
        assert torch.equal(y[inside], x[inside])
        outside = length(x.double()) >= own * (1 + play)
        assert (length(y.double())[outside] >= own * (1 - play)).all()
        check_obtuse(x, y, lambda v, dual=dual: own * dual(v), 4 * play)
    if n > 1:
        y = projection.second_order_cone(x).double()
        for v in (y, y - x.double()):
            assert (v[:, 1:].norm(dim=1) <= v[:, 0] + play * x.double().norm(dim=1)).all()
        assert ((y * (y - x.double())).sum(1).abs() <= play * x.double().square().sum(1)).all()


@often
@given(seed=st.integers(0, 2**31 - 1), dtype=dtypes, size=FAR, other=FAR, n=st.integers(1, 20))
def test_planes_orders_and_matrices(seed, dtype, size, other, n):
    x, a = (size * random(seed, 4, n)).to(dtype), (other * random(seed + 1, 4, n)).to(dtype)
    play = 4 * rounding(dtype, n)
    if size * other < 1e30:
        b = (size * other * random(seed + 2, 4)).to(dtype)
        y = projection.halfspace(x, a, b).double()
        terms = a.double() * y
        assert (terms.sum(1) <= b + play * (terms.abs().sum(1) + b.abs())).all()
    y = projection.isotonic(x, a.abs() + other)
    assert (y.diff(dim=1) >= 0).all()
    mass = (a.abs() + other).double() / other
    push = (mass * (x.double() - y.double())).cumsum(1)
    reach = (mass * x.double().abs()).sum(1)
    assert (push >= -play * reach[:, None]).all()
    assert (push[:, -1].abs() <= play * reach).all()
    X = (size * random(seed, 3, 4, 4)).to(dtype)
    Y = projection.semidefinite_cone(X).double()
    rest = Y - (X.double() + X.double().mT) / 2
    for part in (Y, rest):
        assert (torch.linalg.eigvalsh(part).amin(1) >= -play * X.double().abs().amax((1, 2))).all()


# --- masks ------------------------------------------------------------------------------------------------------------

MASKED = {
    "simplex": lambda x: projection.simplex(x, 0.7),
    "sparse_simplex": lambda x: projection.sparse_simplex(x, 2),
    "capped_simplex": lambda x: projection.capped_simplex(x, 1.0, 0.6),
    "box_section": lambda x: projection.box_section(x, -1.0, 1.0, torch.tensor([1.0, -2, 0.5, 1, 1]).to(x), 0.3),
    "box": lambda x: projection.box(x, -1.0, 1.0),
    "linf_ball": projection.linf_ball,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("name", MASKED)
def test_masked_entries_are_the_limit_of_far_ones_and_have_no_gradient(name, dtype):
    x = random(3, 6, 5).to(dtype)
    gone = torch.zeros(6, 5, dtype=torch.bool)
    gone[1, 2] = gone[2, 0] = gone[2, 4] = gone[5, 1] = True
    far = x.masked_fill(gone, -1e4).requires_grad_()
    out = x.masked_fill(gone, -math.inf).requires_grad_()
    y, wanted = MASKED[name](out), MASKED[name](far)
    torch.testing.assert_close(y, wanted)
    for tensor, point in ((out, y), (far, wanted)):
        (point * random(4, 6, 5).to(dtype)).sum().backward()
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[gone].any()
    torch.testing.assert_close(out.grad, far.grad)
    if dtype == DOUBLE:
        assert jacrev(jacrev(MASKED[name]))(out.detach()[1]).isfinite().all()
        torch.testing.assert_close(vmap(MASKED[name])(out.detach()), y.detach())


def test_masked_cones():
    x = torch.tensor([[-math.inf, 3.0, 4.0], [0.0, 3.0, 4.0]], dtype=DOUBLE, requires_grad=True)
    y = projection.second_order_cone(x)
    y.sum().backward()
    assert y[0].tolist() == [0, 0, 0]
    assert not x.grad[0].any()
    assert torch.allclose(y[1], torch.tensor([2.5, 1.5, 2.0], dtype=DOUBLE))
    X = random(5, 4, 4)
    X[1, 1] = -math.inf
    X.requires_grad_()
    Y = projection.semidefinite_cone(X)
    kept = [0, 2, 3]
    torch.testing.assert_close(Y[kept][:, kept], projection.semidefinite_cone(X[kept][:, kept]))
    assert not Y[1].any()
    Y.square().sum().backward()
    assert not X.grad[1].any()
    assert X.grad.isfinite().all()


# --- what is told -----------------------------------------------------------------------------------------------------

LOST = {
    "simplex, all masked": (lambda x, **how: projection.simplex(x, **how), [-math.inf] * 3),
    "simplex, inf": (lambda x, **how: projection.simplex(x, **how), [0.0, math.inf, 0.0]),
    "l1_ball": (lambda x, **how: projection.l1_ball(x, **how), [0.0, -math.inf, 0.0]),
    "l2_ball": (lambda x, **how: projection.l2_ball(x, **how), [0.0, -math.inf, 0.0]),
    "box, no bound": (lambda x, **how: projection.box(x, -math.inf, 1.0, **how), [0.0, -math.inf, 0.0]),
    "section, no bound": (
        lambda x, **how: projection.box_section(x, torch.full((3,), -math.inf), 1.0, torch.ones(3), 0.0, **how),
        [0.0, -math.inf, 0.0],
    ),
    "isotonic": (lambda x, **how: projection.isotonic(x, **how), [0.0, -math.inf, 0.0]),
    "second_order_cone": (lambda x, **how: projection.second_order_cone(x, **how), [0.0, -math.inf, 0.0]),
    "prox.l1": (lambda x, **how: prox.l1(x, **how), [0.0, -math.inf, 0.0]),
    "conjugate": (lambda x, **how: prox.conjugate(prox.l1, **how)(x), [0.0, math.nan, 0.0]),
}


@pytest.mark.parametrize("name", LOST)
def test_what_has_no_answer_is_told_by_sample(name):
    function, row = LOST[name]
    x = torch.tensor([[0.3, 0.2, 0.1], row, [0.1, 0.2, 0.3]], requires_grad=True)
    with pytest.raises(ti.ConvergenceError, match=r"1 of 3 samples could not be .*\n  non_finite: sample 1 ") as error:
        function(x)
    assert [ti.Status(s).name for s in error.value.report.status.tolist()] == ["CONVERGED", "NON_FINITE", "CONVERGED"]
    with pytest.raises(ti.ConvergenceError, match="sample 1"):
        vmap(function)(x)
    with pytest.warns(ti.ConvergenceWarning, match="sample 1"):
        y = function(x, on_failure="warn")
    assert y.isnan().any(1).tolist() == [False, True, False]
    function(x, on_failure="ignore").square().sum().backward()
    assert x.grad[1].tolist() == [0, 0, 0]
    assert x.grad.isfinite().all()


def test_numbers_that_half_precision_does_not_hold():
    x = torch.zeros(2, 3, dtype=torch.float16)
    with pytest.raises(ti.ConvergenceError, match=r"non_finite: samples? 1 |non_finite: sample 1"):
        projection.simplex(x, torch.tensor([1.0, 1e6]))


def test_a_mask_that_leaves_too_little_is_refused():
    x = torch.tensor([[0.0, 1.0, -math.inf], [0.0, -math.inf, -math.inf]])
    with pytest.raises(ValueError, match=r"capped_simplex: the set is empty in sample 1, total=1, min=0, max=0.6"):
        projection.capped_simplex(x, 1.0, 0.6)


def test_inside_of_a_solve_the_solve_tells():
    split = ti.optim.ProjectedGradient(lambda z, c: (c * z).sum(1) + z.square().sum(1), projection.simplex, step=0.5)
    cost = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    with pytest.raises(ti.ConvergenceError, match=r"FixedPoint: 1 of 2 .*\n  non_finite: sample 1"):
        ti.fixed_point(split, torch.zeros(2, 2), cost)


@pytest.mark.parametrize("name", ["simplex", "capped_simplex", "l2_ball"])
def test_a_point_that_misses_its_condition_is_told(name, monkeypatch):
    # No input that was tried does it: here what is computed is off by a millionth.
    x, function = random(6, 2, 4).float(), getattr(projection, name)
    finish = Batch.finish
    monkeypatch.setattr(Batch, "finish", lambda self, y, gap, play: finish(self, y, gap + 1e-6, 1e-8))
    with pytest.raises(ti.ConvergenceError, match=r"stagnated: sample 0 \(off by 1.0.e-06\).*\n.*please report"):
        function(x, 0.5)


@pytest.mark.parametrize(("dtype", "least"), [(DOUBLE, 5e-324), (torch.float32, 1.4e-45)])
def test_sets_of_the_smallest_size_there_is(dtype, least):
    """Numbers of that size have no digits to round: a point that misses its condition by one of them meets it."""
    x = (2 * random(0, 5, 7)).round().to(dtype)  # with ties, which such a size cannot be shared out among
    few = torch.tensor(3 * least, dtype=dtype)
    for size in (torch.tensor(least, dtype=dtype), few):
        for point in (projection.simplex(x, size), projection.l1_ball(x, size), projection.l2_ball(x, size)):
            assert float(point.abs().max()) <= 4 * least
        for near in (prox.linf(x, size), prox.l1(x, size), prox.l2(x, size)):
            torch.testing.assert_close(near, x)
