"""Reconstructions of real k-space, mask by mask."""
