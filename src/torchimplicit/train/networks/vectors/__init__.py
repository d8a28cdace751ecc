"""Networks of vectors: where a path leads, densities, slopes."""
