"""Rigid, similar and affine registrations of known transforms, whatever the scale, the grid and the orientation."""

from itertools import permutations, product
from pathlib import Path

import nibabel
import pytest
import torch
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

import torchimplicit as ti
from tests.imaging.register.phantoms import image_of, moved, texture, turned
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.files import read_nifti
from torchimplicit.imaging.register.grid import Grid

D = torch.float64
FINE = ((2.0, 2.0), (0.0, 1.0))  # no smoothing at last: it is not that of an image of another scale


def error(found, true, grid):
    points = grid.points(torch.zeros((), dtype=D))[None]
    return register.target_error(found(points), true(points)).amax().item()


@pytest.mark.parametrize(
    ("kind", "scale", "shear"),
    [(register.Rigid, 1.0, 0.0), (register.Similarity, 1.1, 0.0), (register.Affine, 0.95, 0.1)],
)
def test_a_known_transform_is_found(kind, scale, shear):
    image = texture(40, 36)
    grid = Grid.of(image)
    matrix = turned(0.25, (2.0, -1.5), grid.center, scale)
    matrix[0, 0, 1] += shear
    true = register.Linear(matrix)
    result = register.align(image, moved(image, true, grid), kind(levels=FINE, interpolation="cubic"))
    assert result.report.converged
    assert error(result.transform, true, grid) < 0.02
    assert len(kind().generators(3, 1.0)) == {"Rigid": 6, "Similarity": 7, "Affine": 12}[kind.__name__]


def test_a_rigid_transform_in_three_dimensions_is_found_and_its_inverse_leads_back():
    image = texture(20, 22, 18, width=2.0)
    grid = Grid.of(image)
    true = register.Linear(turned(0.15, (1.0, -1.5, 0.5), grid.center))
    other = moved(image, true, grid)
    result = register.align(image, other, register.Rigid(levels=FINE, interpolation="cubic"))
    assert error(result.transform, true, grid) < 0.03
    R = result.transform.matrix[0, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=D))
    points = grid.points(image)[None]
    torch.testing.assert_close(result.inverse().transform(result.transform(points)), points)
    inner = (slice(None), slice(None), *[slice(4, -4)] * 3)
    assert (result.warp(other, interpolation="cubic") - image)[inner].abs().mean() < 0.02
    assert result.folds().item() == 0
    torch.testing.assert_close(result.det_jacobian(), torch.ones(1, 20, 22, 18, dtype=D))


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (1e3, 0.0), (1.0, 1000.0), (-1.0, 0.0)])
def test_neither_scale_nor_offset_of_an_image_changes_a_transform(scale, offset):
    image = texture(32, 32)
    grid = Grid.of(image)
    other = moved(image, register.Linear(turned(0.1, (1.0, 0.5), grid.center)), grid)
    for dtype, most in ((D, 1e-12), (torch.float32, 2e-5 if offset else 5e-6)):  # a large offset costs digits
        fixed, moving = image.to(dtype), other.to(dtype)
        plain = register.align(fixed, moving).transform
        scaled = register.align(fixed if scale > 0 else -fixed, scale * moving + offset).transform
        assert error(scaled, plain, grid) < most


def test_squares_of_differences_notice_scales_and_correlations_do_not():
    image = texture(32, 32)
    grid = Grid.of(image)
    true = register.Linear(turned(0.1, (1.0, 0.5), grid.center))
    other = moved(image, true, grid)
    kind = register.Rigid(similarity=register.SSD(), levels=FINE, interpolation="cubic")
    assert error(register.align(image, other, kind).transform, true, grid) < 0.02
    both = register.align(1e3 * image + 7, 1e3 * other + 7, kind).transform
    assert error(both, register.align(image, other, kind).transform, grid) < 1e-6
    residuals = [similarity.residuals(image, 2 * image) for similarity in (register.SSD(), register.NCC())]
    assert residuals[0].abs().max() > 0.1 / image.numel() ** 0.5
    assert residuals[1].abs().max() < 1e-12


def orientations():
    """The 48 ways to store a volume."""
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield order, [axis for axis, flip in enumerate(flips) if flip]


def stored(image, order, flips):
    """The same image at the same place, its array turned and flipped."""
    data = image.data.permute(*order).flip(flips)
    change = torch.zeros(4, 4, dtype=D)
    change[3, 3] = 1
    for new, old in enumerate(order):
        change[old, new] = -1.0 if new in flips else 1.0
        change[old, 3] = data.shape[new] - 1 if new in flips else 0
    return Image(data.contiguous(), image.affine @ change)


