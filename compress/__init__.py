"""Compression passes: (net, state, choice) -> (net, state), and the loops of pruning and search."""
