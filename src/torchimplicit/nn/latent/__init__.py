"""Models of irregular series: encoders, latent differential equations, controlled ones, likelihoods."""