def test_48_orientations_of_one_pair_are_moved_the_same_in_millimetres():
    affine = torch.tensor([[1.0, 0.1, 0, -8], [-0.1, 1.2, 0, 5], [0, 0, 2.0, 3], [0, 0, 0, 1]], dtype=D)
    fixed = image_of(texture(12, 13, 8, width=1.5), affine)
    grid = Grid.of(fixed)
    true = register.Linear(turned(0.1, (1.0, -0.5, 0.5), grid.center))
    moving = image_of(moved(fixed.data[None, None], true, grid), affine)
    kinds = (
        # One level, of splines: lines start on voxels, on their kinks, on whose side of them is a matter of rounding.
        register.Rigid(levels=((0.0, 1.0),), interpolation="cubic"),
        register.Demons("displacement", levels=((1, 1.5, 0.5),)),
    )
    points, ways = grid.points(torch.zeros((), dtype=D))[None], list(orientations())
    first = [register.align(fixed, moving, kind).transform(points) for kind in kinds]
    assert register.target_error(first[0], true(points)).max() < 0.05  # of voxels of 1 to 2 mm
    for number, way in enumerate(ways):
        turned_fixed, turned_moving = stored(fixed, *way), stored(moving, *ways[(7 * number) % 48])
        for kind, expected in list(zip(kinds, first, strict=True))[0 if number % 8 == 3 else 1 :]:
            result = register.align(turned_fixed, turned_moving, kind)
            torch.testing.assert_close(result.transform(points), expected, atol=1e-9, rtol=0)
        assert result.warp(turned_moving).data.shape == turned_fixed.data.shape


def test_voxels_of_other_edges_show_the_same_movement():
    """A texture known everywhere, on voxels of 1 x 1 x 1 and of 1 x 1 x 2 millimetres, of other offsets."""
    fine = texture(20, 20, 24, width=2.5)
    grid = Grid.of(fine)
    true = register.Linear(turned(0.12, (1.0, -0.5, 0.7), grid.center))
    other = moved(fine, true, grid)
    kind = register.Rigid(levels=((1.5, 1.5), (1.0, 1.0)), interpolation="cubic")
    coarse = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=D))
    images = [
        Image(fine[0, 0], torch.eye(4, dtype=D)),
        Image(other[0, 0, :, :, ::2].contiguous(), coarse),
        Image(fine[0, 0, :, :, ::2].contiguous(), coarse),
    ]
    points = grid.points(fine)[None]
    for fixed, moving in ((images[0], images[1]), (images[2], images[1])):
        result = register.align(fixed, moving, kind)
        assert register.target_error(result.transform(points), true(points)).mean() < 0.1
    spaced = register.align(images[2].data[None, None], images[1].data[None, None], kind, spacing=(1.0, 1.0, 2.0))
    torch.testing.assert_close(spaced.transform(points), result.transform(points), atol=1e-8, rtol=0)


def test_gradients_by_both_images_and_the_start_are_those_of_differences():
    image = torch.cat([texture(14, 14, seed=s, width=2.0) for s in (0, 1)])
    grid = Grid.of(image)
    true = register.Linear(turned(0.1, (0.6, -0.4), grid.center).expand(2, -1, -1))
    other = moved(image, true, grid)
    solver = ti.LevenbergMarquardt(rtol=1e-10, max_steps=200)
    kind = register.Rigid(levels=((1.0, 1.0),), solver=solver)

    def energy(fixed, moving):
        return register.align(fixed, moving, kind).transform.matrix[:, :2].square().sum()

    inputs = [image.clone().requires_grad_(), other.clone().requires_grad_()]
    gradients = torch.autograd.grad(energy(*inputs), inputs)
    cubic = register.Rigid(levels=((1.0, 1.0),), solver=solver, interpolation="cubic")
    for which, gradient in enumerate(gradients):
        way = texture(14, 14, seed=5).expand_as(image)
        ends = []
        for h in (1e-4, -1e-4):
            shifted = [image, other]
            shifted[which] = shifted[which] + h * way
            ends.append(register.align(*shifted, cubic).transform.matrix[:, :2].square().sum())
        difference = (ends[0] - ends[1]) / 2e-4
        torch.testing.assert_close((gradient * way).sum(), difference, rtol=1e-4, atol=1e-9)


