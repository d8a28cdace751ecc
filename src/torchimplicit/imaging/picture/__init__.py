"""Pictures of reconstructions and of registrations."""

from torchimplicit.imaging.picture.reconstruction import draw_comparison, draw_masks, draw_steps
from torchimplicit.imaging.picture.registration import draw_alignment, draw_deformation, draw_overlaps

__all__ = [
    "draw_alignment",
    "draw_comparison",
    "draw_deformation",
    "draw_masks",
    "draw_overlaps",
    "draw_steps",
]
