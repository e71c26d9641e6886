"""Progressive pruning."""
