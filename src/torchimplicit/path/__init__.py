"""Paths, whoever makes their steps: the floor that families of them share."""
