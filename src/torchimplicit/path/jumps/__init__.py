"""Paths that jump: cut into stretches, each walked by itself."""
