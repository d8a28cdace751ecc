"""Proximal maps: Moreau's identity, optimality by other methods, derivatives, kinks, and their place in a splitting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import torchimplicit as ti
from torchimplicit.optim import projection, prox
from torchimplicit.optim.proximal import total_variation_1d

DOUBLE = torch.float64
GROUPS = [0, 1, 1, 0, 2, 2]
TIGHT = {
    "solver": ti.Anderson(window=10, rtol=1e-12, atol=1e-13, max_steps=3000),
    "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12, restart=30, max_steps=2000)),
}


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gradient(x):
    """Forward differences of images, `(..., h, w, 2)`."""
    across = torch.nn.functional.pad(x.diff(dim=-1), (0, 1))
    return torch.stack([torch.nn.functional.pad(x.diff(dim=-2), (0, 0, 0, 1)), across], -1)


# Name: proximal map, its function, dimensions of a point.
MAPS = {
    "l1": (prox.l1, lambda x: x.abs().sum(-1), 1),
    "l2": (prox.l2, lambda x: x.norm(dim=-1), 1),
    "linf": (prox.linf, lambda x: x.abs().amax(-1), 1),
    "squared_l2": (prox.squared_l2, lambda x: x.square().sum(-1) / 2, 1),
    "group": (
        lambda x, step=1.0, **options: prox.group(x, step, GROUPS, **options),
        lambda x: x[..., [0, 3]].norm(dim=-1) + x[..., 1:3].norm(dim=-1) + x[..., 4:].norm(dim=-1),
        1,
    ),
    "nuclear": (prox.nuclear, lambda x: torch.linalg.matrix_norm(x, "nuc"), 2),
    "total_variation": (prox.total_variation, lambda x: x.diff(dim=-1).abs().sum(-1), 1),
    "total_variation_2d": (
        lambda x, step=1.0, **options: prox.total_variation_2d(x, step, **TIGHT, **options),
        lambda x: gradient(x).abs().sum((-1, -2, -3)),
        2,
    ),
    "total_variation_2d, isotropic": (
        lambda x, step=1.0, **options: prox.total_variation_2d(x, step, isotropic=True, **TIGHT, **options),
        lambda x: gradient(x).norm(dim=-1).sum((-1, -2)),
        2,
    ),
}
EXACT = [name for name in MAPS if "2d" not in name]
each = pytest.mark.parametrize("name", MAPS)
exact = pytest.mark.parametrize("name", EXACT)


def points(name, seed=0, batch=5):
    return 1.5 * random(seed, batch, *((6,) if MAPS[name][2] == 1 else (3, 4)))


STEPS = torch.tensor([0.3, 0.5, 0.9, 0.1, 0.6], dtype=DOUBLE)


@each
@settings(max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), step=st.floats(0.05, 3.0))
def test_no_other_point_is_better(name, seed, step):
    function, penalty, _ = MAPS[name]
    x = points(name, seed)

    def value(y):
        return step * penalty(y) + (y - x).flatten(1).square().sum(1) / 2

    y = function(x, step)
    lowest = value(y)
    # A minimum of a strongly convex function by one: anything else is worse by half of its squared distance.
    for k in range(6):
        move = 10.0**-k * random(seed + 1 + k, *x.shape)
        worse = move.flatten(1).square().sum(1) / 2
        assert (value(y + move) >= lowest + worse - 1e-10 * (1 + lowest)).all()
    toward = y + 0.1 * (x - y)
    assert (value(toward) >= lowest + (toward - y).flatten(1).square().sum(1) / 2 - 1e-10 * (1 + lowest)).all()


def onto_group_balls(x, radius):
    y = x.clone()
    for g in range(3):
        members = [i for i in range(6) if GROUPS[i] == g]
        y[:, members] = projection.l2_ball(x[:, members], radius)
    return y


def onto_spectral_ball(x, radius):
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return (left * values.minimum(radius[:, None])[:, None]) @ right


# The conjugate of a norm is the indicator of the dual norm's ball.
CONJUGATES = {
    "l1": projection.linf_ball,
    "l2": projection.l2_ball,
    "linf": projection.l1_ball,
    "squared_l2": lambda x, step: x * (step / (1 + step))[:, None],
    "group": onto_group_balls,
    "nuclear": onto_spectral_ball,
}


@pytest.mark.parametrize("name", CONJUGATES)
def test_moreau_a_point_is_the_sum_of_both_proximal_points(name):
    # alpha f has the conjugate alpha f*(. / alpha): for a norm the ball's indicator whatever alpha.
    function, _, _ = MAPS[name]
    x = points(name)
    assert torch.allclose(function(x, STEPS) + CONJUGATES[name](x, STEPS), x, rtol=1e-13, atol=1e-13)


@exact
def test_the_conjugate_by_moreau_and_its_own_conjugate(name):
    function, _, event = MAPS[name]
    x = points(name)
    steps = STEPS.reshape(-1, *[1] * event)
    conjugate = prox.conjugate(function, event)
    assert torch.allclose(function(x) + conjugate(x), x, rtol=1e-13, atol=1e-13)
    if name in CONJUGATES and name != "squared_l2":  # an indicator's does not depend on the step
        assert torch.allclose(conjugate(x, STEPS), CONJUGATES[name](x, torch.ones(5, dtype=DOUBLE)), atol=1e-13)
    assert torch.allclose(function(x, STEPS) + steps * conjugate(x / steps, 1 / STEPS), x, rtol=1e-12, atol=1e-13)
    again = prox.conjugate(conjugate, event)
    assert torch.allclose(again(x, STEPS), function(x, STEPS), rtol=1e-12, atol=1e-12)


@exact
@settings(max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), step=st.floats(0.0, 4.0), whole=st.booleans())
def test_firmly_nonexpansive(name, seed, step, whole):
    function, _, _ = MAPS[name]
    first, second = points(name, seed), points(name, seed + 1)
    if whole:
        first, second = first.round(), second.round()
    moved = (function(first, step) - function(second, step)).flatten(1)
    assert (moved.square().sum(1) <= (moved * (first - second).flatten(1)).sum(1) + 1e-12).all()


@each
def test_a_step_of_zero_and_one_that_is_large(name):
    function, _, event = MAPS[name]
    x = points(name)
    assert torch.allclose(function(x, 0.0), x, atol=1e-9)
    limit = x.flatten(1).mean(1) if "variation" in name else torch.zeros(5, dtype=DOUBLE)
    if name != "squared_l2":
        assert torch.allclose(function(x, 50.0), limit.reshape(-1, *[1] * event).expand_as(x), atol=1e-9)


@each
def test_derivatives_of_first_and_second_order(name):
    function, _, _ = MAPS[name]
    x, steps = points(name, batch=2), STEPS[:2].clone()
    if "2d" in name:
        x, steps = x[:1, :2, :3], steps[:1]
    inputs = x.requires_grad_(), steps.requires_grad_()
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-4)


@each
def test_function_transforms(name):
    function, _, _ = MAPS[name]
    x, y = points(name), function(points(name), STEPS)
    value, forward = jvp(function, (x, STEPS), (random(1, *x.shape), random(2, 5)))
    assert torch.allclose(value, y, atol=1e-9)
    by_point, by_step = jacrev(function, argnums=(0, 1))(x, STEPS)
    product = torch.tensordot(by_point, random(1, *x.shape), x.dim()) + by_step @ random(2, 5)
    assert torch.allclose(forward, product, atol=1e-8)
    assert torch.allclose(jacfwd(function)(x, STEPS), by_point, atol=1e-8)
    mapped = vmap(function)(x[:, None], STEPS[:, None])[:, 0]
    assert torch.allclose(mapped, y, rtol=1e-13, atol=1e-9)

    def loss(x):
        return function(x, STEPS[:2]).pow(3).sum()

    assert torch.allclose(hessian(loss)(x[:2]), jacrev(jacrev(loss))(x[:2]), atol=1e-7)


@exact
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_and_more_batch_dimensions(name, dtype):
    function, _, _ = MAPS[name]
    x = points(name).to(dtype)
    y = function(x, 0.5)
    assert y.dtype == dtype
    assert torch.allclose(y.double(), function(x.double(), 0.5), rtol=8 * torch.finfo(dtype).eps, atol=2e-6)
    assert torch.allclose(function(x.expand(2, *x.shape), STEPS), function(x, STEPS).expand(2, *x.shape))
    assert function(x[:0], 0.5).shape == x[:0].shape


@each
def test_a_sample_that_is_not_finite_touches_no_other(name):
    function, _, _ = MAPS[name]
    x, steps = points(name).requires_grad_(), STEPS.clone().requires_grad_()
    y = function(x, steps)
    rows = [0, 2, 3, 4]
    y[rows].square().sum().backward()
    nonfinite, own = x.detach().clone(), STEPS.clone().requires_grad_()
    nonfinite.view(5, -1)[1, 2] = math.nan
    with pytest.raises(ti.ConvergenceError, match=r"non_finite: sample 1"):
        function(nonfinite, own)
    z = function(nonfinite.requires_grad_(), own, on_failure="ignore")
    assert z[1].isnan().all()
    assert torch.allclose(z[rows], y[rows], atol=1e-9)
    z.square().sum().backward()
    assert torch.allclose(nonfinite.grad[rows], x.grad[rows], atol=1e-8)
    assert not nonfinite.grad[1].any()
    assert torch.allclose(own.grad, steps.grad, atol=1e-8)


@pytest.mark.parametrize(("value", "step"), [(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 2.0)])
@exact
def test_kinks_have_derivatives_between_zero_and_one(name, value, step):
    function, _, _ = MAPS[name]
    x = torch.full((3, 3) if name == "nuclear" else (6,), value, dtype=DOUBLE)
    step = torch.tensor(step, dtype=DOUBLE)
    jacobian = jacrev(function)(x, step).reshape(x.numel(), -1)
    assert torch.allclose(jacobian, jacobian.T, atol=1e-13)
    values = torch.linalg.eigvalsh(jacobian)
    assert values.min() > -1e-13
    assert values.max() < 1 + 1e-13
    assert jacrev(function, argnums=1)(x, step).isfinite().all()
    assert hessian(lambda x: function(x, step).square().sum())(x).isfinite().all()


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [2.0, 2.0, 0.1], [2.0, 0.1, 0.1], [2.0, 0.0, 0.0]], ids=str)
def test_nuclear_derivatives_at_equal_singular_values(values):
    left, right = torch.linalg.qr(random(3, 3, 3)).Q, torch.linalg.qr(random(4, 4, 3)).Q
    X = ((left * torch.tensor(values, dtype=DOUBLE)) @ right.T).requires_grad_()
    step = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(prox.nuclear, (X, step), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(prox.nuclear, (X, step))
    size = torch.linalg.svdvals(prox.nuclear(X, step))
    assert torch.allclose(size, (torch.tensor(values, dtype=DOUBLE) - 0.7).clamp_min(0), atol=1e-13)


def test_weights_of_entries():
    x, weights = random(5, 3, 6), random(6, 6).abs()
    assert torch.allclose(prox.l1(x, 0.5, weights), x.sign() * (x.abs() - 0.5 * weights).clamp_min(0))
    assert torch.equal(prox.l1(x, 1.0, 0.5), prox.l1(x, 0.5))
    assert torch.allclose(prox.squared_l2(x, 0.5, weights), x / (1 + 0.5 * weights))
    assert torch.equal(prox.squared_l2(x, 1.0, 0.5), prox.squared_l2(x, 0.5))


@pytest.mark.parametrize("function", [prox.l1, prox.squared_l2])
def test_steps_of_entries(function):
    # Of as many dimensions as the points: one per entry, shared between samples or not. Else one per sample.
    x, steps, weights = random(5, 6, 6), random(7, 6, 6).abs(), random(8, 6).abs()
    y = function(x, steps, weights)
    for i, j in ((0, 1), (3, 2), (5, 5)):
        alone = function(x[i, j : j + 1], float(steps[i, j]), float(weights[j]))
        assert torch.allclose(y[i, j : j + 1], alone)
    assert torch.equal(function(x, steps[:1]), function(x, steps[:1].expand(6, 6)))
    assert torch.equal(function(x, steps[0]), function(x, steps[0][:, None].expand(6, 6)))
    inputs = tuple(tensor.clone().requires_grad_() for tensor in (x, steps, weights))
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_groups_of_very_different_sizes():
    x = torch.tensor([[1e30, 1e30, 3e-10, 4e-10]])
    y = prox.group(x, 2e-10, [0, 0, 1, 1])
    assert torch.allclose(y[0, 2:] / 1e-10, torch.tensor([1.8, 2.4]), rtol=1e-5)


# --- total variation --------------------------------------------------------------------------------------------------


def check_dual(x, y, step):
    """What proves a point: the dual is within its bounds, and at the right one where the signal jumps."""
    dual, rise = (y - x).cumsum(-1), y.diff(dim=-1)
    small = 1e-12 * x.abs().max() * x.shape[-1]
    assert dual[..., -1].abs().max() <= small
    assert (dual.abs() <= step + small).all()
    assert (dual[..., :-1] * rise - step * rise.abs()).abs().max() <= small * (1 + rise.abs().max())


@pytest.mark.parametrize("kind", ["noise", "walk", "whole", "stairs", "far"])
@pytest.mark.parametrize("n", [2, 5, 50, 600])
def test_total_variation_is_exact(kind, n):
    x = random(n, 16, n)
    x = {
        "noise": x,
        "walk": x.cumsum(1),
        "whole": (2 * x).round(),
        "stairs": (torch.arange(n) * 5 // n) + (2 * x).round() / 4,
        "far": 1e5 + 0.01 * x,
    }[kind]
    for step in (0.05, 0.5, 1.0, n / 4):
        check_dual(x, prox.total_variation(x, step), step)


def test_total_variation_one_edge_a_round(monkeypatch):
    x = random(7, 8, 12).cumsum(1)
    expected = prox.total_variation(x, 0.7)
    monkeypatch.setattr(total_variation_1d, "_PATIENCE", 0)
    assert torch.allclose(prox.total_variation(x, 0.7), expected, rtol=1e-13)


def test_total_variation_says_when_its_rounds_run_out(monkeypatch):
    monkeypatch.setattr(total_variation_1d, "_PATIENCE", 0)
    monkeypatch.setattr(total_variation_1d, "_ROUNDS", -10)  # 1000 - 10 * 98
    x = torch.stack([torch.zeros(98, dtype=DOUBLE), random(8, 98)])
    with pytest.raises(ti.ConvergenceError, match=r"total_variation, edges: 1 of 2 .*\n  max_steps: sample 1"):
        prox.total_variation(x, 0.01)


def test_total_variation_of_an_image_that_varies_in_one_direction():
    x = random(9, 3, 7)
    for iso in (False, True):
        for image in (x[:, :, None].expand(3, 7, 5), x[:, None, :].expand(3, 5, 7)):
            y = prox.total_variation_2d(image, STEPS[:3], isotropic=iso, **TIGHT)
            signal = prox.total_variation(x, STEPS[:3])
            expected = signal[:, :, None] if image.shape[1] == 7 else signal[:, None, :]
            assert torch.allclose(y, expected.expand_as(y), atol=1e-8)
    single = prox.total_variation_2d(x[:, None, :], 0.4, **TIGHT)
    assert torch.allclose(single[:, 0], prox.total_variation(x, 0.4), atol=1e-8)


def test_total_variation_of_images_reports_by_sample_and_keeps_the_precision():
    x = torch.stack([torch.zeros(6, 6), random(10, 6, 6).float()])
    with pytest.raises(ti.ConvergenceError, match="sample 1"):
        prox.total_variation_2d(x, 0.5, solver=ti.Anderson(max_steps=2))
    with pytest.warns(ti.ConvergenceWarning, match="1 of 2"):
        y = prox.total_variation_2d(x, 0.5, solver=ti.Anderson(max_steps=2), on_failure="warn")
    assert y.dtype == torch.float32
    y = prox.total_variation_2d(x, 0.5)
    assert torch.allclose(y, prox.total_variation_2d(x.double(), 0.5, **TIGHT).float(), atol=2e-3)


# --- with the rest ----------------------------------------------------------------------------------------------------


class Sparse(ti.nn.MonotoneLinear):
    """A cell whose activation is a proximal map, of a weight that is learnt."""

    def __init__(self, function):
        super().__init__(6)
        self.function, self.weight_of_penalty = function, torch.nn.Parameter(torch.tensor(0.3))

    def prox(self, z, step):
        return self.function(z, step * self.weight_of_penalty)


SPLIT = ["l1", "l2", "linf", "squared_l2", "group", "total_variation"]


@pytest.mark.parametrize("split", [ti.ForwardBackward, ti.PeacemanRachford])
@pytest.mark.parametrize("name", SPLIT)
def test_proximal_maps_are_the_activation_of_a_splitting(name, split):
    torch.manual_seed(0)
    cell = Sparse(MAPS[name][0]).double()
    x = random(11, 4, 6)
    solver = ti.Anderson(rtol=1e-11, atol=1e-12, max_steps=500)
    splitting = split(cell, step=None)

    def solve():
        z = ti.fixed_point(splitting, torch.zeros_like(x), x, solver=solver, adjoint=ti.Implicit(ti.LU())).value
        return splitting.output(z)

    z = solve()
    assert torch.allclose(cell(z, x), z, atol=1e-9)
    (slope,) = torch.autograd.grad(z.square().sum(), cell.weight_of_penalty)
    with torch.no_grad():
        step, values = 1e-5, []
        for sign in (1, -1):
            cell.weight_of_penalty += sign * step
            values.append(solve().square().sum())
            cell.weight_of_penalty -= sign * step
    assert torch.allclose(slope, (values[0] - values[1]) / (2 * step), rtol=1e-5)


def test_a_projection_is_the_proximal_map_of_its_indicator():
    onto = prox.indicator(projection.simplex, 2.0)
    x = random(12, 3, 6)
    for step in (1.0, 0.1, STEPS[:3]):
        assert torch.equal(onto(x, step), projection.simplex(x, 2.0))
    # The conjugate of the simplex's indicator is its support function: twice the largest entry.
    support = prox.conjugate(onto)(x, 0.7)
    assert torch.allclose(x, support + 0.7 * projection.simplex(x / 0.7, 2.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: prox.l1(x, -1.0), r"l1: a step or weight is impossible, step=-1.0; expected step >= 0"),
        (lambda x: prox.squared_l2(x, 1.0, -1.0), r"squared_l2: .* weights=-1.0; expected weights >= 0"),
        (lambda x: prox.l1(x, torch.tensor([[1.0, 1, 1, -1], [1, 1, 1, 1]])), r"in sample 0; expected step >= 0"),
        (lambda x: prox.l1(x, math.inf), r"l1: got step=inf, expected a finite number"),
        (
            lambda x: prox.l1(x, 1.0, torch.tensor([1.0, -1, 1, 1])),
            r"impossible in samples 0, 1; expected weights >= 0",
        ),
        (lambda x: prox.l2(x, torch.tensor([1.0, -1])), r"l2: .* in sample 1, step=-1;"),
        (lambda x: prox.nuclear(x, -1.0), r"nuclear: .* step >= 0"),
        (lambda x: prox.total_variation(x, -1.0), r"total_variation: a step is negative"),
        (lambda x: prox.total_variation_2d(x, torch.tensor(-1.0)), r"total_variation_2d: a step is negative"),
        (lambda x: prox.linf(x, torch.ones(4)), r"step of shape \(4,\) for points of shape \(2, 4\), expected \(2,\)"),
        (lambda x: prox.conjugate(prox.l1)(x, 0.0), r"conjugate: .* expected step > 0"),
        (lambda x: prox.group(x, 1.0, [0, 1, 1]), r"got groups \[0, 1, 1\], expected .*\(4,\)"),
        (lambda x: prox.group(x, 1.0, [0, 1, 1, -1]), r"from 0"),
        (lambda x: prox.total_variation_2d(x[0]), r"got shape \(4,\), expected \(..., m, n\)"),
    ],
)
def test_impossible_steps_and_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 4))


def test_groups_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="expected integers"):
        prox.group(torch.zeros(2, 4), 1.0, torch.zeros(4))
