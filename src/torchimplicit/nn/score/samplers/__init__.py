"""From noise to samples: one file for each sampler."""
