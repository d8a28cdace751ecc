"""Diagonally implicit Runge-Kutta methods, for stiff fields."""
