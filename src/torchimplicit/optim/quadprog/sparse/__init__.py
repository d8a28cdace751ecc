"""Sparse programs: Clarabel's point, repaired, judged and differentiated as that of a dense one (extra `optim`)."""
