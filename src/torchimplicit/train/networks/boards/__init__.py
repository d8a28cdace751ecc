"""Networks that fill boards."""
