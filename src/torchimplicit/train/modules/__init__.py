"""Lightning modules of the recipes: a loss, its metrics, and how the solves behind them go."""

from torchimplicit.train.modules.classifier import Classifier
from torchimplicit.train.modules.completion import Completion
from torchimplicit.train.modules.copying import Copying
from torchimplicit.train.modules.curriculum import Curriculum
from torchimplicit.train.modules.equilibrium import EquilibriumModule
from torchimplicit.train.modules.errors_of_series import ErrorAsLatentODE, ErrorOverObservations
from torchimplicit.train.modules.flow import Flow
from torchimplicit.train.modules.forecaster import Forecaster, SeriesModule
from torchimplicit.train.modules.generative import GenerativeModule
from torchimplicit.train.modules.language_model import LanguageModel
from torchimplicit.train.modules.matching import FlowMatching, ImageFlowMatching
from torchimplicit.train.modules.meter import SolveMeter
from torchimplicit.train.modules.prognosis import Prognosis
from torchimplicit.train.modules.puzzle import Puzzle
from torchimplicit.train.modules.reconstruction_losses import (
    Equivariant,
    Judged,
    ReconstructionLoss,
    Risk,
    Splitting,
    Supervised,
)
from torchimplicit.train.modules.reconstructor import MeanPSNR, MeanSSIM, Reconstructor
from torchimplicit.train.modules.registered import Registered
from torchimplicit.train.modules.registrar import Registrar
from torchimplicit.train.modules.regressor import Mechanics, Regressor
from torchimplicit.train.modules.score import Score
from torchimplicit.train.modules.segmenter import Segmenter
from torchimplicit.train.modules.stochastic_forecaster import StochasticForecaster

__all__ = [
    "Classifier",
    "Completion",
    "Copying",
    "Curriculum",
    "EquilibriumModule",
    "Equivariant",
    "ErrorAsLatentODE",
    "ErrorOverObservations",
    "Flow",
    "FlowMatching",
    "Forecaster",
    "GenerativeModule",
    "ImageFlowMatching",
    "Judged",
    "LanguageModel",
    "MeanPSNR",
    "MeanSSIM",
    "Mechanics",
    "Prognosis",
    "Puzzle",
    "ReconstructionLoss",
    "Reconstructor",
    "Registered",
    "Registrar",
    "Regressor",
    "Risk",
    "Score",
    "Segmenter",
    "SeriesModule",
    "SolveMeter",
    "Splitting",
    "StochasticForecaster",
    "Supervised",
]
