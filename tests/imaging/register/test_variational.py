"""Deformations as minima: known fields, penalties against closed forms, derivatives of both orders, failures."""

from dataclasses import replace

import pytest
import torch

import torchimplicit as ti
from tests.imaging.register.phantoms import texture
from tests.imaging.register.test_demons import pair
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.lattice import Lattice
from torchimplicit.imaging.register.warp import difference

D = torch.float64
TIGHT = ti.NewtonCG(rtol=1e-10, atol=1e-12, max_steps=100)
ADJOINT = ti.Implicit(ti.CG(rtol=1e-11, max_steps=1000))


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        ((28, 24), register.Variational()),
        ((28, 24), register.BSpline()),
        ((8, 9, 7), register.BSpline(weight=0.01, levels=(1,), solver=ti.NewtonCG(rtol=0.1, atol=0.1))),
    ],
)
def test_a_deformed_image_is_brought_back(kind, size):
    fixed, moving = pair(*size, reach=1.5 if len(size) == 2 else 0.7)
    result = register.align(fixed, moving, kind)
    before, after = ((each - fixed).square().mean().item() for each in (moving, result.warp(moving)))
    assert after < (0.3 if len(size) == 2 else 0.5) * before  # eight voxels are three control points
    assert result.folds().item() == 0
    points = result.fixed.points(fixed)[None]
    back = result.inverse().transform(result.transform(points))
    inside = ((points > 2) & (points < min(size) - 3)).all(2)
    assert register.target_error(back, points)[inside].max() < 0.2  # an inverse is interpolated between voxels


@pytest.mark.parametrize("similarity", [register.LNCC(), register.MutualInformation(bins=16)])
def test_other_similarities_lead_there_too(similarity):
    fixed, moving = pair(24, 20, reach=1.0)
    other = moving if isinstance(similarity, register.LNCC) else (-moving).exp()  # neither rising nor linear
    result = register.align(fixed, other, register.Variational(similarity, weight=10.0, levels=(1,)))
    before, after = (similarity.value(*similarity.prepared(fixed, each)).item() for each in (other, result.warp(other)))
    assert after > before + 0.05


@pytest.mark.parametrize("penalty", ["diffusion", "bending"])
def test_penalties_are_integrals(penalty):
    """Those of waves by differences, on voxels exactly, of splines on ever finer ones."""
    units, like = (1.0, 1.5), torch.zeros((), dtype=D)
    lattice = Lattice.of_voxels((9, 8), units, penalty, like)
    a = torch.randn(1, 1, 9, 8, dtype=D, generator=torch.Generator().manual_seed(0))
    u = lattice.values(a)
    torch.testing.assert_close(lattice.amplitudes(u), a)
    torch.testing.assert_close(u.square().mean(), a.square().sum())
    mirrored = torch.nn.functional.pad(u, (1, 1, 1, 1), mode="replicate")  # of half samples, once
    second = [mirrored[..., 2:, 1:-1] + mirrored[..., :-2, 1:-1] - 2 * u]
    second += [(mirrored[..., 1:-1, 2:] + mirrored[..., 1:-1, :-2] - 2 * u) / units[1] ** 2]
    if penalty == "bending":
        expected = (second[0] + second[1]).square().mean()
    else:
        expected = (u.diff(dim=2).square().sum() + (u.diff(dim=3) / units[1]).square().sum()) / 72
    torch.testing.assert_close((lattice.weights * a.square()).sum(), expected)


