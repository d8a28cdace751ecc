"""Score models: denoisers on Gaussian paths, their losses, samplers and likelihoods; flow matching."""
