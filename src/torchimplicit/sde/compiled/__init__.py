"""Stochastic steps by compiled kernels, their noise made inside."""
