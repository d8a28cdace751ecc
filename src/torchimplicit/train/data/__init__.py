"""Data of the recipes: what they train on, from files, from a hub, or from a package that brings it along."""

from torchimplicit.train.data.base import DATA_VARIABLE, DataError, FittingData, RecipeData, Splits
from torchimplicit.train.data.boards import ShownSudoku
from torchimplicit.train.data.cifar10 import CIFAR10
from torchimplicit.train.data.copy_memory import CopyMemory
from torchimplicit.train.data.densities import Density
from torchimplicit.train.data.dequantised import DequantisedDigits, DequantisedMNIST
from torchimplicit.train.data.digits import Digits
from torchimplicit.train.data.feature_table import FeatureTable
from torchimplicit.train.data.image_folder import ImageFolder, PictureFiles
from torchimplicit.train.data.images import ImageData, Images
from torchimplicit.train.data.kernels import GaussianKernel, Kernel, MotionKernel
from torchimplicit.train.data.kspace import KSpace
from torchimplicit.train.data.kspace_files import Scan, read_scan
from torchimplicit.train.data.long_table import LongTable, read_long
from torchimplicit.train.data.lynx_hare import LynxHare
from torchimplicit.train.data.measurement import Measured, Measurement
from torchimplicit.train.data.mnist import MNIST
from torchimplicit.train.data.moving import MovingSlices, Pairs
from torchimplicit.train.data.nuclei import Masked, Nuclei
from torchimplicit.train.data.photographs import BlurredPhotographs, Crops
from torchimplicit.train.data.physionet2012 import PhysioNet2012
from torchimplicit.train.data.pictures import PictureFormat
from torchimplicit.train.data.repeated import RepeatedScans
from torchimplicit.train.data.scaling import Linear, Logit, Scaling
from torchimplicit.train.data.series import SeriesBatch, SeriesData, SeriesRows
from torchimplicit.train.data.sudoku import Sudoku
from torchimplicit.train.data.tables import Pendulum, Powers, Spiral
from torchimplicit.train.data.text import Text
from torchimplicit.train.data.vocabulary import BytePairs, Bytes, Characters
from torchimplicit.train.data.volumes import Hippocampus, ImagePair, ImagePairs, Volume, read_volumes

__all__ = [
    "CIFAR10",
    "DATA_VARIABLE",
    "MNIST",
    "BlurredPhotographs",
    "BytePairs",
    "Bytes",
    "Characters",
    "CopyMemory",
    "Crops",
    "DataError",
    "Density",
    "DequantisedDigits",
    "DequantisedMNIST",
    "Digits",
    "FeatureTable",
    "FittingData",
    "GaussianKernel",
    "Hippocampus",
    "ImageData",
    "ImageFolder",
    "ImagePair",
    "ImagePairs",
    "Images",
    "KSpace",
    "Kernel",
    "Linear",
    "Logit",
    "LongTable",
    "LynxHare",
    "Masked",
    "Measured",
    "Measurement",
    "MotionKernel",
    "MovingSlices",
    "Nuclei",
    "Pairs",
    "Pendulum",
    "PhysioNet2012",
    "PictureFiles",
    "PictureFormat",
    "Powers",
    "RecipeData",
    "RepeatedScans",
    "Scaling",
    "Scan",
    "SeriesBatch",
    "SeriesData",
    "SeriesRows",
    "ShownSudoku",
    "Spiral",
    "Splits",
    "Sudoku",
    "Text",
    "Volume",
    "read_long",
    "read_scan",
    "read_volumes",
]
