"""Images as equilibria: reconstruction, by what is measured and what is known beforehand; registration."""

from torchimplicit.files import DataError
from torchimplicit.imaging import register
from torchimplicit.imaging.baselines import (
    Differences,
    Wavelets,
    cg_sense,
    plug_and_play,
    total_variation,
    wavelet,
    zero_filled,
)
from torchimplicit.imaging.files import (
    FastMRI,
    read_cfl,
    read_displacement,
    read_fastmri,
    read_ismrmrd,
    read_kspace,
    read_nifti,
    read_png,
    write_cfl,
    write_displacement,
    write_nifti,
    write_png,
)
from torchimplicit.imaging.image import Image
from torchimplicit.imaging.joint import Joint, joint_loss
from torchimplicit.imaging.metrics import nrmse, psnr, ssim
from torchimplicit.imaging.physics.blur import Blur
from torchimplicit.imaging.physics.coils import espirit
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
    Analysis,
    Cell,
    DnCNN,
    DouglasRachford,
    Filters,
    Gradient,
    GradientStep,
    HalfQuadratic,
    Preconditioned,
    PrimalDual,
    Prior,
    Proximal,
    Reconstruction,
    Ridge,
    Sparsity,
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
    "Analysis",
    "Blur",
    "Cell",
    "Compose",
    "DataError",
    "Differences",
    "DnCNN",
    "DouglasRachford",
    "Downsample",
    "FastMRI",
    "Filters",
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
    "Joint",
    "Operator",
    "PoissonNoise",
    "Preconditioned",
    "PrimalDual",
    "Prior",
    "Proximal",
    "QuarterTurn",
    "Radon",
    "Reconstruction",
    "Ridge",
    "Scaled",
    "Sense",
    "Shift",
    "Sparsity",
    "Stack",
    "Sum",
    "Wavelets",
    "averaged",
    "cartesian",
    "cg_sense",
    "draw_comparison",
    "draw_masks",
    "draw_steps",
    "equivariant_loss",
    "espirit",
    "fftc",
    "gaussian_kernel",
    "ifftc",
    "joint_loss",
    "motion_kernel",
    "nrmse",
    "plug_and_play",
    "poisson_disc",
    "psnr",
    "radial",
    "read_cfl",
    "read_displacement",
    "read_fastmri",
    "read_ismrmrd",
    "read_kspace",
    "read_nifti",
    "read_png",
    "register",
    "split_loss",
    "split_mask",
    "ssim",
    "sure_loss",
    "total_variation",
    "wavelet",
    "write_cfl",
    "write_displacement",
    "write_nifti",
    "write_png",
    "zero_filled",
]
