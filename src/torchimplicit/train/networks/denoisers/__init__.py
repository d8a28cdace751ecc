"""Networks that see a noisy sample, how noisy it is, and of which class it shall be."""
