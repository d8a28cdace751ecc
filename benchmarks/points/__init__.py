"""Points: equations and layers, beside their peers."""
