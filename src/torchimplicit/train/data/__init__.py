"""Data of the recipes: what they train on, from files, from a hub, or from a package that brings it along."""

from torchimplicit.train.data.base import DATA_VARIABLE, DataError, ImageData, Images, RecipeData, Splits
from torchimplicit.train.data.digits import Digits
from torchimplicit.train.data.mnist import MNIST

__all__ = ["DATA_VARIABLE", "MNIST", "DataError", "Digits", "ImageData", "Images", "RecipeData", "Splits"]
