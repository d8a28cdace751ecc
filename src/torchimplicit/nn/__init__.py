"""Implicit layers to plug into models."""

from torchimplicit.nn.deq import DEQ

__all__ = ["DEQ"]
