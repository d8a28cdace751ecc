"""Functions compiled by torch: what all who compile have in common."""
