"""Networks of sequences: text, and what has to be remembered."""
