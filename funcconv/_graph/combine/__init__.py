"""Layers put together, and branches merged."""
