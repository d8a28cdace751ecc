"""Implicit layers to plug into models, and what keeps them stable."""

from torchimplicit.nn.contractive import ContractiveConv1d, ContractiveConv2d, ContractiveConv3d, ContractiveLinear
from torchimplicit.nn.correction import fixed_point_correction
from torchimplicit.nn.deq import DEQ
from torchimplicit.nn.dropout import (
    VariationalDropout,
    VariationalDropout1d,
    VariationalDropout2d,
    VariationalDropout3d,
)
from torchimplicit.nn.jacobian_penalty import jacobian_penalty

__all__ = [
    "DEQ",
    "ContractiveConv1d",
    "ContractiveConv2d",
    "ContractiveConv3d",
    "ContractiveLinear",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "fixed_point_correction",
    "jacobian_penalty",
]
