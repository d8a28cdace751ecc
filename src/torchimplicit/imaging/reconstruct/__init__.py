"""Reconstruction as an equilibrium: cells, priors and the layer."""

from torchimplicit.imaging.reconstruct.analysis import Analysis
from torchimplicit.imaging.reconstruct.cell import Cell
from torchimplicit.imaging.reconstruct.denoiser import DnCNN, GradientStep, averaged
from torchimplicit.imaging.reconstruct.filters import Filters
from torchimplicit.imaging.reconstruct.gradient import Gradient, Proximal
from torchimplicit.imaging.reconstruct.layer import Reconstruction
from torchimplicit.imaging.reconstruct.preconditioned import Preconditioned
from torchimplicit.imaging.reconstruct.primal_dual import PrimalDual
from torchimplicit.imaging.reconstruct.prior import Prior
from torchimplicit.imaging.reconstruct.ridge import Ridge
from torchimplicit.imaging.reconstruct.sparsity import Sparsity
from torchimplicit.imaging.reconstruct.splitting import ADMM, DouglasRachford, HalfQuadratic

__all__ = [
    "ADMM",
    "Analysis",
    "Cell",
    "DnCNN",
    "DouglasRachford",
    "Filters",
    "Gradient",
    "GradientStep",
    "HalfQuadratic",
    "Preconditioned",
    "PrimalDual",
    "Prior",
    "Proximal",
    "Reconstruction",
    "Ridge",
    "Sparsity",
    "averaged",
]
