"""What is searched in a model's place, where its own gradients mislead."""
