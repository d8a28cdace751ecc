"""Explicit steps by compiled kernels."""
