"""Adjoints of ordinary differential equations that integrate backward."""
