"""Reconstruction as an equilibrium: cells, priors and the layer."""

from torchimplicit.imaging.reconstruct.cell import Cell
from torchimplicit.imaging.reconstruct.denoiser import DnCNN, GradientStep, averaged
from torchimplicit.imaging.reconstruct.gradient import Gradient, Proximal
from torchimplicit.imaging.reconstruct.layer import Reconstruction
from torchimplicit.imaging.reconstruct.preconditioned import Preconditioned
from torchimplicit.imaging.reconstruct.prior import Prior
from torchimplicit.imaging.reconstruct.ridge import Ridge
from torchimplicit.imaging.reconstruct.sparsity import Sparsity
from torchimplicit.imaging.reconstruct.splitting import ADMM, DouglasRachford, HalfQuadratic

__all__ = [
    "ADMM",
    "Cell",
    "DnCNN",
    "DouglasRachford",
    "Gradient",
    "GradientStep",
    "HalfQuadratic",
    "Preconditioned",
    "Prior",
    "Proximal",
    "Reconstruction",
    "Ridge",
    "Sparsity",
    "averaged",
]
