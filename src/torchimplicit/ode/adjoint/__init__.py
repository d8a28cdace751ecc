"""Adjoints of ordinary differential equations that walk back."""
