"""Imaging: what is measured of an image, and the image that a measurement determines together with a prior."""

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
    "Cell",
    "DnCNN",
    "DouglasRachford",
    "Gradient",
    "GradientStep",
    "HalfQuadratic",
    "Prior",
    "Proximal",
    "Reconstruction",
    "Ridge",
    "averaged",
]
