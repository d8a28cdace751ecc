"""Layers whose output is the solution of an optimisation problem."""
