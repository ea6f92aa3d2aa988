"""Find the operation of a training step that first returned a number that is not finite."""
