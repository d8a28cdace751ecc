"""Files of images, of k-space and of transforms: read with bounds, refused in one sentence that names them."""

from torchimplicit.imaging.files.cfl import read_cfl, write_cfl
from torchimplicit.imaging.files.fastmri import FastMRI, read_fastmri
from torchimplicit.imaging.files.ismrmrd import read_ismrmrd
from torchimplicit.imaging.files.itk import read_transform, write_transform
from torchimplicit.imaging.files.kspace import read_kspace
from torchimplicit.imaging.files.nifti import read_displacement, read_nifti, write_displacement, write_nifti
from torchimplicit.imaging.files.png import read_png, write_png

__all__ = [
    "FastMRI",
    "read_cfl",
    "read_displacement",
    "read_fastmri",
    "read_ismrmrd",
    "read_kspace",
    "read_nifti",
    "read_png",
    "read_transform",
    "write_cfl",
    "write_displacement",
    "write_nifti",
    "write_png",
    "write_transform",
]
