"""Batches of training data, and the position of a run in them."""
