"""Graphs evaluated on arrays."""
