"""Recorded paths as functions of time."""
