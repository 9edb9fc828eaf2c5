"""Real passes and starts, cold and warm in fresh processes, into the cost table."""
