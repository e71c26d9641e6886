"""From flags to a trained network."""
