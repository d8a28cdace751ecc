"""Vector fields in the flat form that path solvers work on."""
