"""Sampling against SciPy, by its derivatives, at and beyond borders, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from torchimplicit.imaging import register

SIZES = [(7, 9), (5, 6, 4), (1, 5), (2, 3), (3, 1, 4)]
KINDS = ["linear", "cubic"]
PADDINGS = ["border", "zeros", "reflection"]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def places(batch, size, count, seed=1, beyond=3.0):
    """Positions inside and around a grid, none near a kink of linear interpolation."""
    generator = torch.Generator().manual_seed(seed)
    far = torch.rand(batch, len(size), count, dtype=torch.float64, generator=generator)
    span = torch.tensor(size, dtype=torch.float64)[:, None]
    p = far * (span - 1 + 2 * beyond) - beyond
    return p.floor() + 0.1 + 0.8 * (p - p.floor())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", KINDS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_values_are_those_of_scipy(size, interpolation, padding):
    image, positions = drawn(2, 3, *size), places(2, size, 60, beyond=15.0)
    got = register.sample(image, positions, interpolation=interpolation, padding=padding)
    mode = "grid-constant" if padding == "zeros" else "mirror"
    for b, c in np.ndindex(2, 3):
        at = positions[b].numpy()
        at = np.clip(at, 0, np.array(size)[:, None] - 1) if padding == "border" else at
        expected = ndimage.map_coordinates(image[b, c].numpy(), at, order=KINDS.index(interpolation) * 2 + 1, mode=mode)
        # Beyond the rim of 12 zeros that both put around an image, SciPy has ripples of the 13th power of 0.27.
        np.testing.assert_allclose(got[b, c].numpy(), expected, atol=1e-6 if padding == "zeros" else 1e-13, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_coefficients_are_those_of_scipy(size):
    image = drawn(1, 1, *size)
    expected = ndimage.spline_filter(image[0, 0].numpy(), order=3, mode="mirror")
    np.testing.assert_allclose(register.spline_coefficients(image)[0, 0].numpy(), expected, atol=1e-13)
    positions = places(1, size, 20)
    again = register.sample(register.spline_coefficients(image), positions, interpolation="cubic", prefilter=False)
    torch.testing.assert_close(again, register.sample(image, positions, interpolation="cubic"))


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 3)])
@pytest.mark.parametrize("interpolation", KINDS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_first_and_second_derivatives_are_right_in_both_modes(size, interpolation, padding):
    image, positions = drawn(1, 1, *size).requires_grad_(), places(1, size, 3, beyond=0.8).requires_grad_()

    def values(image, positions):
        return register.sample(image, positions, interpolation=interpolation, padding=padding)

    fast = len(size) == 3
    assert torch.autograd.gradcheck(values, (image, positions), check_forward_ad=True, fast_mode=fast)
    assert torch.autograd.gradgradcheck(values, (image, positions), check_fwd_over_rev=True, fast_mode=fast)


def test_a_spline_has_continuous_second_derivatives_at_voxels_and_none_of_linear():
    image = drawn(1, 1, 8, 8)

    def bend(at, interpolation):
        def value(p):
            return register.sample(image, p, interpolation=interpolation).sum()

        return torch.func.hessian(value)(torch.tensor([[[at], [3.4]]], dtype=torch.float64))[0, 0, 0, 0, 0, 0]

    assert abs(bend(3 - 1e-9, "cubic") - bend(3 + 1e-9, "cubic")) < 1e-6
    assert abs(bend(3.2, "cubic")) > 1e-2
    assert bend(3.2, "linear") == 0


@pytest.mark.parametrize("interpolation", [*KINDS, "nearest"])
def test_vmap_and_forward_mode_agree_with_loops_and_differences(interpolation):
    images, positions = drawn(3, 2, 1, 5, 6), torch.stack([places(2, (5, 6), 4, seed=s) for s in range(3)])

    def values(image, p):
        return register.sample(image, p, interpolation=interpolation)

    looped = torch.stack([values(i, p) for i, p in zip(images, positions, strict=True)])
    torch.testing.assert_close(torch.vmap(values)(images, positions), looped, atol=0, rtol=0)
    way = drawn(*positions[0].shape, seed=5)
    value, slope = torch.func.jvp(lambda p: values(images[0], p), (positions[0],), (way,))
    ahead, behind = (values(images[0], positions[0] + h * way) for h in (1e-6, -1e-6))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-6, atol=1e-7, rtol=0)
    assert value.shape == (2, 1, 4)


@given(st.data())
def test_values_at_voxels_are_the_voxels(data):
    size = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    padding = data.draw(st.sampled_from(PADDINGS))
    image = drawn(2, 1, *size, seed=data.draw(st.integers(0, 9)), dtype=dtype)
    grid = register.identity(size, image).expand(2, -1, *[-1] * len(size))
    for interpolation in ("nearest", "linear"):
        assert torch.equal(register.sample(image, grid, interpolation=interpolation, padding=padding), image)
    found = register.sample(image, grid, interpolation="cubic", padding=padding)
    torch.testing.assert_close(found, image, rtol=0, atol=40 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("interpolation", [*KINDS, "nearest"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_position_that_is_no_place_disturbs_no_other(interpolation, value):
    image, positions = drawn(2, 1, 5, 5), places(2, (5, 5), 6)
    bad = positions.clone()
    bad[0, 1, 2] = value
    for padding in PADDINGS:
        good = register.sample(image, positions, interpolation=interpolation, padding=padding)
        got = register.sample(image, bad, interpolation=interpolation, padding=padding)
        elsewhere = torch.ones_like(good, dtype=torch.bool)
        elsewhere[0, 0, 2] = False
        assert torch.equal(got[elsewhere], good[elsewhere])
        if np.isnan(value) and interpolation != "nearest":
            assert got[0, 0, 2].isnan()


def test_a_sample_that_is_not_finite_disturbs_no_other():
    image, positions = drawn(2, 1, 5, 5), places(2, (5, 5), 6)
    bad = image.clone()
    bad[0] = torch.nan
    for interpolation in KINDS:
        good = register.sample(image, positions, interpolation=interpolation)
        assert torch.equal(register.sample(bad, positions, interpolation=interpolation)[1], good[1])


def test_complex_images_and_integer_labels_are_sampled():
    image, positions = torch.complex(drawn(1, 2, 5, 6), drawn(1, 2, 5, 6, seed=2)), places(1, (5, 6), 7)
    got = register.sample(image, positions, interpolation="cubic")
    torch.testing.assert_close(got.real, register.sample(image.real, positions, interpolation="cubic"))
    torch.testing.assert_close(got.imag, register.sample(image.imag, positions, interpolation="cubic"))
    labels = torch.arange(30).reshape(1, 1, 5, 6)
    found = register.sample(labels, torch.tensor([[[1.4, 9.0], [2.6, -9.0]]]), interpolation="nearest")
    assert found.dtype == torch.int64
    assert found.flatten().tolist() == [9, 24]
    outside = register.sample(
        labels, torch.tensor([[[-0.4, -0.6], [1.0, 1.0]]]), interpolation="nearest", padding="zeros"
    )
    assert outside.flatten().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("image", "positions", "options", "error", "words"),
    [
        (torch.zeros(5, 5), torch.zeros(1, 2, 3), {}, ValueError, "image\\[None, None\\]"),
        (torch.zeros(1, 1, 5, 5), torch.zeros(1, 3, 3), {}, ValueError, "expected \\(1, 2, ...\\)"),
        (torch.zeros(2, 1, 5, 5), torch.zeros(1, 2, 3), {}, ValueError, "try .expand"),
        (torch.zeros(1, 1, 5, 0), torch.zeros(1, 2, 3), {}, ValueError, "expected \\(B, C, H, W\\)"),
        (torch.zeros(1, 1, 5, 5).long(), torch.zeros(1, 2, 3), {}, TypeError, "interpolation='nearest'"),
        (torch.zeros(1, 1, 5, 5), torch.zeros(1, 2, 3).long(), {}, TypeError, "expected floats"),
        (np.zeros((1, 1, 5, 5)), torch.zeros(1, 2, 3), {}, TypeError, "instance of Tensor"),
        (torch.zeros(1, 1, 5, 5), torch.zeros(1, 2, 3), {"interpolation": "lanczos"}, ValueError, "'cubic'"),
        (torch.zeros(1, 1, 5, 5), torch.zeros(1, 2, 3), {"padding": "wrap"}, ValueError, "'reflection'"),
        (
            torch.zeros(1, 1, 5, 5),
            torch.zeros(1, 2, 3),
            {"interpolation": "cubic", "padding": "zeros", "prefilter": False},
            ValueError,
            "prefilter=True",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(image, positions, options, error, words):
    with pytest.raises(error, match=words):
        register.sample(image, positions, **options)
