"""Implicit layers to plug into models, and what keeps them stable."""

from typing import TYPE_CHECKING

from torchimplicit.core.migration import missing
from torchimplicit.nn.cells.residual_block import ResidualCell
from torchimplicit.nn.cells.spectral import SpectralCell
from torchimplicit.nn.cells.transformer import TransformerCell, TransformerInjection
from torchimplicit.nn.cells.transformer_stack import TransformerStack
from torchimplicit.nn.cells.trellis import TrellisCell, TrellisInjection
from torchimplicit.nn.equilibrium.correction import fixed_point_correction
from torchimplicit.nn.equilibrium.deq import DEQ
from torchimplicit.nn.equilibrium.expressivity import as_equilibrium, stack
from torchimplicit.nn.equilibrium.jacobian_penalty import jacobian_penalty
from torchimplicit.nn.equilibrium.monotone import MonotoneDEQ, MonotoneLinear
from torchimplicit.nn.equilibrium.monotone_convolution import MonotoneConv
from torchimplicit.nn.equilibrium.monotone_tiers import MonotoneTiers
from torchimplicit.nn.equilibrium.multiscale import MDEQ, ConvolutionalStem, MultiscaleCell
from torchimplicit.nn.equilibrium.multiscale_heads import ClassificationHead, SegmentationHead
from torchimplicit.nn.latent.encoder import Context, Encoder
from torchimplicit.nn.latent.gru_encoder import GRUEncoder
from torchimplicit.nn.latent.latent_ode import LatentODE
from torchimplicit.nn.latent.latent_path import NormalPrior
from torchimplicit.nn.latent.latent_sde import LatentSDE, Spread
from torchimplicit.nn.latent.likelihood import (
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    PoissonLikelihood,
)
from torchimplicit.nn.latent.neural_cde import NeuralCDE
from torchimplicit.nn.latent.ode_rnn import ODERNN, ODERNNEncoder
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.time_attention import TimeAttention
from torchimplicit.nn.parts.contractive import (
    ContractiveConv1d,
    ContractiveConv2d,
    ContractiveConv3d,
    ContractiveLinear,
)
from torchimplicit.nn.parts.dropout import (
    VariationalDropout,
    VariationalDropout1d,
    VariationalDropout2d,
    VariationalDropout3d,
)
from torchimplicit.nn.parts.spectral import SpectralConv2d, SpectralLinear
from torchimplicit.nn.paths.cnf import CNF
from torchimplicit.nn.paths.mechanics import HamiltonianNet, LagrangianNet
from torchimplicit.nn.paths.neural_ode import AugmentedNeuralODE, NeuralODE
from torchimplicit.nn.paths.neural_sde import NeuralSDE
from torchimplicit.nn.paths.pde import Burgers, ReactionDiffusion
from torchimplicit.nn.paths.penalties import JacobianFrobenius, KineticEnergy, PathPenalty, TaylorDerivative
from torchimplicit.nn.programs.convex import Convex
from torchimplicit.nn.programs.maxsat import MaxSAT
from torchimplicit.nn.programs.mpc import MPC
from torchimplicit.nn.programs.qp import QP
from torchimplicit.nn.score.denoiser import Denoiser
from torchimplicit.nn.score.exploding import EDM, VE
from torchimplicit.nn.score.guidance import Guidance
from torchimplicit.nn.score.matching import flow_matching_loss
from torchimplicit.nn.score.preserving import VP, SubVP
from torchimplicit.nn.score.samplers.dpm_solver import DPMSolverMultistep
from torchimplicit.nn.score.samplers.heun_edm import HeunEDM
from torchimplicit.nn.score.samplers.predictor_corrector import PredictorCorrector
from torchimplicit.nn.score.samplers.replacement import Replacement
from torchimplicit.nn.score.samplers.solved import ProbabilityFlow, ReverseSDE
from torchimplicit.nn.score.straight import Straight

__all__ = [
    "CNF",
    "DEQ",
    "EDM",
    "MDEQ",
    "MPC",
    "ODERNN",
    "QP",
    "VE",
    "VP",
    "AugmentedNeuralODE",
    "BernoulliLikelihood",
    "Burgers",
    "ClassificationHead",
    "Context",
    "ContractiveConv1d",
    "ContractiveConv2d",
    "ContractiveConv3d",
    "ContractiveLinear",
    "Convex",
    "ConvolutionalStem",
    "DPMSolverMultistep",
    "Denoiser",
    "Encoder",
    "GRUEncoder",
    "GaussianLikelihood",
    "Guidance",
    "HamiltonianNet",
    "HeunEDM",
    "JacobianFrobenius",
    "KineticEnergy",
    "LagrangianNet",
    "LatentODE",
    "LatentSDE",
    "Likelihood",
    "MaxSAT",
    "MonotoneConv",
    "MonotoneDEQ",
    "MonotoneLinear",
    "MonotoneTiers",
    "MultiscaleCell",
    "NeuralCDE",
    "NeuralODE",
    "NeuralSDE",
    "NormalPrior",
    "ODERNNEncoder",
    "PathPenalty",
    "PoissonLikelihood",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReactionDiffusion",
    "Replacement",
    "ResidualCell",
    "ReverseSDE",
    "SegmentationHead",
    "Series",
    "SpectralCell",
    "SpectralConv2d",
    "SpectralLinear",
    "Spread",
    "Straight",
    "SubVP",
    "TaylorDerivative",
    "TimeAttention",
    "TransformerCell",
    "TransformerInjection",
    "TransformerStack",
    "TrellisCell",
    "TrellisInjection",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "as_equilibrium",
    "fixed_point_correction",
    "flow_matching_loss",
    "jacobian_penalty",
    "stack",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        raise missing(__name__, name, __all__)
