"""Where the time of a network goes."""
