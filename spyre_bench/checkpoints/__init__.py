"""A model's directory: found, unpacked, cut to its first layers, or made up with random weights."""
