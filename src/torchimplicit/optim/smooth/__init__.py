"""Minima of smooth functions: of an energy, of a sum of squares, under equality constraints."""