def test_penalties_of_splines_are_their_integrals():
    edges = (1.0, 1.5)
    a = torch.randn(1, 1, 5, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    n = (401, 301)
    ends = [torch.ones(m, dtype=D).index_fill_(0, torch.tensor([0, m - 1]), 0.5) / (m - 1) for m in n]  # trapezoids
    for penalty in ("diffusion", "bending"):
        lattice = Lattice.of_splines(n, (5, 4), edges, penalty, a)
        steps = [4 * edges[0] / 400, 3 * edges[1] / 300]
        u = torch.nn.functional.pad(lattice.values(a), (3, 3, 3, 3), mode="reflect")[0]
        terms = [difference(u, axis + 1) / step for axis, step in enumerate(steps)]
        if penalty == "bending":
            terms = [difference(s, axis + 1) / step for s in terms for axis, step in enumerate(steps)]
        total = sum(torch.einsum("xy,x,y->", term[0, 3:-3, 3:-3].square(), *ends) for term in terms)
        torch.testing.assert_close((lattice.weights * a.square()).sum(), total, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [register.Variational, register.BSpline])
@pytest.mark.parametrize("similarity", [register.SSD(), register.LNCC(window=3)])
def test_gradients_by_images_and_weight_are_those_of_differences(kind, similarity):
    fixed, moving = pair(10, 9, reach=0.8)
    weight, aim = torch.tensor(0.3, dtype=D), texture(10, 9, seed=9)[:, 0]

    def energy(fixed, moving, weight):
        options = kind(similarity, weight=weight, levels=(1,), solver=TIGHT)
        return (aim * register.align(fixed, moving, options, adjoint=ADJOINT).displacement()).sum()

    inputs = [each.clone().requires_grad_() for each in (fixed, moving, weight)]
    gradients = torch.autograd.grad(energy(*inputs), inputs)
    for which, gradient in enumerate(gradients):
        way = texture(10, 9, seed=7) if which < 2 else torch.ones((), dtype=D)
        ends = []
        for h in (1e-4, -1e-4):
            shifted = [each.detach() for each in inputs]
            shifted[which] = shifted[which] + h * way
            ends.append(energy(*shifted))
        torch.testing.assert_close((gradient * way).sum(), (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", [register.Variational, register.BSpline])
def test_the_second_derivative_by_the_weight_and_an_image_is_that_of_differences(kind):
    fixed, moving = pair(8, 7, reach=0.8)
    log, way = torch.tensor(-1.0, dtype=D), texture(8, 7, seed=7)

    def slope(log, h):
        """Of a validation loss by the weight's logarithm."""
        log = log.detach().requires_grad_()
        options = kind(weight=log.exp(), levels=(1,), solver=TIGHT)
        u = register.align(fixed + h * way, moving, options, adjoint=ADJOINT).displacement()
        return log, torch.autograd.grad(u.square().sum(), log, create_graph=True)[0]

    h = torch.zeros((), dtype=D, requires_grad=True)
    at, first = slope(log, h)
    second = torch.autograd.grad(first, (at, h))
    for which, gradient in enumerate(second):
        ends = [slope(log + s * (which == 0), h.detach() + s * (which == 1))[1] for s in (1e-4, -1e-4)]
        torch.testing.assert_close(gradient, (ends[0] - ends[1]).detach() / 2e-4, rtol=1e-4, atol=1e-9)


def test_the_minimum_does_not_depend_on_levels_or_the_start_and_every_option_changes_it():
    fixed, moving = pair(24, 24, reach=1.0)
    options: dict = {"weight": 0.5, "solver": ti.NewtonCG(rtol=1e-6, atol=1e-9, max_steps=100)}
    first = register.align(fixed, moving, register.Variational(levels=(1,), **options))
    two = register.align(fixed, moving, register.Variational(levels=(2, 1), **options))
    torch.testing.assert_close(two.displacement(), first.displacement(), atol=1e-5, rtol=0)
    again = register.align(fixed, moving, register.Variational(levels=(1,), **options), initial=first)
    assert again.report.steps.item() <= 2 < first.report.steps.item()
    changes = [{"weight": 2.0}, {"penalty": "diffusion"}, {"similarity": register.SSD()}]
    for change in changes:
        other = register.align(fixed, moving, register.Variational(**{"levels": (1,), **options, **change}))
        assert (other.displacement() - first.displacement()).abs().max() > 1e-3


def test_a_residual_is_about_as_long_as_the_step_that_is_left_in_voxels_whatever_the_images_and_the_grid():
    solver = ti.NewtonCG(rtol=1e-9, atol=1e-9, max_steps=100)
    for size, scale in (((12, 12), 1.0), ((40, 40), 1e3)):
        fixed, moving = (scale * each for each in pair(*size, reach=0.8))
        kind = register.Variational(levels=(1,), solver=solver)
        exact = register.align(fixed, moving, kind)
        rough = register.align(fixed, moving, replace(kind, solver=ti.LBFGS(rtol=0.0, atol=0.1)))
        left = (exact.displacement() - rough.displacement()).square().mean().sqrt()
        assert left < 0.1
        assert 0.1 * left < rough.report.residual.item() < 1.0


def test_volumes_are_solved_at_half_of_their_resolution_unless_told_otherwise():
    fixed, moving = pair(24, 26, 13, reach=0.7)
    seen: list[tuple[int, int]] = []
    found = register.align(fixed, moving, register.Variational(), progress=lambda *at: seen.append(at))
    assert seen == [(0, 2), (1, 2)]
    assert found.transform.parts[0].vectors.shape == (1, 3, 12, 13, 13)
    assert found.displacement().shape == (1, 3, 24, 26, 13)


def test_an_energy_that_hardly_smooths_and_does_not_arrive_says_so():
    fixed, moving = pair(20, 20, reach=2.0)
    rough = fixed + 0.5 * torch.randn(fixed.shape, dtype=D, generator=torch.Generator().manual_seed(0))
    kind = register.Variational(register.SSD(), "diffusion", weight=1e-6, levels=(1,), solver=ti.LBFGS(max_steps=30))
    found = register.align(rough, moving, kind, on_failure="ignore")
    assert found.report.status.item() == Status.MAX_STEPS
    assert found.folds().item() > 0
    with pytest.raises(ti.ConvergenceError, match="max_steps"):
        register.align(rough, moving, kind)


def test_a_free_form_deformation_is_of_millimetres_and_the_same_on_any_lattice_of_its_own():
    fixed, moving = pair(8, 9, 8, reach=0.7)
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=D))
    images = [Image(each[0, 0], affine) for each in (fixed, moving)]
    solver = ti.NewtonCG(rtol=0.1, atol=1e-3)
    first = register.align(*images, register.BSpline(levels=(1,), solver=solver))
    again = register.align(*(each.reoriented("PSL") for each in images), register.BSpline(levels=(1,), solver=solver))
    points = Grid.of(images[0]).points(fixed)[None]
    torch.testing.assert_close(again.transform(points), first.transform(points), atol=1e-6, rtol=0)
    free = first.transform.parts[0]
    assert isinstance(free, register.FreeForm)
    dense = free.displacement()
    torch.testing.assert_close(dense(points), free(points), atol=1e-9, rtol=0)
    finer = register.align(*images, register.BSpline(levels=(1,), spacing=3.0, solver=solver)).transform.parts[0]
    assert finer.vectors[0, 0].numel() > free.vectors[0, 0].numel()
    with pytest.raises(ValueError, match="FreeForm: got vectors"):
        register.FreeForm(free.vectors[:, :1], free.lattice, free.grid)


def test_pairs_that_fail_have_a_status_and_disturb_no_other():
    fixed, moving = pair(14, 14)
    bad = torch.cat([moving, moving.clone(), torch.ones_like(moving), moving])
    bad[1, 0, 2, 2] = torch.inf
    batch = fixed.expand(4, -1, -1, -1)
    for kind in (register.Variational(levels=(1,)), register.BSpline(levels=(1,))):
        result = register.align(batch, bad, kind, on_failure="ignore")
        expected = [Status.CONVERGED, Status.NON_FINITE, Status.INFEASIBLE, Status.CONVERGED]
        assert result.report.status.tolist() == expected
        assert result.displacement()[1:3].abs().max() < 1e-12
        good = register.align(batch, moving.expand(4, -1, -1, -1), kind)
        assert torch.equal(result.displacement()[0], good.displacement()[0])


def test_kinks_are_warned_of_and_impossible_options_refused():
    with pytest.warns(UserWarning, match="kinks at voxels"):
        register.Variational(interpolation="linear")
    for options in (
        {"similarity": 3},
        {"penalty": "elastic"},
        {"weight": 0.0},
        {"weight": torch.ones(2)},
        {"levels": (3,)},
        {"levels": ()},
        {"interpolation": "nearest"},
    ):
        with pytest.raises(ValueError, match="expected"):
            register.Variational(**options)
    with pytest.raises(ValueError, match="expected"):
        register.BSpline(spacing=0.5)
    with pytest.raises(TypeError, match="instance of Solver"):
        register.Variational(solver=1)
