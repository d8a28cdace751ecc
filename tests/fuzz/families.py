"""Which front doors are under fuzz, how often, and what is known to be wrong."""

from tests.fuzz.fixed_points import fixed_point
from tests.fuzz.minima import argmin
from tests.fuzz.paths import odeint
from tests.fuzz.roots import root
from tests.fuzz.squares import least_squares

# family -> (generator, weight)
FAMILIES = {
    "fixed_point": (fixed_point, 20),
    "root": (root, 15),
    "argmin": (argmin, 12),
    "least_squares": (least_squares, 8),
    "odeint": (odeint, 10),
}

# Faults that are known and not mended yet, by their id; a generator asks before it draws a case of that kind.
# `--known` draws them, too.
KNOWN = {
    "A1": "roots, minima and least squares in other units than the unknowns'",
    "B1": "samples that are not independent: the gradient of every backward solve but the right one",
    "B2": "samples that are not finite: their quarantine draws from the global random state, and misplaces gradients",
    "E12": "paths: f is evaluated outside of the requested times, by Kvaerno5 and by roundings",
    "N1": "norms that underflow",
    "C3": "Unrolled from a start at or near the solution",
}
