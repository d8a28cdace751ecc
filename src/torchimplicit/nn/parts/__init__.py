"""Parts of a map that keep it a contraction, the same from step to step, and its samples independent."""
