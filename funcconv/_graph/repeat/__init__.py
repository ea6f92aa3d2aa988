"""Copies of a block that are computed by one loop, and the same block as separate nodes."""
