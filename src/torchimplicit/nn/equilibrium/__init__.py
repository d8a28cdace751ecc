"""Layers whose output is a fixed point, and what keeps, builds and corrects one."""