def test_pairs_that_fail_have_a_status_and_words_and_disturb_no_other():
    good = texture(24, 24)
    grid = Grid.of(good)
    other = moved(good, register.Linear(turned(0.05, (0.6, -0.4), grid.center)), grid)
    holes = other.clone()
    holes[0, 0, 3, 4] = torch.nan
    fixed = torch.cat([good, good, good, torch.full_like(good, 3.0), good])
    moving = torch.cat([other, holes, torch.zeros_like(good), other, other])
    alone = register.align(good, other)
    with pytest.raises(ti.ConvergenceError, match="Sample 1: the moving image has 1 values that are NaN") as raised:
        register.align(fixed, moving)
    result = raised.value.solution
    infeasible = Status.INFEASIBLE
    expected = [Status.CONVERGED, Status.NON_FINITE, infeasible, infeasible, Status.CONVERGED]
    assert result.report.status.tolist() == expected
    assert "Sample 2: the moving image is constant" in str(raised.value)
    assert "Sample 3: the fixed image is constant" in str(raised.value)
    assert result.transform.matrix.isfinite().all()
    batch = register.align(good.expand(5, -1, -1, -1), other.expand(5, -1, -1, -1))
    for sample in (0, 4):
        assert torch.equal(result.transform.matrix[sample], batch.transform.matrix[sample])
    torch.testing.assert_close(result.transform.matrix[:1], alone.transform.matrix)
    with pytest.warns(ti.ConvergenceWarning):
        register.align(fixed, moving, on_failure="warn")


def test_images_that_do_not_overlap_are_told_and_centers_bring_them_together():
    data, eye = texture(14, 14, 14)[0, 0], torch.eye(4, dtype=D)
    far = eye.clone()
    far[:3, 3] = 500.0
    with pytest.raises(ti.ConvergenceError, match="0% of the fixed image lies where the moving one is: try initial"):
        register.align(Image(data, eye), Image(data, far), register.Rigid())
    result = register.align(Image(data, eye), Image(data, far), register.Rigid(), initial="centers")
    torch.testing.assert_close(result.transform.matrix[0, :3, 3], far[:3, 3], atol=1e-3, rtol=0)
    again = register.align(Image(data, eye), Image(data, far), register.Rigid(), initial=result)
    torch.testing.assert_close(again.transform.matrix, result.transform.matrix, atol=1e-6, rtol=0)


def test_stages_follow_each_other():
    image = texture(32, 32)
    grid = Grid.of(image)
    other = moved(image, register.Linear(turned(0.3, (2.0, 0.5), grid.center, 1.1)), grid)
    result = register.align(image, other, [register.Rigid(), register.Similarity(levels=FINE)])
    assert len(result.stages) == 2
    assert result.report is result.stages[1]
    assert result.transform.matrix[0, :2, :2].det().sqrt().item() == pytest.approx(1.1, abs=0.01)


def test_labels_and_images_are_warped_onto_the_fixed_grid_and_those_of_other_grids_refused():
    affine = torch.diag(torch.tensor([1.0, 1.0, 1.5, 1.0], dtype=D))
    fixed, moving = Image(texture(14, 14, 12)[0, 0], affine), Image(texture(16, 15, 14)[0, 0], affine)
    result = register.align(fixed, moving, register.Rigid(), on_failure="ignore")
    labels = Image((moving.data > 0.5).to(torch.int16), affine)
    assert result.warp_labels(labels).data.dtype == torch.int16
    assert result.warp_labels(labels, by="linear").data.shape == fixed.data.shape
    assert result.warp(moving).orientation == fixed.orientation
    with pytest.raises(ValueError, match="expected one on the moving grid"):
        result.warp(Image(moving.data, 2 * affine - torch.diag(torch.tensor([0, 0, 0, 1.0], dtype=D))))
    with pytest.raises(ValueError, match="\\(B, C, 16, 15, 14\\)"):
        result.warp(fixed.data[None, None])
    with pytest.raises(TypeError, match="expected integers"):
        result.warp_labels(moving)


EYE = torch.eye(4, dtype=D)
FLAT, CUBE = torch.zeros(1, 1, 8, 8), Image(torch.ones(4, 4, 4), EYE)


