"""Adjoints that differentiate the steps that were taken."""
