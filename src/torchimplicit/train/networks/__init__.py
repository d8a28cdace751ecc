"""Networks of the recipes: what comes before the equilibrium, its cell, and what comes after; and explicit rivals."""

from torchimplicit.train.networks.convolutional import ConvolutionalDEQ, ResidualNetwork
from torchimplicit.train.networks.copying import CopyingLSTM, CopyingTCN, CopyingTransformer
from torchimplicit.train.networks.dense import BottleneckCell, DigitsNetwork, MNISTNetwork, RowBound, TanhCell
from torchimplicit.train.networks.language import DEQTransformer, DEQTrellis, TransformerNetwork
from torchimplicit.train.networks.monotone import (
    MonotoneConvolutional,
    MonotoneDense,
    MonotoneMultitier,
    PlainConvolutional,
)
from torchimplicit.train.networks.multiscale import MDEQClassifier, MDEQSegmenter, UNet, UNetSegmenter
from torchimplicit.train.networks.paths import ConvolutionalODE, DenseFlow, DenseODE, HamiltonianField, PlainField
from torchimplicit.train.networks.programs import BoardPerceptron, BoardProgram
from torchimplicit.train.networks.sudoku import BoardRelaxation
from torchimplicit.train.networks.whitened import WhitenedFlow

__all__ = [
    "BoardPerceptron",
    "BoardProgram",
    "BoardRelaxation",
    "BottleneckCell",
    "ConvolutionalDEQ",
    "ConvolutionalODE",
    "CopyingLSTM",
    "CopyingTCN",
    "CopyingTransformer",
    "DEQTransformer",
    "DEQTrellis",
    "DenseFlow",
    "DenseODE",
    "DigitsNetwork",
    "HamiltonianField",
    "MDEQClassifier",
    "MDEQSegmenter",
    "MNISTNetwork",
    "MonotoneConvolutional",
    "MonotoneDense",
    "MonotoneMultitier",
    "PlainConvolutional",
    "PlainField",
    "ResidualNetwork",
    "RowBound",
    "TanhCell",
    "TransformerNetwork",
    "UNet",
    "UNetSegmenter",
    "WhitenedFlow",
]
