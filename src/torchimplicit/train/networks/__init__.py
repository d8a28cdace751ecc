"""Networks of the recipes: what comes before the equilibrium, its cell, and what comes after; and explicit rivals."""

from torchimplicit.train.networks.boards.program import BoardPerceptron, BoardProgram
from torchimplicit.train.networks.boards.relaxation import BoardRelaxation
from torchimplicit.train.networks.denoisers.conditions import ConditionEmbedding
from torchimplicit.train.networks.denoisers.dense import ConditionalMLP
from torchimplicit.train.networks.denoisers.flow import ImageFlow
from torchimplicit.train.networks.denoisers.unet import ConditionalUNet
from torchimplicit.train.networks.images.dense import BottleneckCell, DigitsNetwork, MNISTNetwork
from torchimplicit.train.networks.images.monotone import (
    MonotoneConvolutional,
    MonotoneDense,
    MonotoneMultitier,
    PlainConvolutional,
)
from torchimplicit.train.networks.images.multiscale import MDEQClassifier, MDEQSegmenter, UNet, UNetSegmenter
from torchimplicit.train.networks.images.neural_ode import ConvolutionalODE
from torchimplicit.train.networks.images.reconstruction import (
    ImageDenoiser,
    RidgeReconstruction,
    SparsityReconstruction,
    UnrolledReconstruction,
)
from torchimplicit.train.networks.images.residual import ConvolutionalDEQ, ResidualNetwork
from torchimplicit.train.networks.images.volumes import LabelMaps
from torchimplicit.train.networks.sequences.copying import CopyingLSTM, CopyingTCN, CopyingTransformer
from torchimplicit.train.networks.sequences.language import DEQTransformer, DEQTrellis, TransformerNetwork
from torchimplicit.train.networks.series.base import BalancedLikelihood, SeriesNetwork, Units
from torchimplicit.train.networks.series.gru_d import GRUD
from torchimplicit.train.networks.series.latent import LatentODENetwork, ODERNNNetwork
from torchimplicit.train.networks.series.stochastic import LatentSDENetwork
from torchimplicit.train.networks.series.summary import SummaryEncoder
from torchimplicit.train.networks.vectors.dense import DenseODE
from torchimplicit.train.networks.vectors.equilibrium import DenseDEQ, RowBound, TanhCell
from torchimplicit.train.networks.vectors.flow import DenseFlow, WhitenedFlow
from torchimplicit.train.networks.vectors.mechanics import HamiltonianField, PlainField

__all__ = [
    "GRUD",
    "BalancedLikelihood",
    "BoardPerceptron",
    "BoardProgram",
    "BoardRelaxation",
    "BottleneckCell",
    "ConditionEmbedding",
    "ConditionalMLP",
    "ConditionalUNet",
    "ConvolutionalDEQ",
    "ConvolutionalODE",
    "CopyingLSTM",
    "CopyingTCN",
    "CopyingTransformer",
    "DEQTransformer",
    "DEQTrellis",
    "DenseDEQ",
    "DenseFlow",
    "DenseODE",
    "DigitsNetwork",
    "HamiltonianField",
    "ImageDenoiser",
    "ImageFlow",
    "LabelMaps",
    "LatentODENetwork",
    "LatentSDENetwork",
    "MDEQClassifier",
    "MDEQSegmenter",
    "MNISTNetwork",
    "MonotoneConvolutional",
    "MonotoneDense",
    "MonotoneMultitier",
    "ODERNNNetwork",
    "PlainConvolutional",
    "PlainField",
    "ResidualNetwork",
    "RidgeReconstruction",
    "RowBound",
    "SeriesNetwork",
    "SparsityReconstruction",
    "SummaryEncoder",
    "TanhCell",
    "TransformerNetwork",
    "UNet",
    "UNetSegmenter",
    "Units",
    "UnrolledReconstruction",
    "WhitenedFlow",
]
