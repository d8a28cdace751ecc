"""Quality against steps: nothing stops an equilibrium's, and an unrolled network goes on."""

import torch

import torchimplicit as ti
from torchimplicit.imaging import ADMM, Blur, Reconstruction, Ridge, psnr
from torchimplicit.train.data import Measurement
from torchimplicit.train.modules import Reconstructor
from torchimplicit.train.networks import ImageDenoiser, RidgeReconstruction, UnrolledReconstruction
from torchimplicit.train.quality import by_steps


def batch():
    op, x = Blur(torch.full((3, 3), 1 / 9)), torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Measurement(op.A(x), op, x)


def test_an_equilibrium_takes_all_steps_and_stays_where_it_is():
    measured = batch()
    layer = RidgeReconstruction(filters=2, taps=3, eps=0.1, solver=ti.Anderson(rtol=1e-2))
    layer(measured.y, measured.op)
    report = layer.report
    residual, figure = by_steps(layer, measured, 40, lambda x: psnr(x, measured.target, data_range=1.0))
    assert residual.shape == figure.shape == (2, 40)
    assert (residual[:, -1] < 1e-5).all()
    assert (figure[:, 25:] - figure[:, -1:]).abs().max() < 1e-3
    assert layer.report is report
    assert (layer.solver, layer.on_failure, layer.products) == (ti.Anderson(rtol=1e-2), "ignore", 8)


def test_an_unrolled_network_goes_on_by_its_cell():
    measured = batch()
    network = UnrolledReconstruction(RidgeReconstruction(filters=2, taps=3), steps=2)
    _, figure = by_steps(network, measured, 5, lambda x: x.flatten(1).sum(1))
    with torch.no_grad():
        expected = torch.stack([network(*measured[:2], steps=n).flatten(1).sum(1) for n in range(1, 6)], 1)
    torch.testing.assert_close(figure, expected)


def test_what_has_no_steps_has_no_curve():
    measured = batch()
    for network in (ImageDenoiser(Ridge(2, 3)), Reconstruction(ADMM(Ridge(2, 3))), torch.nn.Identity()):
        assert by_steps(network, measured, 3, lambda x: x.flatten(1).sum(1)) is None


def test_the_report_draws_it_and_marks_the_trained_depth():
    network = UnrolledReconstruction(RidgeReconstruction(filters=2, taps=3), steps=7)
    figure = Reconstructor(network).pictures(batch())["quality against steps"]
    drawn = [[list(line.get_xdata()) for line in axes.lines] for axes in figure.axes]
    assert all([7, 7] in lines for lines in drawn)
    assert "trained depth" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "quality against steps" not in Reconstructor(ImageDenoiser(Ridge(2, 3))).pictures(identity())


def identity():
    op, x = Blur(torch.ones(1, 1)), torch.rand(2, 1, 16, 16)
    return Measurement(op.A(x), op, x)
