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
    "E12": "paths: f is evaluated outside of the requested times, by Kvaerno5 and by roundings",
}
