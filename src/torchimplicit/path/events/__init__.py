"""Events: conditions whose change of sign is looked for along a path."""
