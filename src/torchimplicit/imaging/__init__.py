"""Images as equilibria: reconstruction, by what is measured and what is known beforehand; registration."""

from torchimplicit.files import DataError
from torchimplicit.imaging import register
from torchimplicit.imaging.baselines import cg_sense, plug_and_play, total_variation, wavelet, zero_filled
from torchimplicit.imaging.files import (
    FastMRI,
    read_displacement,
    read_fastmri,
    read_ismrmrd,
    read_nifti,
    read_png,
    write_displacement,
    write_nifti,
    write_png,
)
from torchimplicit.imaging.image import Image
from torchimplicit.imaging.metrics import nrmse, psnr, ssim
from torchimplicit.imaging.physics.blur import Blur
from torchimplicit.imaging.physics.fourier import fftc, ifftc
from torchimplicit.imaging.physics.inpaint import Downsample, Greyscale, Inpainting
from torchimplicit.imaging.physics.kernel import gaussian_kernel, motion_kernel
from torchimplicit.imaging.physics.mask import cartesian, poisson_disc, radial
from torchimplicit.imaging.physics.noise import GaussianNoise, PoissonNoise
from torchimplicit.imaging.physics.operator import Adjoint, Compose, Operator, Scaled, Sum
from torchimplicit.imaging.physics.radon import Radon
from torchimplicit.imaging.physics.sense import Fourier, Sense
from torchimplicit.imaging.physics.stack import Stack
from torchimplicit.imaging.picture import draw_comparison, draw_masks, draw_steps
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
from torchimplicit.imaging.selfsupervised import (
    Flip,
    Group,
    QuarterTurn,
    Shift,
    equivariant_loss,
    split_loss,
    split_mask,
    sure_loss,
)

__all__ = [
    "ADMM",
    "Adjoint",
    "Blur",
    "Cell",
    "Compose",
    "DataError",
    "DnCNN",
    "DouglasRachford",
    "Downsample",
    "FastMRI",
    "Flip",
    "Fourier",
    "GaussianNoise",
    "Gradient",
    "GradientStep",
    "Greyscale",
    "Group",
    "HalfQuadratic",
    "Image",
    "Inpainting",
    "Operator",
    "PoissonNoise",
    "Prior",
    "Proximal",
    "QuarterTurn",
    "Radon",
    "Reconstruction",
    "Ridge",
    "Scaled",
    "Sense",
    "Shift",
    "Stack",
    "Sum",
    "averaged",
    "cartesian",
    "cg_sense",
    "draw_comparison",
    "draw_masks",
    "draw_steps",
    "equivariant_loss",
    "fftc",
    "gaussian_kernel",
    "ifftc",
    "motion_kernel",
    "nrmse",
    "plug_and_play",
    "poisson_disc",
    "psnr",
    "radial",
    "read_displacement",
    "read_fastmri",
    "read_ismrmrd",
    "read_nifti",
    "read_png",
    "register",
    "split_loss",
    "split_mask",
    "ssim",
    "sure_loss",
    "total_variation",
    "wavelet",
    "write_displacement",
    "write_nifti",
    "write_png",
    "zero_filled",
]
