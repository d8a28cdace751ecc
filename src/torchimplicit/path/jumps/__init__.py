"""Paths that jump: cut into stretches, each solved by itself."""
