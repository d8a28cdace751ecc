"""Reconstruction of images as an equilibrium: what is measured of them, and what is known of them beforehand."""

from torchimplicit.imaging.physics.blur import Blur
from torchimplicit.imaging.physics.fourier import fftc, ifftc
from torchimplicit.imaging.physics.inpaint import Greyscale, Inpainting
from torchimplicit.imaging.physics.mask import cartesian
from torchimplicit.imaging.physics.operator import Adjoint, Compose, Operator, Scaled, Sum
from torchimplicit.imaging.physics.sense import Fourier, Sense
from torchimplicit.imaging.physics.stack import Stack
from torchimplicit.imaging.reconstruct import (
    ADMM,
    Cell,
    DnCNN,
    DouglasRachford,
    Gradient,
    GradientStep,
    HalfQuadratic,
    Prior,
    Proximal,
    Reconstruction,
    Ridge,
    averaged,
)

__all__ = [
    "ADMM",
    "Adjoint",
    "Blur",
    "Cell",
    "Compose",
    "DnCNN",
    "DouglasRachford",
    "Fourier",
    "Gradient",
    "GradientStep",
    "Greyscale",
    "HalfQuadratic",
    "Inpainting",
    "Operator",
    "Prior",
    "Proximal",
    "Reconstruction",
    "Ridge",
    "Scaled",
    "Sense",
    "Stack",
    "Sum",
    "averaged",
    "cartesian",
    "fftc",
    "ifftc",
]
