"""Detection heads: what a network's outputs mean."""
