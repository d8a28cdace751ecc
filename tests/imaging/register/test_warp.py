"""Displacement fields: identity, shifts, composition, labels, determinants against closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchimplicit.imaging import register


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.sampled_from([torch.float32, torch.float64]))
def test_a_warp_by_zero_is_the_image_to_the_bit(size, dtype):
    image = drawn(2, 2, *size).to(dtype)
    nothing = torch.zeros(2, len(size), *size, dtype=dtype)
    assert torch.equal(register.warp(image, nothing), image)
    assert torch.equal(register.compose(nothing, nothing), nothing)


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_a_warp_by_whole_voxels_is_a_shift(interpolation):
    image = drawn(1, 1, 9, 8, 7)
    u = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1, 1).expand(1, 3, 9, 8, 7)
    got = register.warp(image, u, interpolation=interpolation)[:, :, :-2, 1:, :-3]
    torch.testing.assert_close(got, image[:, :, 2:, :-1, 3:], atol=1e-13 * (interpolation == "cubic"), rtol=0)


def test_composition_of_linear_fields_is_that_of_their_matrices():
    """Linear maps are interpolated without an error, where no position leaves the grid."""
    x = register.identity((9, 9), drawn(1)) - 4.0
    A, B = 0.1 * drawn(2, 2), 0.1 * drawn(2, 2, seed=1)
    first, second = (torch.einsum("ij,jhw->ihw", M, x)[None] for M in (A, B))
    got = register.compose(first, second)
    eye = torch.eye(2, dtype=torch.float64)
    expected = torch.einsum("ij,jhw->ihw", (eye + B) @ (eye + A) - eye, x)[None]
    torch.testing.assert_close(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_an_image_warped_twice_is_warped_by_the_composition():
    image = drawn(1, 1, 3, 3)
    big = register.sample(image, register.identity((16, 16), image)[None] / 8, interpolation="cubic")
    first, second = (
        0.5 * register.sample(drawn(1, 2, 3, 3, seed=s), register.identity((16, 16), image)[None] / 8) for s in (1, 2)
    )
    options = {"interpolation": "cubic"}
    twice = register.warp(register.warp(big, second, **options), first, **options)
    once = register.warp(big, register.compose(first, second, **options), **options)
    assert (twice - once)[..., 3:-3, 3:-3].abs().max() < 2e-3
    other_way = register.warp(big, register.compose(second, first, **options), **options)
    assert (twice - other_way)[..., 3:-3, 3:-3].abs().max() > 2e-2


@pytest.mark.parametrize("space", [2, 3])
def test_the_determinant_of_a_linear_map_is_that_of_its_matrix(space):
    M = drawn(space, space)
    x = register.identity((5, 4, 6)[:space], M)
    det = register.det_jacobian(torch.einsum("ij,j...->i...", M, x)[None])
    torch.testing.assert_close(det, (M + torch.eye(space)).det().expand_as(det))
    expected = [0 if (M + torch.eye(space)).det() > 0 else det.numel()]
    assert register.folds(torch.einsum("ij,j...->i...", M, x)[None]).tolist() == expected


def test_folds_are_counted_sample_by_sample_without_the_border_and_with_what_is_no_number():
    u = torch.zeros(3, 2, 8, 8)
    u[1, 0, 4] = 5.0  # a row thrown over the next ones
    u[2, 0, 4, 4] = torch.nan
    counts = register.folds(u)
    assert counts[0] == 0
    assert counts[1] == 8
    assert counts[2] > 0
    assert register.folds(u, border=1).tolist() == [0, 6, counts[2].item()]
    assert register.folds(torch.zeros(1, 3, 4, 1, 4)).tolist() == [0]


@pytest.mark.parametrize("by", ["nearest", "linear"])
def test_labels_stay_labels_and_the_two_conventions_differ(by):
    labels = torch.tensor([0, 3, 7], dtype=torch.int16)[drawn(1, 1, 8, 8, seed=4).abs().long().clamp_max(2)]
    assert torch.equal(register.warp_labels(labels, torch.zeros(1, 2, 8, 8), by=by), labels)
    u = drawn(1, 2, 8, 8)
    got = register.warp_labels(labels, u, by=by)
    assert got.dtype == labels.dtype
    assert {*got.unique().tolist()} <= {0, 3, 7}
    other = register.warp_labels(labels, u, by="linear" if by == "nearest" else "nearest")
    assert not torch.equal(got, other)


def test_what_is_no_field_and_no_label_is_refused():
    field, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="a vector at every voxel"):
        register.warp(labels.float(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(TypeError, match=r"try \.long\(\)"):
        register.warp_labels(labels.float(), field)
    with pytest.raises(ValueError, match="'nearest' or 'linear'"):
        register.warp_labels(labels, field, by="cubic")
    with pytest.raises(ValueError, match="of one grid"):
        register.compose(field, torch.zeros(1, 2, 4, 5))
    with pytest.raises(ValueError, match="leave some"):
        register.folds(field, border=2)
    with pytest.raises(ValueError, match="expected \\(B, 1, H, W\\)"):
        register.warp_labels(labels[0], field)
