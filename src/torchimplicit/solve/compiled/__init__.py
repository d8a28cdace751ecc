"""Compiled steps towards a point."""
