"""Lightning modules of the recipes: a loss, its metrics, and how the solves behind them go."""

from torchimplicit.train.modules.classifier import Classifier
from torchimplicit.train.modules.curriculum import Curriculum
from torchimplicit.train.modules.equilibrium import EquilibriumModule
from torchimplicit.train.modules.meter import SolveMeter

__all__ = ["Classifier", "Curriculum", "EquilibriumModule", "SolveMeter"]
