"""Graphs evaluated on signals that arrive in chunks."""
