"""What joins models, data and the engine: training runs, and the loops of pruning and search over them."""
