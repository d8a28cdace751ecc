"""Imaging works on the device of its inputs, whatever the default device is: see `tests/test_device.py`."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit import imaging
from torchimplicit.imaging import register

CPU = torch.device("cpu")


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator(CPU).manual_seed(sum(shape)), device=CPU)


def reconstructed(cell):
    A = imaging.Blur(torch.ones(3, 3) / 9)
    return imaging.Reconstruction(cell, ti.Anderson(max_steps=30), on_failure="ignore"), A.A(draw(2, 1, 16, 16)), A


LAYERS = {
    "Proximal": lambda: reconstructed(imaging.Proximal(imaging.DnCNN(width=4, depth=2, bound=0.9))),
    "HalfQuadratic": lambda: reconstructed(imaging.HalfQuadratic(imaging.DnCNN(width=4, depth=2))),
    "ADMM": lambda: reconstructed(imaging.ADMM(imaging.DnCNN(width=4, depth=2))),
    "Gradient": lambda: reconstructed(imaging.Gradient(imaging.Ridge(filters=4))),
}
OPERATORS = {
    "Blur": lambda: imaging.Blur(torch.ones(3, 3) / 9),
    "Downsample": lambda: imaging.Downsample(2),
    "Inpainting": lambda: imaging.Inpainting(draw(1, 16, 16) > 0),
    "Radon": lambda: imaging.Radon(16, torch.linspace(0, 170, 12)),
}
KINDS = [
    register.Rigid(),
    register.Affine(),
    register.Rigid(register.MutualInformation()),
    register.Demons(levels=((2, 1.0, 1.0),)),
    register.BSpline(levels=(4,)),
    register.Variational(levels=(4,)),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_reconstruction(layer):
    module, *inputs = LAYERS[layer]()
    with torch.device("meta"):
        module(*inputs).sum().backward()


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators(operator):
    A, x = OPERATORS[operator](), draw(1, 1, 16, 16)
    with torch.device("meta"):
        y = A.A(x)
        assert A.A_adjoint(y).shape == x.shape
        imaging.total_variation(y, A, weight=0.1, on_failure="ignore")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{type(kind).__name__}, {type(kind.similarity).__name__}")
def test_registration(kind):
    fixed = torch.nn.functional.interpolate(draw(1, 1, 6, 6), (32, 32), mode="bicubic").requires_grad_()
    moving = torch.roll(fixed.detach(), 1, -1)
    with torch.device("meta"):
        register.align(fixed, moving, kind, on_failure="ignore").warp(moving).sum().backward()
