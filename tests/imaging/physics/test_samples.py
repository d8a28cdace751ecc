"""What samples have of their own, masks, kernels, maps, steps, dampings and noise: each as if it were alone."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit import imaging as im

SOLVER = ti.CG(rtol=1e-12, max_steps=500)
COUNT, EDGE = 3, 8  # as many samples as channels, and rows as columns: nothing is told by its size


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def masks():
    return torch.stack([im.cartesian(EDGE, 2, center_fraction=0.25, seed=seed) for seed in range(COUNT)])


KERNELS = draw(COUNT, COUNT, 3, 3).abs()
MAPS = draw(COUNT, 2, EDGE, EDGE, dtype=torch.complex128)
OWN = {  # of all samples, of one, and the shape of an image
    "Fourier": (lambda: im.Fourier(masks()), lambda i: im.Fourier(masks()[i]), (EDGE, EDGE)),
    "Fourier, channels": (lambda: im.Fourier(masks()), lambda i: im.Fourier(masks()[i]), (COUNT, EDGE, EDGE)),
    "Fourier, one channel": (lambda: im.Fourier(masks()), lambda i: im.Fourier(masks()[i]), (1, EDGE, EDGE)),
    "Fourier, masks of channels": (
        lambda: im.Fourier(masks()[:, None]),
        lambda i: im.Fourier(masks()[i]),
        (COUNT, EDGE, EDGE),
    ),
    "Sense": (lambda: im.Sense(MAPS, masks()), lambda i: im.Sense(MAPS[i], masks()[i]), (EDGE, EDGE)),
    "Sense, one mask": (lambda: im.Sense(MAPS), lambda i: im.Sense(MAPS[i]), (EDGE, EDGE)),
    "Blur": (lambda: im.Blur(KERNELS), lambda i: im.Blur(KERNELS[i]), (COUNT, EDGE, EDGE)),
    "Blur, circular": (
        lambda: im.Blur(KERNELS, "circular"),
        lambda i: im.Blur(KERNELS[i], "circular"),
        (COUNT, EDGE, EDGE),
    ),
}


@pytest.fixture(params=OWN.values(), ids=OWN)
def case(request):
    """The operator of all samples, those of each, images and measurements."""
    together, alone, shape = request.param
    op, complex_ = together(), "Blur" not in request.node.name
    x = draw(COUNT, *shape, dtype=torch.complex128 if complex_ else torch.float64)
    return op, [alone(i) for i in range(COUNT)], x, op.A(x)


def test_every_sample_is_measured_by_its_own(case):
    op, each, x, y = case
    for i, one in enumerate(each):
        torch.testing.assert_close(y[i : i + 1], one.A(x[i : i + 1]))
        torch.testing.assert_close(op.A_adjoint(y)[i : i + 1], one.A_adjoint(y[i : i + 1]))
        torch.testing.assert_close(op.gram(x)[i : i + 1], one.gram(x[i : i + 1]))
        rows = torch.tensor([i])
        torch.testing.assert_close(op.take(rows).A(x[rows]), y[rows])


def test_steps_and_dampings_are_one_for_all_or_one_a_sample(case):
    op, each, x, y = case
    number = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    close, least = op.prox(x, y, number, SOLVER), op.A_dagger(y, number, SOLVER)
    beside = number.reshape(-1, *(1,) * (x.dim() - 1))
    torch.testing.assert_close(op.prox(x, y, beside, SOLVER), close)
    for i, one in enumerate(each):
        rows = slice(i, i + 1)
        torch.testing.assert_close(close[rows], one.prox(x[rows], y[rows], float(number[i]), SOLVER))
        torch.testing.assert_close(least[rows], one.A_dagger(y[rows], float(number[i]), SOLVER))
    for wrong in (torch.ones(EDGE, EDGE), torch.ones(x.shape), -1.0, torch.nan, -number, "1"):
        with pytest.raises(ValueError, match=r"step=.*expected a .*number > 0"):
            op.prox(x, y, wrong)
        with pytest.raises(ValueError, match=r"damping=.*expected a .*number > 0"):
            op.A_dagger(y, wrong)


@pytest.mark.parametrize("op", [im.Inpainting(torch.eye(4) > 0), im.Downsample(2), im.Greyscale((0.5, 0.25, 1.0))])
def test_closed_forms_take_a_step_a_sample(op):
    x = draw(3, *((3, 2, 2) if isinstance(op, im.Greyscale) else (4, 4)))
    y, number = op.A(x), torch.tensor([0.5, 2.0, 7.0])
    for i, each in enumerate(number.tolist()):
        rows = slice(i, i + 1)
        torch.testing.assert_close(op.prox(x, y, number)[rows], op.prox(x[rows], y[rows], each))
        torch.testing.assert_close(op.A_dagger(y, number)[rows], op.A_dagger(y[rows], each))
    with pytest.raises(ValueError, match=r"\(step=\.\.\.\): got shape \(3, 3\)"):
        op.prox(x, y, torch.ones(3, 3))


def test_a_batch_of_another_size_is_refused(case):
    op, _, x, y = case
    with pytest.raises(ValueError, match=r"got a batch of 2, expected 3, as many as"):
        op.A(x[:2])
    with pytest.raises(ValueError, match=r"got a batch of 2, expected 3, as many as"):
        op.A_adjoint(y[:2])


def test_masks_of_channels_want_images_with_channels():
    with pytest.raises(ValueError, match=r"got images \(3, 8, 8\) and masks \(3, 1, 1, 8\).*try mask\[:, 0\]"):
        im.Fourier(masks()[:, None]).A(draw(3, 8, 8))


def test_integers_are_no_colours():
    with pytest.raises(TypeError, match=r"Greyscale: got images that are a tensor of torch.uint8"):
        im.Greyscale().A(torch.full((1, 3, 2, 2), 200, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"Greyscale: got measurements \(1, 3, 2, 2\), expected \(B, 1, ...\)"):
        im.Greyscale().A_adjoint(torch.ones(1, 3, 2, 2))


def test_a_channel_may_be_unseen():
    op = im.Inpainting(torch.stack((torch.ones(2, 2), torch.zeros(2, 2))) > 0)
    assert op.A(torch.arange(8.0).view(1, 2, 2, 2)).tolist() == [[0, 1, 2, 3]]


def test_noise_is_of_numbers_that_can_be():
    y = torch.zeros(2, 3)
    for wrong in (torch.tensor([-1.0, 1.0]), torch.tensor([torch.nan, 1.0])):
        with pytest.raises(ValueError, match="expected finite numbers >= 0"):
            im.GaussianNoise(wrong)(y, 0)
    with pytest.raises(ValueError, match=r"got shape \(3,\), torch.float32, expected real numbers, one a sample"):
        im.GaussianNoise(torch.ones(3))(y, 0)


def test_complex_images_are_guessed_from_their_blur():
    op, x = im.Blur(torch.full((3, 5), 1 / 15, dtype=torch.float64)), draw(2, 1, 9, 9, dtype=torch.complex128)
    guess = op.guess(op.A(x))
    assert guess.shape == x.shape
    torch.testing.assert_close(guess.real, op.guess(op.A(x.real)))
    torch.testing.assert_close(guess.imag, op.guess(op.A(x.imag)))
    with torch.no_grad():
        layer = im.Reconstruction(im.Preconditioned(im.Ridge(filters=2, taps=3).double()))
        assert layer(op.A(x), op).shape == x.shape
        assert layer.report.converged


def test_the_norm_of_coils_is_that_of_complex_images_whatever_is_asked_with():
    op = im.Sense(MAPS[0], masks()[0])
    like = torch.ones(1, EDGE, EDGE, dtype=torch.float64)
    torch.testing.assert_close(op.norm(like), op.norm(like.to(torch.complex128)))


def test_lines_are_solved_where_the_mask_leaves_out_whole_lines_alone():
    """In hybrid space a mask may vary along the other axis, too: columns of pixels then have masks of their own."""
    points = draw(EDGE, EDGE) > 0
    points[EDGE // 2] = True
    like = draw(1, EDGE, EDGE, dtype=torch.complex128)
    for mask, solved in ((points, False), (masks()[0].mT, True)):
        op = im.Sense(MAPS[0], mask, dims=(-2,))
        lines = op.lines(torch.tensor(0.1), like)
        assert (lines is not None) == solved
        if lines is not None:
            torch.testing.assert_close(lines(op.gram(like) + 0.1 * like), like)


def test_projections_alone_are_stored_as_those_of_a_batch():
    """Sums along strided rows are rounded in another order: solves would notice their batch mates."""
    op = im.Radon(8, [3.0, 41.0, 80.0])
    y = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = im.cg_sense(y, op, weight=0.1).value
    assert torch.equal(both, torch.cat([im.cg_sense(one[None], op, weight=0.1).value for one in y]))
