"""Registration: images brought into one place, rigidly to freely, as minima and equilibria."""

from torchimplicit.imaging.register.metrics import dice, hausdorff, sd_log_jacobian, soft_dice, target_error
from torchimplicit.imaging.register.sample import sample, spline_coefficients
from torchimplicit.imaging.register.warp import compose, det_jacobian, folds, identity, warp, warp_labels

__all__ = [
    "compose",
    "det_jacobian",
    "dice",
    "folds",
    "hausdorff",
    "identity",
    "sample",
    "sd_log_jacobian",
    "soft_dice",
    "spline_coefficients",
    "target_error",
    "warp",
    "warp_labels",
]
