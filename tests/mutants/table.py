"""The mutants: a line that decides a verdict, a wrong one in its place, and the tests that must notice."""

from tests.mutants import adjoints, core, images, jumps, linear, noise, outside, paths, points, programs

FAMILIES = (core, points, linear, adjoints, paths, jumps, noise, programs, images, outside)
MUTANTS = [mutant for family in FAMILIES for mutant in family.MUTANTS]
