"""What is measured, side by side with the peers: `python -m benchmarks.points`, and so on."""
