"""What all benchmarks share: timing, tables, pictures."""
