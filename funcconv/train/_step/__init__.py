"""A training step: its options, the gradient, the update."""
