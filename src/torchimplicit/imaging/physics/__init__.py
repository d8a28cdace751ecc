"""Linear operators of images: what is measured, the adjoint, and what follows from the two."""