@pytest.mark.parametrize(
    ("fixed", "moving", "options", "kind", "words"),
    [
        (Image(torch.zeros(4, 4, 4), EYE), torch.zeros(1, 1, 4, 4, 4), {}, TypeError, "does not say where it lies"),
        (Image(torch.zeros(4, 4, 4, 2), EYE), Image(torch.zeros(4, 4, 4), EYE), {}, ValueError, "2 times or channels"),
        (Image(torch.zeros(4, 4, 1), EYE), Image(torch.zeros(4, 4, 4), EYE), {}, ValueError, "a single voxel"),
        (FLAT, torch.zeros(1, 1, 8, 8, 8), {}, ValueError, "as many dimensions"),
        (FLAT, torch.zeros(2, 1, 8, 8), {}, ValueError, r"try \.expand"),
        (FLAT, FLAT.double(), {}, TypeError, r"moving\.to\(fixed\)"),
        (FLAT.long(), FLAT.long(), {}, TypeError, r"try \.float\(\)"),
        (torch.zeros(1, 1, 0, 8), FLAT, {}, ValueError, "expected \\(B, C, H, W\\)"),
        (torch.zeros(8, 8), FLAT, {}, ValueError, "None, None"),
        (FLAT, FLAT, {"spacing": (1.0,)}, ValueError, "expected 2 finite numbers"),
        (FLAT, FLAT, {"spacing": (1.0, 0.0)}, ValueError, "expected 2 finite numbers"),
        (FLAT, FLAT, {"kind": "rigid"}, TypeError, r"expected Rigid\(\)"),
        (FLAT, FLAT, {"initial": "here"}, ValueError, "'world', 'centers'"),
        (FLAT, FLAT, {"initial": register.Linear(EYE[None])}, ValueError, "got matrices"),
        (FLAT, FLAT, {"on_failure": "no"}, ValueError, "expected 'raise'"),
        (CUBE, CUBE, {"spacing": (1, 1, 1)}, ValueError, "have their own"),
    ],
)
def test_what_cannot_be_registered_is_refused(fixed, moving, options, kind, words):
    with pytest.raises(kind, match=words):
        register.align(fixed, moving, **options)


@pytest.mark.parametrize(
    "options",
    [{"levels": ()}, {"levels": ((1.0, 0.0),)}, {"levels": (3,)}, {"similarity": 3}, {"interpolation": "nearest"}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        register.Affine(**options)
    with pytest.raises(TypeError, match="expected an instance of Solver"):
        register.Affine(solver=3)
    with pytest.raises(ValueError, match="singular"):
        register.Linear(torch.zeros(1, 3, 3, dtype=D)).inverse()
    with pytest.raises(ValueError, match="expected \\(B, 3, 3\\)"):
        register.Linear(torch.zeros(3, 3))


def test_a_small_scan_with_black_around_it_is_not_smoothed_to_a_blob_that_fits_anywhere():
    """Voxels of 2 and 4 mm, two thirds of the moving image empty from an earlier resampling, at a known place."""
    data = Path(nibabel.__file__).parent / "tests/data"
    fixed, moving = (read_nifti(data / name) for name in ("anatomical.nii", "reoriented_anat_moved.nii"))
    matrix = torch.from_numpy(from_matvec(euler2mat(0.1, 0.2, 0.3), [3, 4, 5]))[None]
    true, grid = register.Linear(matrix), Grid.of(fixed)
    before = error(register.Linear(torch.eye(4, dtype=D)[None]), true, grid)
    result = register.align(fixed, moving, register.Rigid())
    assert before > 15
    assert error(result.transform, true, grid) < 2.0


def test_mutual_information_finds_what_correlation_does_not():
    image = texture(40, 36)
    grid = Grid.of(image)
    true = register.Linear(turned(0.15, (2.0, -1.5), grid.center))
    other = -moved(image, true, grid)
    options = {"levels": FINE, "interpolation": "cubic"}
    found = register.align(image, other, register.Rigid(register.MutualInformation(), **options))
    assert error(found.transform, true, grid) < 0.02
    lost = register.align(image, other, register.Rigid(register.NCC(), **options), on_failure="ignore")
    assert error(lost.transform, true, grid) > 5
    information, flat = register.MutualInformation(), torch.zeros_like(image)
    a, b = information.prepared(image, other)
    assert information.value(a, a) > information.value(a, b) > 0
    torch.testing.assert_close(information.value(a, flat), torch.zeros(1, dtype=D), atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="bins"):
        register.MutualInformation(bins=4)
