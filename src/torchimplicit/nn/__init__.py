"""Implicit layers to plug into models, and what keeps them stable."""

from torchimplicit.nn.contractive import ContractiveConv1d, ContractiveConv2d, ContractiveConv3d, ContractiveLinear
from torchimplicit.nn.control import MPC
from torchimplicit.nn.convex import Convex
from torchimplicit.nn.correction import fixed_point_correction
from torchimplicit.nn.deq import DEQ
from torchimplicit.nn.dropout import (
    VariationalDropout,
    VariationalDropout1d,
    VariationalDropout2d,
    VariationalDropout3d,
)
from torchimplicit.nn.expressivity import as_equilibrium, stack
from torchimplicit.nn.flow import CNF
from torchimplicit.nn.heads import ClassificationHead, SegmentationHead
from torchimplicit.nn.jacobian_penalty import jacobian_penalty
from torchimplicit.nn.lines import Burgers, ReactionDiffusion
from torchimplicit.nn.mechanics import HamiltonianNet, LagrangianNet
from torchimplicit.nn.monotone import MonotoneDEQ, MonotoneLinear
from torchimplicit.nn.monotone_convolution import MonotoneConv
from torchimplicit.nn.monotone_tiers import MonotoneTiers
from torchimplicit.nn.multiscale import MDEQ, ConvolutionalStem, MultiscaleCell
from torchimplicit.nn.neural_ode import AugmentedNeuralODE, NeuralODE
from torchimplicit.nn.path_penalty import JacobianFrobenius, KineticEnergy, PathPenalty, TaylorDerivative
from torchimplicit.nn.qp import QP
from torchimplicit.nn.residual import ResidualCell
from torchimplicit.nn.satisfiability import MaxSAT
from torchimplicit.nn.transformer import TransformerCell, TransformerInjection
from torchimplicit.nn.trellis import TrellisCell, TrellisInjection

__all__ = [
    "CNF",
    "DEQ",
    "MDEQ",
    "MPC",
    "QP",
    "AugmentedNeuralODE",
    "Burgers",
    "ClassificationHead",
    "ContractiveConv1d",
    "ContractiveConv2d",
    "ContractiveConv3d",
    "ContractiveLinear",
    "Convex",
    "ConvolutionalStem",
    "HamiltonianNet",
    "JacobianFrobenius",
    "KineticEnergy",
    "LagrangianNet",
    "MaxSAT",
    "MonotoneConv",
    "MonotoneDEQ",
    "MonotoneLinear",
    "MonotoneTiers",
    "MultiscaleCell",
    "NeuralODE",
    "PathPenalty",
    "ReactionDiffusion",
    "ResidualCell",
    "SegmentationHead",
    "TaylorDerivative",
    "TransformerCell",
    "TransformerInjection",
    "TrellisCell",
    "TrellisInjection",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "as_equilibrium",
    "fixed_point_correction",
    "jacobian_penalty",
    "stack",
]
