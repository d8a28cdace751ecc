"""How good generated samples are: features of our own, distances, samplers compared."""

from torchimplicit.train.quality.comparison import Quality, compare, plot_qualities
from torchimplicit.train.quality.depth import by_steps
from torchimplicit.train.quality.distances import frechet_distance, sliced_wasserstein
from torchimplicit.train.quality.features import FeatureNetwork, train_features
from torchimplicit.train.quality.inpainting import Inpainted, hidden_psnr, inpaint, inpainting_figures, upper_half
from torchimplicit.train.quality.pictures import strips
from torchimplicit.train.quality.reference import Reference, Verdict

__all__ = [
    "FeatureNetwork",
    "Inpainted",
    "Quality",
    "Reference",
    "Verdict",
    "by_steps",
    "compare",
    "frechet_distance",
    "hidden_psnr",
    "inpaint",
    "inpainting_figures",
    "plot_qualities",
    "sliced_wasserstein",
    "strips",
    "train_features",
    "upper_half",
]
