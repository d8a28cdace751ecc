import dataclasses
import io
import json
import math

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import diagnose

EXACT = {"solver": ti.Newton(linear_solver=ti.LU(), rtol=1e-14, atol=0), "adjoint": ti.Implicit(ti.LU())}


class Cell(nn.Module):
    """A map of a weight, a bias and the input; `kind` says which."""

    def __init__(self, kind, gain=0.9, width=6):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(gain * torch.linalg.qr(torch.randn(width, width).double())[0])
        self.bias = nn.Parameter(torch.randn(width).double())

    def forward(self, z, x):
        if self.kind == "linear":
            return z @ self.weight.T + self.bias + x
        if self.kind == "quadratic":
            return 0.1 * (z @ self.weight.T).square() + 0.3 * torch.cos(z) + self.bias * x
        weight = self.weight if self.kind == "tanh" else 0.4 * torch.eye(len(self.bias)) + self.weight.triu(1)
        return torch.tanh(z @ weight.T + self.bias + x)


def wide(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gradient(layer, x, cotangent, z0=None):
    x = x.clone().requires_grad_()
    value = layer(x, z0=z0)
    grads = torch.autograd.grad(value, [*layer.parameters(), x], cotangent, materialize_grads=True)
    return value.detach(), torch.cat([grad.flatten() for grad in grads])


def true_error(layer, x, cotangent):
    """Of the layer's gradient by all tensors, against the same by LU, at a point converged to rounding."""
    value, got = gradient(layer, x, cotangent)
    _, expected = gradient(ti.nn.DEQ(layer.cell, on_failure="ignore", **EXACT), x, cotangent, z0=value)
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("dense", [128, 0], ids=["dense", "estimated"])
@pytest.mark.parametrize("kind", ["linear", "tanh", "quadratic", "triangular"])
def test_the_true_error_of_the_gradient_is_below_the_bound_and_near_the_estimate(kind, dense):
    layer = ti.nn.DEQ(Cell(kind), on_failure="ignore")
    x, cotangent = wide(4, 6), wide(4, 6)
    errors = []
    for forward, backward in ((1e-1, 1e-8), (1e-2, 1e-2), (1e-4, 1e-4), (1e-8, 1e-3), (1e-8, 1e-8)):
        layer.solver = ti.Anderson(rtol=forward, atol=0, max_steps=200)
        layer.adjoint = ti.Implicit(ti.GMRES(rtol=backward))
        certificate = diagnose.certify(layer, x, cotangent=cotangent, starts=0, dense=dense)
        errors.append(true_error(layer, x, cotangent))
        assert errors[-1] <= certificate.gradient_bound < 1e3 * errors[-1]
        assert certificate.gradient_error == pytest.approx(errors[-1], rel=0.1)
    assert errors[0] > 1e-3  # what was asked of the estimates spans many orders
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("dense", [128, 0], ids=["dense", "estimated"])
def test_per_sample_numbers_are_those_of_the_definitions(dense):
    layer = ti.nn.DEQ(Cell("triangular"), solver=ti.Anderson(rtol=1e-3), adjoint=ti.Implicit(ti.GMRES(rtol=1e-2)))
    x, g = wide(5, 6), wide(5, 6)
    certificate = diagnose.certify(layer, x, cotangent=g, dense=dense)
    z = layer(x).detach()
    f = layer.cell(z, x)
    close = {"rtol": 2e-3 if dense == 0 else 1e-9, "atol": 0}

    def same(got, expected):
        torch.testing.assert_close(got, expected.detach(), **close)

    same(certificate.residual, (f - z).norm(dim=1) / z.norm(dim=1))
    j = torch.func.vmap(torch.func.jacrev(layer.cell))(z, x)
    b = torch.eye(6) - j
    same(certificate.conditioning.radius, torch.linalg.eigvals(j).abs().amax(1))
    same(certificate.conditioning.norm, torch.linalg.matrix_norm(j, 2))
    same(certificate.condition, torch.linalg.cond(b))
    assert certificate.conditioning.exact == (dense > 0)

    offset = torch.zeros_like(x, requires_grad=True)  # its gradient is the layer's own u
    shifted = ti.nn.DEQ(lambda z, x, offset, cell: cell(z, x) + offset, solver=layer.solver, adjoint=layer.adjoint)
    (u,) = torch.autograd.grad(shifted(x, offset, layer.cell), offset, g)
    left = g - (b.mT @ u.unsqueeze(2)).squeeze(2)
    same(certificate.backward, left.norm(dim=1) / g.norm(dim=1))
    assert (certificate.backward > 1e-5).all()

    exact = ti.nn.DEQ(shifted.cell, **EXACT)
    star = exact(x, offset, layer.cell)
    (best,) = torch.autograd.grad(star, offset, g)
    error = (u - best).norm(dim=1) / best.norm(dim=1)
    torch.testing.assert_close(certificate.adjoint_error, error, rtol=1e-4, atol=0)
    assert (error <= certificate.adjoint_bound).all()
    same(certificate.point_error, (z - star).norm(dim=1) / star.norm(dim=1))


def test_a_contraction_is_certified(make_layer, x):
    certificate = diagnose.certify(make_layer(), x)
    assert certificate.ok
    assert certificate.certified.all()
    assert certificate.regular.all()
    assert certificate.unique is None  # never claimed
    assert certificate.uniqueness == "locally unique (I - J regular); evidence for global: 4 of 4 starts agree"
    text = str(certificate)
    assert text.startswith("Certificate: holds; 5 of 5 samples certified")
    assert "every plain step comes closer" in text
    assert "Try" not in text
    assert diagnose.certify(make_layer(), x, starts=0).uniqueness == "locally unique (I - J regular)"


def test_several_fixed_points_are_found_by_the_starts():
    layer = ti.nn.DEQ(lambda z, x: torch.tanh(3 * z) + 0.1 * x)
    certificate = diagnose.certify(layer, wide(6, 2))
    assert certificate.regular.all()
    assert certificate.unique is False
    assert (certificate.elsewhere > 0).any()
    assert "not unique: starts arrive at different points" in certificate.uniqueness


def test_a_loose_tolerance_does_not_pass_for_another_point(make_layer, x):
    certificate = diagnose.certify(make_layer(solver=ti.Picard(rtol=0.2)), x)
    assert certificate.unique is None
    assert not certificate.ok
    assert "the error of the point is the larger part: a smaller rtol than the solver's 0.2" in str(certificate)


def test_the_bound_is_the_error_itself_for_one_unknown_on_the_near_side():
    layer = ti.nn.DEQ(lambda z, x: 0.5 * z.square() + x, solver=ti.Picard(rtol=0.1), adjoint=ti.Implicit(ti.LU()))
    x = torch.tensor([[0.3], [0.4], [0.45]]).double()
    certificate = diagnose.certify(layer, x)
    z, star = layer(x).detach(), 1 - (1 - 2 * x).sqrt()
    error = ((1 - star) / (1 - z) - 1).abs().squeeze(1)  # of u = g / (1 - z)
    assert (error > 0.03).all()
    torch.testing.assert_close(certificate.adjoint_error, error)
    torch.testing.assert_close(certificate.adjoint_bound, error)


@pytest.mark.parametrize("turn", [0.0, 0.3], ids=["zero", "rounding"])
@pytest.mark.parametrize("dense", [128, 0], ids=["dense", "estimated"])
def test_a_singular_system_is_not_certified(dense, turn):
    upper = turn * torch.ones(3, 3, dtype=torch.float64).triu(1)
    basis = torch.linalg.matrix_exp(upper - upper.T)
    plane = basis @ torch.diag(torch.tensor([1.0, 0.5, 0.5])).double() @ basis.T  # a line of fixed points
    layer = ti.nn.DEQ(lambda z, x: z @ plane + 0 * x, init=torch.ones_like, on_failure="raise")
    certificate = diagnose.certify(layer, wide(4, 3), dense=dense)
    assert certificate.report.converged
    assert not certificate.regular.any()
    assert not certificate.certified.any()
    assert (certificate.condition > 1e12).all()
    assert certificate.unique is False
    assert math.isinf(certificate.gradient_bound)
    assert "I - J is singular" in str(certificate)
    assert "0 of 4 samples locally unique" in certificate.uniqueness


def test_where_two_fixed_points_meet_a_finite_condition_is_no_claim():
    layer = ti.nn.DEQ(lambda z, x: z - z.square() + 0 * x, init=lambda x: x, solver=ti.Newton())
    certificate = diagnose.certify(layer, torch.full((3, 1), 0.1, dtype=torch.float64))
    assert certificate.report.converged
    assert certificate.condition.isfinite().all()
    assert not certificate.regular.any()  # I - J = 2 z vanishes on the way to the fixed point


@pytest.mark.parametrize("adjoint", [ti.Phantom(steps=2), ti.Implicit(ti.Neumann(terms=2)), ti.Unrolled()])
def test_the_bias_of_an_approximate_adjoint_shows(adjoint):
    layer = ti.nn.DEQ(Cell("tanh"), adjoint=adjoint, solver=ti.Picard(max_steps=200))
    x, cotangent = wide(4, 6), wide(4, 6)
    certificate = diagnose.certify(layer, x, cotangent=cotangent)
    error = true_error(layer, x, cotangent)
    assert certificate.gradient_error == pytest.approx(error, rel=0.05)
    assert error <= certificate.gradient_bound
    if isinstance(adjoint, ti.Unrolled):
        assert certificate.ok
    else:
        assert not certificate.ok
        assert (certificate.backward > 0.02).all()
        words = "approximate by design" if isinstance(adjoint, ti.Phantom) else "backward residual is the larger part"
        assert words in str(certificate)


@pytest.mark.parametrize(
    ("cell", "options", "words"),
    [
        (lambda z, x: 2 * z + x, {"solver": ti.Picard()}, "diverged"),
        (lambda z, x: z + 1 + x.square(), {}, "stagnated"),
        (lambda z, x: 0.9 * z + x, {"solver": ti.Picard(max_steps=2)}, "max_steps"),
        (lambda z, x: 0.5 * z + x / 0, {}, "non_finite"),
    ],
)
def test_what_does_not_converge_is_said_and_nothing_is_raised(cell, options, words):
    certificate = diagnose.certify(ti.nn.DEQ(cell, on_failure="raise", **options), wide(3, 2))
    assert not certificate.ok
    assert not certificate.certified.any()
    assert not certificate.regular.any()
    assert certificate.unique is None
    assert f"Try: {words}" in str(certificate)
    assert certificate.table()
    certificate.plot(io.BytesIO())
    json.dumps(certificate.as_dict(), allow_nan=False)


def test_a_sample_is_certified_where_nothing_speaks_against_it(make_layer, x):
    certificate = diagnose.certify(make_layer(), x)
    assert certificate.certified.tolist() == [True] * 5
    first, tolerance = torch.arange(5) == 0, certificate.tolerance
    errors = torch.where(first, 1.01 * tolerance, 0.99 * tolerance)
    status = torch.where(first, int(ti.Status.STAGNATED), int(ti.Status.CONVERGED))
    for fault in (
        {"coupled": first},
        {"regular": ~first},
        {"adjoint_error": errors},
        {"report": dataclasses.replace(certificate.report, status=status)},
    ):
        other = dataclasses.replace(certificate, **fault)
        assert other.certified.tolist() == [False, True, True, True, True], fault
        assert not other.ok
    assert not dataclasses.replace(certificate, gradient_error=1.01 * tolerance).ok


def test_where_no_fixed_point_is_found_no_error_is_known():
    layer = ti.nn.DEQ(lambda z, x: z - 0.3 * (torch.cosh(z - 0.3) + x.square()), on_failure="ignore")
    certificate = diagnose.certify(layer, wide(3, 2))
    assert certificate.point_error.tolist() == [torch.inf] * 3
    assert certificate.gradient_error == torch.inf


def test_one_bad_sample_leaves_the_others_their_certificate(make_layer, x):
    layer = make_layer()
    good = diagnose.certify(layer, x)
    x[2] = torch.nan
    certificate = diagnose.certify(layer, x)
    assert certificate.certified.tolist() == [True, True, False, True, True]
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(certificate.backward[others], good.backward[others])
    assert certificate.gradient_error < 1e-3  # the bad one adds nothing to it
    assert not certificate.ok
    assert "(not finite for 1)" in str(certificate)
    assert certificate.table().splitlines()[1].split()[:2] == ["2", "non_finite"]


def test_large_states_modules_nests_and_layers_with_nothing_to_train():
    large = diagnose.certify(ti.nn.DEQ(Cell("tanh", gain=0.8, width=200)), wide(3, 200))
    assert large.ok
    assert not large.conditioning.exact

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def step(self, z, x, gate):
            return {"h": torch.tanh(0.4 * self.linear(z["h"]) + gate(x["h"]))}

    assert diagnose.certify(ti.nn.DEQ(Model().step), {"h": torch.randn(2, 3)}, nn.Linear(3, 3)).ok
    count = torch.ones(2, 3, dtype=torch.int64)
    assert diagnose.certify(ti.nn.DEQ(lambda z, x: 0.5 * z + x, init=lambda x: torch.zeros(2, 3)), count).ok


def test_the_layer_stays_untouched(make_layer, x):
    layer = make_layer(warm_start=True)
    layer(x)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    report, last, state = layer.report, layer._last, torch.get_rng_state()
    with torch.no_grad():
        diagnose.certify(layer, x)
    assert layer.report is report
    assert layer._last is last
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert not x.requires_grad


def test_dictionary_and_table(make_layer, x):
    certificate = diagnose.certify(make_layer(), x)
    record = certificate.as_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["ok"] is True
    assert record["gradient_error"] == certificate.gradient_error
    assert record["spectral_radius"] == certificate.conditioning.radius.tolist()
    assert record["status"] == ["converged"] * 5
    table = certificate.table(worst=2).splitlines()
    assert int(table[1].split()[0]) == int(certificate.adjoint_error.argmax())
    assert "(3 samples more)" in table[-1]


def test_plot_shows_every_sample_and_the_bounds(make_layer, x):
    certificate = diagnose.certify(make_layer(), x)
    target = io.BytesIO()
    figure = certificate.plot(target)
    assert target.getvalue().startswith(b"\x89PNG")
    left, right = figure.axes
    bounds, *points = left.collections
    assert [len(each.get_offsets()) for each in points] == [5, 5, 5]
    tops = [segment[1][1] for segment in bounds.get_segments()]
    assert tops == pytest.approx(certificate.adjoint_bound.tolist())
    assert len(right.collections[0].get_offsets()) == 5
    assert left.get_yscale() == right.get_yscale() == "log"


def test_options_change_the_run_and_impossible_ones_are_refused(make_layer, x):
    layer = make_layer()
    first = diagnose.certify(layer, x)
    assert diagnose.certify(layer, x).as_dict() == first.as_dict()
    assert not torch.equal(diagnose.certify(layer, x, seed=1).backward, first.backward)
    assert not diagnose.certify(layer, x, tolerance=1e-9).ok
    assert diagnose.certify(layer, x, starts=2).arrived.tolist() == [2] * 5
    for name, value in (("starts", -1), ("dense", 0.5), ("tolerance", 0.0)):
        with pytest.raises(ValueError, match=rf"certify\({name}=.*expected"):
            diagnose.certify(layer, x, **{name: value})
    with pytest.raises(ValueError, match=r"certify\(cotangent=...\) has shape \(5, 2\)"):
        diagnose.certify(layer, x, cotangent=x[:, :2])


class Deblur(nn.Module):
    """A gradient step on `|K z - y|^2 / 2 + ridge |z|^2 / 2`, `K` a blur: convex, its Jacobian symmetric."""

    def __init__(self, ridge, size=16, dtype=torch.float64):
        super().__init__()
        row = torch.exp(-0.5 * (torch.arange(-4, 5) / 1.5) ** 2).to(dtype)
        kernel = row.outer(row) / row.sum() ** 2
        self.kernel, self.ridge = nn.Parameter(kernel[None, None]), nn.Parameter(torch.tensor(ridge, dtype=dtype))
        self.size = size

    def forward(self, z, y):
        blurred = nn.functional.conv2d(z, self.kernel, padding=4) - y
        return z - nn.functional.conv_transpose2d(blurred, self.kernel, padding=4) - self.ridge * z

    def layer(self, rtol, atol=0.0):
        solver = ti.Anderson(rtol=rtol, atol=atol, max_steps=3000, window=10)
        return ti.nn.DEQ(self, solver, ti.Implicit(ti.CG(rtol=rtol, max_steps=2000)), on_failure="ignore")


@pytest.mark.parametrize("ridge", [2e-3, 6e-4])
def test_a_badly_conditioned_convex_layer_is_told_from_a_broken_one(ridge):
    cell, y = Deblur(ridge), wide(1, 1, 16, 16)
    cotangent = wide(1, 1, 16, 16)
    exact = torch.linalg.svdvals(torch.func.jacrev(cell)(y, y).detach().reshape(256, 256) - torch.eye(256))
    for rtol in (1e-3, 1e-8):
        certificate = diagnose.certify(cell.layer(rtol), y, cotangent=cotangent, starts=1)
        assert certificate.regular.all()
        condition = float(exact[0] / exact[-1])
        assert float(certificate.condition) == pytest.approx(condition, rel=0.3)
        assert 0 < float(certificate.conditioning.monotone) <= float(exact[-1]) * (1 + 1e-9)
        error = true_error(cell.layer(rtol), y, cotangent)
        assert error <= certificate.gradient_bound < 1e3 * error
        assert certificate.ok == (rtol < 1e-4)
        text = str(certificate)
        assert "strongly monotone by" in text
        assert ("badly conditioned, not broken" in text) == (not certificate.ok)


def test_where_no_solve_is_more_accurate_than_the_layers_the_bound_stands_for_the_error():
    cell = Deblur(1e-3, dtype=torch.float32)
    y = torch.randn(1, 1, 16, 16)
    certificate = diagnose.certify(cell.layer(1e-4), y, starts=0)
    assert certificate.gradient_error == certificate.gradient_bound < math.inf
    assert (certificate.adjoint_error == certificate.adjoint_bound).all()
    assert "no accurate solution" not in str(certificate)


def test_an_absolute_tolerance_that_stops_a_tight_solve_is_named():
    certificate = diagnose.certify(Deblur(1e-3).layer(1e-9, atol=1e-4), wide(1, 1, 16, 16), starts=0, tolerance=1e-5)
    assert "atol=0, for the solver's atol=0.0001 is met long before its rtol" in str(certificate)
