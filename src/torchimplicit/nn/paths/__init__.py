"""Layers that integrate a vector field, the fields of physics, and penalties along the way."""
