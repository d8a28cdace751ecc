"""Networks of the recipes: what comes before the equilibrium, its cell, and what comes after; and explicit rivals."""

from torchimplicit.train.networks.dense import BottleneckCell, DigitsNetwork, MNISTNetwork, RowBound, TanhCell

__all__ = ["BottleneckCell", "DigitsNetwork", "MNISTNetwork", "RowBound", "TanhCell"]
