"""Batches, and where a run is among them."""
