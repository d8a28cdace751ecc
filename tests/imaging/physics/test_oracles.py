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
