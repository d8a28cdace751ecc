"""Programs and projections, beside their peers."""
