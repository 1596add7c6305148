"""What a network's outputs can be at most and at least, over all inputs of a ball."""
