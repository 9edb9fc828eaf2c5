"""A run in figures: latency, waste, distance to the bounds."""
