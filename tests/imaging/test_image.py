"""Images and their place."""

from itertools import permutations, product

import nibabel
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchimplicit.imaging import Image

ALL = [
    "".join(axes[i][sign[i]] for i in range(3))
    for axes in permutations(("LR", "PA", "IS"))
    for sign in product((0, 1), repeat=3)
]


def oblique(seed, spacing=(1.0, 2.0, 3.5)):
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn * torch.tensor(spacing, dtype=torch.float64)
    affine[:3, 3] = 50 * torch.randn(3, generator=generator, dtype=torch.float64)
    return affine


def places(image):
    """World coordinates of every value: the values are all different."""
    index = torch.stack(torch.meshgrid(*map(torch.arange, image.data.shape), indexing="ij"), -1).reshape(-1, 3)
    return image.world(index)[image.data.reshape(-1).argsort()]


def test_there_are_48_orientations():
    assert len(set(ALL)) == 48


@given(st.integers(0, 10_000), st.sampled_from(ALL), st.sampled_from(ALL))
def test_every_orientation_has_the_same_values_at_the_same_places(seed, first, second):
    image = Image(torch.arange(24).reshape(2, 3, 4), oblique(seed))
    turned = image.reoriented(first).reoriented(second)
    assert turned.orientation == second
    torch.testing.assert_close(places(turned), places(image), rtol=0, atol=1e-10)
    assert sorted(turned.spacing) == pytest.approx(sorted(image.spacing))
    torch.testing.assert_close(turned.reoriented(image.orientation).affine, image.affine)


@given(st.integers(0, 10_000))
def test_voxels_are_the_inverse_of_world(seed):
    image, index = Image(torch.zeros(2, 3, 1), oblique(seed)), torch.tensor([[0.0, 0, 0], [1.5, 2, -7]]).double()
    torch.testing.assert_close(image.voxels(image.world(index)), index)


@pytest.mark.parametrize("code", ALL)
def test_orientation_and_canonical_form_are_those_of_nibabel(code):
    image = Image(torch.arange(24.0).reshape(2, 3, 4), torch.diag(torch.tensor([2.0, 3, 4, 1]))).reoriented(code)
    assert "".join(nibabel.aff2axcodes(image.affine.numpy())) == code == image.orientation
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.data.numpy(), image.affine.numpy()))
    canonical = image.reoriented()
    assert torch.equal(canonical.data, torch.from_numpy(expected.get_fdata(dtype="float32")))
    torch.testing.assert_close(canonical.affine, torch.from_numpy(expected.affine))


def test_a_series_is_turned_in_space_alone():
    image = Image(torch.arange(48).reshape(2, 3, 4, 2), torch.eye(4))
    turned = image.reoriented("SPL")
    assert turned.data.shape == (4, 3, 2, 2)
    assert torch.equal(turned.data[0, 2, 1], image.data[0, 0, 0])


@pytest.mark.parametrize(
    ("affine", "said"),
    [
        (torch.zeros(4, 4), "expected three independent axes"),
        (torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), r"try torch.diag\(torch.tensor"),
        (torch.eye(4) * 2, "a last row 0, 0, 0, 1"),
        (torch.eye(3), "expected 4 x 4 finite numbers"),
        (torch.eye(4) * float("nan"), "expected 4 x 4 finite numbers"),
    ],
)
def test_refuses_an_affine_without_orientation(affine, said):
    with pytest.raises(ValueError, match=said):
        Image(torch.zeros(2, 2, 2), affine)


def test_refuses_other_data_and_letters():
    with pytest.raises(ValueError, match=r"got \(2, 2\), expected a tensor \(X, Y, Z\) .*try data\[:, :, None\]"):
        Image(torch.zeros(2, 2), torch.eye(4))
    for letters in ("RLS", "RA", "XYZ", "RASS"):
        with pytest.raises(ValueError, match="expected one letter each of L or R"):
            Image(torch.zeros(2, 2, 1), torch.eye(4)).reoriented(letters)
