"""Registration: images brought into one place, rigidly to freely, as minima and equilibria."""

from torchimplicit.imaging.register.align import Registration, align
from torchimplicit.imaging.register.amortised import AmortisedStart
from torchimplicit.imaging.register.demons import Demons
from torchimplicit.imaging.register.field import exponential, flow, inverse
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.learned import FeatureLNCC, LearnedDemons
from torchimplicit.imaging.register.linear import Affine, Rigid, Similarity
from torchimplicit.imaging.register.metrics import dice, hausdorff, sd_log_jacobian, soft_dice, target_error
from torchimplicit.imaging.register.mutual import MutualInformation
from torchimplicit.imaging.register.sample import sample, spline_coefficients
from torchimplicit.imaging.register.similarity import LNCC, NCC, SSD
from torchimplicit.imaging.register.transform import Chain, Displacement, FreeForm, Linear, Transform, Velocity
from torchimplicit.imaging.register.variational import BSpline, Variational
from torchimplicit.imaging.register.warp import compose, det_jacobian, folds, identity, warp, warp_labels

__all__ = [
    "LNCC",
    "NCC",
    "SSD",
    "Affine",
    "AmortisedStart",
    "BSpline",
    "Chain",
    "Demons",
    "Displacement",
    "FeatureLNCC",
    "FreeForm",
    "Grid",
    "LearnedDemons",
    "Linear",
    "MutualInformation",
    "Registration",
    "Rigid",
    "Similarity",
    "Transform",
    "Variational",
    "Velocity",
    "align",
    "compose",
    "det_jacobian",
    "dice",
    "exponential",
    "flow",
    "folds",
    "hausdorff",
    "identity",
    "inverse",
    "sample",
    "sd_log_jacobian",
    "soft_dice",
    "spline_coefficients",
    "target_error",
    "warp",
    "warp_labels",
]
