"""Masks and overlap: what does not count changes nothing, what counts is found, and derivatives stay."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.register.phantoms import D, moved, texture, turned
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.weights import filled, framed, looked

SHIFT = register.Linear(turned(0.0, (2.0, -1.0), (0, 0)))
LINEAR = [
    register.Rigid(),
    register.Affine(register.SSD()),
    register.Rigid(register.MutualInformation(bins=16), levels=((1.0, 1.0),)),
]
FREE = [
    register.Demons(),
    register.Demons("displacement", register.SSD()),
    register.Variational(register.NCC()),
    register.BSpline(),
]


def scene(artefact="fixed"):
    """A pair apart by whole pixels, an artefact brighter than all else in one of them, and the mask that hides it."""
    image = texture(40, 36)
    other = moved(image, SHIFT, Grid.of(image))
    images, mask = {"fixed": image, "moving": other}, torch.ones(1, 1, 40, 36, dtype=torch.bool)
    mask[..., 14:24, 20:29] = False
    if artefact is not None:
        images[artefact] = torch.where(mask, images[artefact], 40.0)
    return images["fixed"], images["moving"], mask


def off(result, inside=slice(8, 28)):
    """How far the displacement is from the truth, RMS over the middle, where there is no artefact beside it."""
    u = result.displacement()[0, :, inside, 4:16]
    return float((u - torch.tensor([2.0, -1.0], dtype=D).view(2, 1, 1)).norm(dim=0).square().mean().sqrt())


@pytest.mark.parametrize("where", ["fixed", "moving"])
@pytest.mark.parametrize("kind", LINEAR, ids=["ncc", "ssd", "mi"])
def test_a_shift_is_found_beside_an_artefact_that_a_mask_hides(kind, where):
    fixed, moving, mask = scene(where)
    found = register.align(fixed, moving, kind, **{f"{where}_mask": mask})
    assert found.report.converged
    assert off(found) < 0.1
    assert off(register.align(fixed, moving, kind, on_failure="ignore")) > 0.5


@pytest.mark.parametrize("where", ["fixed", "moving"])
@pytest.mark.parametrize("kind", [FREE[0], FREE[2], FREE[3]], ids=["velocity", "variational", "bspline"])
def test_so_it_is_by_deformations(kind, where):
    fixed, moving, mask = scene(where)
    plain = register.align(*scene(None)[:2], kind, on_failure="ignore")
    found = register.align(fixed, moving, kind, **{f"{where}_mask": mask}, on_failure="ignore")
    without = register.align(fixed, moving, kind, on_failure="ignore")
    assert off(found) < off(plain) + 0.15
    assert off(without) > off(found) + 0.1


@pytest.mark.parametrize("kind", [LINEAR[0], *FREE], ids=["rigid", "velocity", "ssd", "variational", "bspline"])
def test_what_a_mask_hides_changes_nothing_not_even_where_it_is_no_number(kind):
    fixed, moving, mask = scene()
    first = register.align(fixed, moving, kind, fixed_mask=mask, on_failure="ignore")
    for value in (torch.nan, torch.inf, -1e6):
        other = torch.where(mask, fixed, value)
        again = register.align(other, moving, kind, fixed_mask=mask.float(), on_failure="ignore")
        assert torch.equal(again.displacement(), first.displacement())
    scaled = register.align(1e3 * fixed + 7, 1e3 * moving + 7, kind, fixed_mask=mask, on_failure="ignore")
    torch.testing.assert_close(scaled.displacement(), first.displacement(), atol=1e-6, rtol=0)


def test_a_mask_is_of_one_sample_or_of_all_and_turned_as_its_image():
    fixed, moving, mask = scene()
    both = torch.cat((mask, torch.ones_like(mask)))
    alone = register.align(*(each.expand(2, -1, -1, -1) for each in (fixed, moving)), fixed_mask=mask)
    found = register.align(
        *(each.expand(2, -1, -1, -1) for each in (fixed, moving)), fixed_mask=both, on_failure="ignore"
    )
    assert torch.equal(found.transform.matrix[0], alone.transform.matrix[0])
    assert not torch.equal(found.transform.matrix[1], alone.transform.matrix[1])

    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=D))
    volume, hidden = texture(14, 13, 12), torch.ones(14, 13, 12, dtype=torch.uint8)
    hidden[8:11, 3:6, 4:7] = 0
    other = moved(volume, register.Linear(turned(0.05, (0.5, -0.5, 0.3), (0, 0, 0))), Grid.of(volume))
    images = [Image(torch.where(hidden > 0, volume[0, 0], 30.0), affine), Image(other[0, 0], affine)]
    kind = register.Rigid(levels=((0.0, 1.0),), interpolation="cubic")
    first = register.align(*images, kind, fixed_mask=Image(hidden, affine))
    again = register.align(
        images[0].reoriented("PSL"),
        images[1].reoriented("AIR"),
        kind,
        fixed_mask=Image(hidden, affine).reoriented("PSL"),
    )
    torch.testing.assert_close(again.transform.matrix, first.transform.matrix, atol=1e-9, rtol=0)


def test_what_lies_in_one_image_alone_does_not_count():
    """Half of one object is cut off; what stands at the border there, repeated, would pull."""
    whole = texture(48, 40, width=3.0) + 2.0  # no fade to the value outside
    truth = register.Linear(turned(0.06, (1.0, 0.5), (23.5, 19.5)))
    moving = moved(whole, truth, Grid.of(whole))[..., :30, :].contiguous()
    seen = torch.ones_like(moving)
    found = register.align(whole, moving, register.Rigid(levels=((1.0, 1.0),)), moving_mask=seen)
    assert found.report.converged
    points = Grid.of(whole).points(whole)[None]
    assert register.target_error(found.transform(points), truth(points)).max() < 0.25


@pytest.mark.parametrize("kind", [LINEAR[0], FREE[0], FREE[2]], ids=["rigid", "velocity", "variational"])
def test_samples_of_which_masks_leave_too_little_are_told_and_disturb_no_other(kind):
    fixed, moving, mask = scene()
    batch = [each.expand(4, -1, -1, -1) for each in (fixed, moving)]
    fixed_mask, moving_mask = mask.repeat(4, 1, 1, 1), mask.new_ones(4, 1, 40, 36)
    fixed_mask[1] = False  # nothing
    fixed_mask[2, ..., 10:], moving_mask[2, ..., :20] = False, False  # nothing in common
    with pytest.raises(ti.ConvergenceError) as raised:
        register.align(*batch, kind, fixed_mask=fixed_mask, moving_mask=moving_mask)
    found = raised.value.solution
    infeasible = Status.INFEASIBLE
    assert found.report.status.tolist()[:3] == [Status.CONVERGED, infeasible, infeasible]
    assert "Sample 1: the mask of the fixed image leaves nothing of it" in str(raised.value)
    assert "Sample 2: 0% of what the masks leave lies where the moving one is" in str(raised.value)
    good = register.align(*batch, kind, fixed_mask=mask, moving_mask=moving_mask[:1], on_failure="ignore")
    assert torch.equal(found.displacement()[0], good.displacement()[0])
    assert found.displacement().isfinite().all()


@pytest.mark.parametrize(
    "kind",
    [
        register.Rigid(levels=((1.0, 1.0),), solver=ti.LevenbergMarquardt(rtol=1e-10, max_steps=200)),
        register.Demons(
            "displacement", levels=((1, 1.5, 0.5),), solver=ti.Anderson(window=10, rtol=1e-10, atol=0, max_steps=800)
        ),
        register.Variational(levels=(1,), solver=ti.NewtonCG(rtol=1e-10, atol=1e-12, max_steps=100)),
    ],
    ids=["rigid", "demons", "variational"],
)
def test_gradients_are_those_of_differences_with_masks_and_part_of_the_image_outside(kind):
    image = texture(14, 13, width=2.0) + 1.0
    moving = moved(image, register.Linear(turned(0.1, (0.6, -0.4), (6.5, 6.0))), Grid.of(image))
    mask = torch.ones(1, 1, 14, 13, dtype=D)
    mask[..., 2:5, 8:11], aim = 0.0, texture(14, 13, seed=9)[:, 0]
    backward = ti.Implicit(ti.CG(rtol=1e-11, max_steps=2000) if isinstance(kind, register.Variational) else ti.LU())

    def energy(fixed, moving):
        start = register.Linear(turned(0.0, (1.3, 0.8), (0, 0)))
        masks = {"fixed_mask": mask, "moving_mask": mask.flip(2)}
        found = register.align(fixed, moving, kind, initial=start, adjoint=backward, **masks, on_failure="ignore")
        return (aim * found.displacement()).sum()

    inputs = [image.clone().requires_grad_(), moving.clone().requires_grad_()]
    gradients = torch.autograd.grad(energy(*inputs), inputs)
    assert gradients[0][mask == 0].abs().max() == 0
    for which, gradient in enumerate(gradients):
        way, ends = texture(14, 13, seed=5), []
        for h in (1e-5, -1e-5):
            shifted = [each.detach() for each in inputs]
            shifted[which] = (shifted[which] + h * way).requires_grad_()
            ends.append(energy(*shifted).detach())
        torch.testing.assert_close((gradient * way).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_weights_are_one_inside_nothing_beyond_and_at_most_one(interpolation):
    image, still = texture(7, 6), torch.eye(3, dtype=D)[None]
    coefficients = register.spline_coefficients(image) if interpolation == "cubic" else image
    moving, leave = framed(coefficients, None, still, interpolation, [1, 1])
    at = torch.rand(1, 2, 400, dtype=D, generator=torch.Generator().manual_seed(0)) * 14 - 4
    values, weights = looked(moving, at + leave[:, :2, 2:], torch.ones(1, 1, 1, dtype=D), interpolation)
    beyond = torch.maximum(-at, at - torch.tensor([[6.0], [5.0]], dtype=D)).amax(1, keepdim=True)
    assert ((weights >= 0) & (weights <= 1 + 1e-12)).all()
    torch.testing.assert_close(weights[beyond <= -1], torch.ones_like(weights[beyond <= -1]))
    assert (weights[beyond >= 2] == 0).all()
    inside = (beyond <= 0).expand_as(values)
    torch.testing.assert_close(values[inside], register.sample(image, at, interpolation=interpolation)[inside])


def test_holes_are_filled_from_beside_them():
    image, mask = texture(20, 20, width=4.0) + 5.0, torch.ones(1, 1, 20, 20, dtype=D)
    mask[..., 8:10, 8:10] = 0.0
    found = filled(torch.where(mask > 0, image, torch.nan), mask)
    assert torch.equal(found[mask > 0], image[mask > 0])
    hidden = mask == 0
    by_mean = (image[~hidden].mean() - image)[hidden].abs().mean()
    assert (found - image)[hidden].abs().mean() < 0.5 * by_mean


IMAGE = Image(torch.ones(4, 4, 4), torch.eye(4, dtype=D))


@pytest.mark.parametrize(
    ("mask", "image", "kind", "words"),
    [
        (torch.ones(1, 1, 9, 8), torch.zeros(1, 1, 8, 8), ValueError, r"got \(1, 1, 9, 8\), expected \(1, 1, 8, 8\)"),
        (torch.ones(1, 1, 8, 8) * 2, torch.zeros(1, 1, 8, 8), ValueError, "values from 2 to 2, expected 1 where"),
        (torch.full((1, 1, 8, 8), torch.nan), torch.zeros(1, 1, 8, 8), ValueError, "try mask > 0"),
        (IMAGE, torch.zeros(1, 1, 8, 8), TypeError, "got a Image, expected a Tensor"),
        (torch.ones(4, 4, 4), IMAGE, TypeError, "got a Tensor, expected a Image"),
        (Image(IMAGE.data, 2 * IMAGE.affine - torch.diag(torch.tensor([0, 0, 0, 1.0]))), IMAGE, ValueError, "grid"),
    ],
)
def test_impossible_masks_are_refused(mask, image, kind, words):
    for name in ("fixed_mask", "moving_mask"):
        with pytest.raises(kind, match=words):
            register.align(image, image, **{name: mask})
