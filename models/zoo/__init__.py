"""Networks as rows, by family."""
