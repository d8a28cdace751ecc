"""Losses without ground truth, of anything that reconstructs: splitting, equivariance, Stein's unbiased risk."""

from torchimplicit.imaging.selfsupervised.equivariant import equivariant_loss
from torchimplicit.imaging.selfsupervised.group import Flip, Group, QuarterTurn, Shift
from torchimplicit.imaging.selfsupervised.split import split_loss, split_mask
from torchimplicit.imaging.selfsupervised.sure import sure_loss

__all__ = [
    "Flip",
    "Group",
    "QuarterTurn",
    "Shift",
    "equivariant_loss",
    "split_loss",
    "split_mask",
    "sure_loss",
]
