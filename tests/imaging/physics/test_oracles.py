"""Other libraries' numbers: scipy's convolutions as they run, sigpy's coils as they were printed."""

import pytest
import torch
from scipy.ndimage import convolve

import torchimplicit as ti
from tests.imaging.physics.dense import normal

im = ti.imaging


@pytest.mark.parametrize(("border", "mode"), [("circular", "wrap"), ("reflect", "mirror")])
def test_blurs_are_scipys(border, mode):
    x, kernel = normal(7, 8), normal(3, 5, seed=1)
    expected = torch.from_numpy(convolve(x.numpy(), kernel.numpy(), mode=mode))
    assert torch.allclose(im.Blur(kernel, border).A(x[None, None])[0, 0], expected, rtol=0, atol=1e-13)


def test_coils_are_sigpys():
    """Of sigpy 0.1.27: `A = sigpy.mri.linop.Sense(maps, weights=mask)`, `A(x)`, `A.H(A(x))`, `sigpy.fft(x)`."""
    i, j = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    x = torch.complex((3 * i + 5 * j) % 7 - 3.0, (2 * i + j) % 5 - 2.0).to(torch.complex128)
    maps = [torch.complex((i + 2 * j + c) % 3 + 0.0, (2 * i + j + 3 * c) % 4 - 1.0) for c in range(2)]
    op = im.Sense(torch.stack(maps).to(torch.complex128), torch.arange(5) % 2 == 0)
    y = op.A(x[None])
    measured = torch.tensor(
        [
            [[1.5652475842 - 4.2485291572j, 0], [4.2485291572 - 6.9318107302j, 0]],
            [[-0.2236067977 + 4.2485291572j, 0], [-3.3541019662 + 0.2236067977j, 0]],
        ],
        dtype=torch.complex128,
    )
    back = torch.tensor(
        [
            [-11.9013155617 + 1.4291796068j, 17.5124611797 + 11.988854382j, 2.0763932023 - 10.7304951685j],
            [3.694427191 - 7.494427191j, -0.8583592135 - 0.505572809j, -11.811145618 - 3.5708203932j],
        ],
        dtype=torch.complex128,
    )
    row = [1.8673000562 - 0.3418366679j, -0.4704851961 + 0.5279899243j, -0.2236067977, 1.0683565725 + 0.5900440645j]
    assert torch.allclose(y[0, :, 1:3, 2:4], measured, rtol=0, atol=1e-9)
    assert torch.allclose(op.A_adjoint(y)[0, 1:3, 1:4], back, rtol=0, atol=1e-9)
    assert torch.allclose(im.fftc(x)[2, :4], torch.tensor(row, dtype=torch.complex128), rtol=0, atol=1e-9)
    assert abs(float(y.abs().sum()) - 106.19173888561153) < 1e-9
    assert abs(float(op.A_adjoint(y).abs().sum()) - 209.15154805305755) < 1e-9


def test_points_of_k_space_are_torchkbnuffts():
    """Of torchkbnufft 1.5.2: `KbNufft((8, 10), numpoints=12)(x[None, None], omega) / 80**0.5`, at points of the grid.

    Frequencies are `omega = 2 pi (row - 4) / 8, 2 pi (column - 5) / 10`. It interpolates: to 1e-6 of ours.
    """
    i, j = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    x = torch.complex((3 * i + 5 * j) % 7 - 3.0, (2 * i + j) % 5 - 2.0).to(torch.complex128)
    rows, columns = torch.tensor([4, 4, 1, 6, 7]), torch.tensor([5, 9, 2, 8, 3])
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[rows, columns] = True
    found = im.Fourier(mask).A(x[None])[0, rows, columns]
    expected = [-0.1118, -1.6401 - 0.18756j, 0.6605 + 1.9685j, 0.9133 + 0.82508j, -1.6040 - 1.8839j]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.complex128), rtol=0, atol=1e-4)


