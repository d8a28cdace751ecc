"""Paths, beside their peers."""
