"""Free deformations: known fields, balance, folds, derivatives of the equilibrium, and pairs that fail."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.register.phantoms import texture
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.axes import gaussian
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.warp import difference

D = torch.float64


def bumps(*size, seed=3, reach=1.5, width=4.0):
    """A smooth displacement of at most `reach` voxels, nothing at the border."""
    noise = torch.randn(1, len(size), *size, dtype=D, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian(noise, [width] * len(size))
    for axis, n in enumerate(size, 2):
        window = torch.sin(torch.pi * torch.arange(n, dtype=D) / (n - 1))
        smooth = smooth * window.view(-1, *[1] * (len(size) + 1 - axis))
    return reach * smooth / smooth.abs().max()


def pair(*size, seed=0, **options):
    fixed = texture(*size, seed=seed, width=1.5)
    return fixed, register.warp(fixed, bumps(*size, **options), interpolation="cubic")


@pytest.mark.parametrize("form", ["velocity", "displacement"])
@pytest.mark.parametrize("size", [(32, 28), (16, 16, 14)])
def test_a_deformed_image_is_brought_back_without_a_fold(form, size):
    fixed, moving = pair(*size)
    result = register.align(fixed, moving, register.Demons(form=form))
    before, after = ((each - fixed).square().mean().item() for each in (moving, result.warp(moving)))
    assert after < 0.25 * before
    assert result.folds().item() == 0
    similarity = register.LNCC()
    assert similarity.value(fixed, result.warp(moving)).item() > similarity.value(fixed, moving).item() + 0.05


def test_the_answer_is_in_balance_and_coarse_levels_only_lead_to_it():
    fixed, moving = pair(24, 24)
    levels = ((2, 1.0, 1.0), (1, 1.5, 0.5))
    tight = ti.Anderson(window=10, rtol=1e-9, max_steps=500)
    two, one = (
        register.align(fixed, moving, register.Demons(levels=each, solver=tight, interpolation="cubic"))
        for each in (levels, levels[1:])
    )
    assert two.report.converged
    torch.testing.assert_close(two.displacement(), one.displacement(), atol=1e-6, rtol=0)


def test_squares_of_differences_push_too():
    fixed, moving = pair(32, 28)
    kind = register.Demons(similarity=register.SSD(), levels=((2, 1.0, 1.0), (1, 1.2, 1.0)))
    result = register.align(fixed, moving, kind)
    assert (result.warp(moving) - fixed).square().mean() < 0.3 * (moving - fixed).square().mean()


@pytest.mark.parametrize("form", ["velocity", "displacement"])
def test_gradients_by_images_step_and_smoothing_are_those_of_differences(form):
    fixed, moving = pair(9, 8, reach=0.8)
    step, smoothing = torch.tensor(0.3, dtype=D), torch.tensor(1.3, dtype=D)
    solver = ti.Anderson(window=10, rtol=1e-11, max_steps=1000)
    adjoint = ti.Implicit(ti.GMRES(rtol=1e-9, restart=50, max_steps=500))
    weight = texture(9, 8, seed=9)[:, 0]

    def energy(fixed, moving, step, smoothing):
        options = {"solver": solver, "interpolation": "cubic", "squarings": 2}
        kind = register.Demons(form=form, levels=((1, smoothing, step),), **options)
        result = register.align(fixed, moving, kind, adjoint=adjoint)
        return (weight * result.displacement()).sum()

    inputs = [each.clone().requires_grad_() for each in (fixed, moving, step, smoothing)]
    gradients = torch.autograd.grad(energy(*inputs), inputs)
    for which, gradient in enumerate(gradients):
        way = texture(9, 8, seed=7) if which < 2 else torch.ones((), dtype=D)
        ends = []
        for h in (1e-4, -1e-4):
            shifted = [each.detach() for each in inputs]
            shifted[which] = shifted[which] + h * way
            ends.append(energy(*shifted))
        torch.testing.assert_close((gradient * way).sum(), (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-8)


def test_a_gradient_is_wanted_is_noticed_and_solved_for_more_closely():
    fixed, moving = pair(14, 14, reach=0.8)
    value = register.align(fixed, moving, register.Demons())
    close = register.align(fixed.clone().requires_grad_(), moving, register.Demons())
    assert (close.report.steps > value.report.steps).all()
    assert close.transform.parts[0].interpolation == "cubic"
    close.displacement().square().sum().backward()
    assert close.report.backward.converged


def test_scale_spacing_and_orientation_change_nothing_in_millimetres():
    fixed, moving = pair(12, 14, 12)
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=D))
    images = [Image(each[0, 0], affine) for each in (fixed, moving)]
    kind = register.Demons(levels=((2, 1.0, 0.5), (1, 1.5, 0.5)), squarings=2)
    first = register.align(*images, kind)
    again = register.align(images[0].reoriented("PSL"), images[1].reoriented("AIR"), kind)
    points = Grid.of(images[0]).points(fixed)[None]
    torch.testing.assert_close(again.transform(points), first.transform(points), atol=1e-6, rtol=0)
    scaled = register.align(*(Image(1e3 * each.data + 5, each.affine) for each in images), kind)
    torch.testing.assert_close(scaled.transform(points), first.transform(points), atol=1e-6, rtol=0)
    plain = register.align(fixed, moving, kind, spacing=(2.0, 2.0, 3.0))
    torch.testing.assert_close(plain.transform(points), first.transform(points), atol=1e-6, rtol=0)
    # Edges of one length are a matter of units.
    small, large = (register.align(fixed, moving, kind, spacing=[edge] * 3).displacement() for edge in (1.0, 7.0))
    torch.testing.assert_close(large, 7 * small, atol=1e-6, rtol=0)


def test_a_deformation_goes_on_from_a_linear_map_and_its_inverse_leads_back():
    fixed, moving = pair(24, 24)
    moving = moving.roll((2, -1), (2, 3))
    result = register.align(fixed, moving, [register.Rigid(), register.Demons()])
    assert len(result.stages) == 2
    assert (result.warp(moving) - fixed)[..., 4:-4, 4:-4].square().mean() < 0.1
    points = result.fixed.points(fixed)[None]
    back = result.inverse().transform(result.transform(points))
    inside = ((points > 4) & (points < 19)).all(2)
    assert register.target_error(back, points)[inside].max() < 0.1
    solved = register.align(fixed, moving, [register.Rigid(), register.Demons(form="displacement")]).inverse()
    assert solved.report.name == "FixedPoint"
    assert solved.report.residual.item() < 1e-5


def test_pairs_that_fail_have_a_status_and_disturb_no_other():
    fixed, moving = pair(16, 16)
    bad = torch.cat([moving, moving.clone(), torch.ones_like(moving), moving])
    bad[1, 0, 2, 2] = torch.inf
    batch = fixed.expand(4, -1, -1, -1)
    result = register.align(batch, bad, register.Demons(), on_failure="ignore")
    expected = [Status.CONVERGED, Status.NON_FINITE, Status.INFEASIBLE, Status.CONVERGED]
    assert result.report.status.tolist() == expected
    assert result.displacement()[1:3].abs().max() == 0
    good = register.align(batch, moving.expand(4, -1, -1, -1), register.Demons())
    assert torch.equal(result.displacement()[0], good.displacement()[0])
    with pytest.raises(ti.ConvergenceError, match="Sample 2: the moving image is constant"):
        register.align(batch, bad, register.Demons())


def test_images_that_become_less_alike_are_told():
    fixed, moving = pair(16, 16)
    away = torch.cat([fixed, fixed]), torch.cat([moving, moving])
    kind = register.Demons("displacement", levels=((1, 1.0, torch.tensor([1.0, -3.0])),))
    with pytest.raises(ti.ConvergenceError, match="Sample 1: the images are less alike than without") as raised:
        register.align(*away, kind)
    assert raised.value.solution.report.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE]


def test_local_correlation_is_within_its_range_and_finite_where_nothing_is():
    noise = torch.randn(2, 1, 20, 20, dtype=D, generator=torch.Generator().manual_seed(0))
    x, y = torch.nn.functional.normalize(noise.flatten(1)).view_as(noise).mul(20).split(1)
    flat, similarity = torch.zeros_like(x), register.LNCC()
    assert 0.9 < similarity.value(x, -3 * x).item() <= 1
    assert 0 <= similarity.value(x, y).item() < 0.5
    assert similarity.value(x, flat).item() == 0
    w = flat.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(similarity.value(x, w).sum(), w)
    assert gradient.isfinite().all()


def test_the_force_is_the_gradient_of_local_correlation_but_for_the_mean_over_windows():
    """At the window's middle, as Avants has it: it goes uphill."""
    fixed, moving = pair(24, 24)
    similarity = register.LNCC()
    gradient = torch.stack([difference(moving, axis) for axis in (2, 3)], 2)
    force = similarity.force(fixed, moving, gradient, [1.0, 1.0])
    ahead = register.warp(moving, 0.05 * force, interpolation="cubic")
    assert similarity.value(fixed, ahead) > similarity.value(fixed, moving)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "fluid"},
        {"similarity": register.NCC()},
        {"levels": ()},
        {"levels": ((3, 1.0, 1.0),)},
        {"levels": ((1, 0.0, 1.0),)},
        {"levels": ((1, 1.0),)},
        {"interpolation": "nearest"},
        {"squarings": -1},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        register.Demons(**options)


def test_impossible_windows_and_stages_are_refused():
    for options in ({"window": 4}, {"window": 1}, {"eps": 0}):
        with pytest.raises(ValueError, match="expected"):
            register.LNCC(**options)
    with pytest.raises(TypeError, match="instance of Solver"):
        register.Demons(solver="fast")
    flat = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="deformations after all linear stages"):
        register.align(flat, flat, [register.Demons(), register.Rigid()])
