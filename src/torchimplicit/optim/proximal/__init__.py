"""Proximal maps, and the descents that are made of them, as fixed-point maps."""
