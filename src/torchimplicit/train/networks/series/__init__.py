"""Networks of irregular series: latent differential equations, and rivals."""
