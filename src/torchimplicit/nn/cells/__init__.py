"""The maps of the papers whose fixed points the layers are: `cell(z, x)`."""
