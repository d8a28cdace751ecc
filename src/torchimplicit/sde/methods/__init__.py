"""The methods of stochastic paths, a file each."""
