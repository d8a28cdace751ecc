"""What to compare with: the adjoint, least squares, total variation, wavelets, plug and play, all solved to the end."""

from torchimplicit.imaging.baselines.frame import Differences, Wavelets, daubechies
from torchimplicit.imaging.baselines.linear import cg_sense, zero_filled
from torchimplicit.imaging.baselines.plug_and_play import plug_and_play
from torchimplicit.imaging.baselines.sparse import total_variation, wavelet

__all__ = [
    "Differences",
    "Wavelets",
    "cg_sense",
    "daubechies",
    "plug_and_play",
    "total_variation",
    "wavelet",
    "zero_filled",
]
