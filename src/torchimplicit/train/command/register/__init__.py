"""The command `register`: order, files, solves, page."""
