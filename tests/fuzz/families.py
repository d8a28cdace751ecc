"""Which public functions are under fuzz, how often, and what is known to be wrong."""

from tests.fuzz.constrained import constrained
from tests.fuzz.degenerate import degenerate
from tests.fuzz.fixed_points import fixed_point
from tests.fuzz.minima import argmin
from tests.fuzz.path_variants import path_variant
from tests.fuzz.paths import odeint
from tests.fuzz.plans import lqr
from tests.fuzz.programs import qp
from tests.fuzz.roots import root
from tests.fuzz.sets import sets
from tests.fuzz.sparse import sparse
from tests.fuzz.squares import least_squares
from tests.fuzz.stochastic import sdeint
from tests.fuzz.switches import switch

# family -> (generator, weight)
FAMILIES = {
    "fixed_point": (fixed_point, 20),
    "root": (root, 15),
    "argmin": (argmin, 12),
    "constrained": (constrained, 8),
    "least_squares": (least_squares, 8),
    "odeint": (odeint, 12),
    "walk": (path_variant, 8),  # the word is part of what its cases are drawn from
    "switch": (switch, 6),
    "sdeint": (sdeint, 10),
    "qp": (qp, 8),
    "degenerate": (degenerate, 8),
    "sparse": (sparse, 4),
    "lqr": (lqr, 5),
    "sets": (sets, 8),
}

# Faults that are known and not mended yet, by their id; a generator asks before it draws a case of that kind.
# `--known` draws them, too.
KNOWN: dict[str, str] = {}