def test_projections_are_skimages():
    """Of scikit-image 0.26.0: `skimage.transform.radon(x, [0.0, 30.0, 77.0, 120.0], circle=True).T`."""
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    x = ((3 * i + 5 * j) % 7 - 1.0).double() * ((i - 4) ** 2 + (j - 4) ** 2 < 12)
    found = im.Radon(8, torch.tensor([0.0, 30.0, 77.0, 120.0], dtype=torch.float64)).A(x[None])[0]
    expected = torch.tensor(
        [
            [0, 6, 7, 14, 14, 14, 9, 5],
            [0.15063509, 5.36860279, 9.77018128, 15.97853003, 9.64359354, 17.1173141, 7.61250463, 3.72019978],
            [0.05136023, 6.90270047, 13.05857668, 12.48985864, 12.69888824, 12.48985864, 8.88635777, 2.57589328],
            [0.1173141, 9.67021829, 10.49519053, 8.21281292, 17.33012702, 13.24647922, 6.88749537, 3.42116168],
        ],
        dtype=torch.float64,
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-8)


def test_projections_of_a_disc_are_chords():
    """From every side the same: twice the root of what the radius leaves, to the pixels' size."""
    place = torch.arange(33.0, dtype=torch.float64) - 16
    disc = ((place[:, None] ** 2 + place**2) < 10.2**2).double()
    found = im.Radon(33, torch.arange(0.0, 180.0, 17.0, dtype=torch.float64)).A(disc[None])[0]
    chord = 2 * (10.2**2 - place**2).clamp_min(0).sqrt()
    assert (found - chord).abs().mean() < 0.35
    assert torch.allclose(found.sum(1), disc.sum().expand(len(found)), rtol=1e-2)


def test_a_scanner_that_stands_askew_is_found():
    """From projections of a known image, by the gradient in the angles."""
    i, j = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    x = torch.exp(-((i - 4) ** 2 + (j - 5) ** 2 / 3) / 4)[None].double()
    angles = torch.arange(5.0, 180.0, 60.0, dtype=torch.float64)
    y = im.Radon(10, angles + 2.5).A(x)

    def misfit(offset):
        return im.Radon(10, angles + offset[0]).A(x) - y

    found = ti.least_squares(misfit, torch.zeros(1, 1, dtype=torch.float64), batch_dims=0)
    assert abs(float(found.value) - 2.5) < 1e-6


def test_derivatives_by_angles_under_transforms():
    angles = torch.tensor([10.0, 75.0], dtype=torch.float64)
    x, way = normal(3, 1, 4, 4), normal(2, seed=1)
    push = torch.vmap(lambda x: torch.func.jvp(lambda a: im.Radon(4, a).A(x), (angles,), (way,))[1])
    rows = torch.func.vmap(torch.func.jacrev(lambda x: im.Radon(4, angles).A(x)))(x)
    assert torch.allclose(push(x), torch.stack([_difference(each, angles, way) for each in x]), atol=1e-6)
    assert torch.allclose(rows[0], rows[1])


def _difference(x, angles, way):
    return (im.Radon(4, angles + 1e-6 * way).A(x) - im.Radon(4, angles - 1e-6 * way).A(x)) / 2e-6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: im.Radon(8, [[0.0]]), r"Radon\(angles=...\): got shape \(1, 1\), expected finite numbers"),
        (lambda: im.Radon(8, []), r"got shape \(0,\)"),
        (lambda: im.Radon(0, [1.0]), r"Radon\(size=0\)"),
        (lambda: im.Radon(8, [float("nan")]), "expected finite numbers"),
        (lambda: im.Radon(4, [0.0]).A(torch.ones(1, 4, 5)), r"got images \(1, 4, 5\), expected \(B, ..., 4, 4\)"),
        (lambda: im.Downsample(0), r"Downsample\(factor=0\)"),
        (lambda: im.Downsample(2).A(torch.ones(1, 4, 5)), r"expected sides that are multiples of 2; try to crop"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
