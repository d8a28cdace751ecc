"""Steps by compiled kernels: what all paths need for it."""
