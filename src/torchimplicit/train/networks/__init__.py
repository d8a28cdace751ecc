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

__all__ = [
    "BottleneckCell",
    "ConvolutionalDEQ",
    "CopyingLSTM",
    "CopyingTCN",
    "CopyingTransformer",
    "DEQTransformer",
    "DEQTrellis",
    "DigitsNetwork",
    "MDEQClassifier",
    "MDEQSegmenter",
    "MNISTNetwork",
    "MonotoneConvolutional",
    "MonotoneDense",
    "MonotoneMultitier",
    "PlainConvolutional",
    "ResidualNetwork",
    "RowBound",
    "TanhCell",
    "TransformerNetwork",
    "UNet",
    "UNetSegmenter",
]
