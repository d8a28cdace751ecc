"""`torchimplicit predict CKPT FILES`: what a trained model says of files, and whether each answer converged."""
