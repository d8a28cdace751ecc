"""The `torchimplicit` command: training, reports, predictions, the demonstration."""
